"""aquactl's link to daemons of other releases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from aqua_protos import broker_pb2

from aqua_daemon import __version__
from aqua_daemon.ctl.link import Refused, opened
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import short_directory

SECONDS = 10.0


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    with (
        short_directory() as directory,
        FakeDaemon(str(directory / "aqua.sock"), way="grpc") as made,
    ):
        yield made


def test_a_daemon_of_a_far_release_is_refused_with_both_numbers(daemon: FakeDaemon) -> None:
    """Which aquactl to use instead is said."""
    daemon.protocol = 99
    says = rf"protocol 99, this aquactl \(version {__version__}\) 1 to 2: use the aquactl that came"
    with pytest.raises(Refused, match=says), opened(Path(daemon.path), seconds=SECONDS):
        pytest.fail("it was welcomed")


def test_a_call_that_an_older_daemon_does_not_know_says_so(daemon: FakeDaemon) -> None:
    """And not that it is unimplemented, which sounds like a fault."""
    request = broker_pb2.QuiesceRequest()
    with (
        opened(Path(daemon.path), seconds=SECONDS) as link,
        pytest.raises(Refused, match=r"\(version fake\) does not know Quiesce: upgrade it"),
    ):
        link.call("Quiesce", request, broker_pb2.QuiesceReply)
