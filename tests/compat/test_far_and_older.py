"""What is said where two releases do not know the same: nothing is left out silently."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import aqua_client
from tests.compat.releases import Release
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import MIB, running_node, short_directory


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """One that answers in a protocol of the future."""
    with short_directory() as directory, FakeDaemon(str(directory / "aqua.sock")) as made:
        made.protocol = 99
        yield made


def test_a_server_goes_to_host_memory_beside_a_daemon_of_a_far_release(daemon: FakeDaemon) -> None:
    """It is warned once, its bytes are safe, and the reason says what is wrong."""
    with aqua_client.connect(socket=daemon.path) as client:
        with pytest.warns(aqua_client.AquaWarning, match="protocol"):
            parked = client.offload(torch.arange(MIB))
        assert (parked.tier, parked.reason) == ("host", "protocol")
        assert torch.equal(parked.fetch(), torch.arange(MIB))
        assert client.stats()["fallbacks"] == {"protocol": 1}


def test_a_server_that_refuses_host_memory_is_told_what_to_do(daemon: FakeDaemon) -> None:
    """Starting a daemon would not help."""
    with (
        aqua_client.connect(socket=daemon.path, fallback="error") as client,
        pytest.raises(aqua_client.BrokerUnreachable, match="to neighbouring releases") as caught,
    ):
        client.offload(torch.arange(MIB))
    assert caught.value.reason == "protocol"


def test_quotas_that_an_older_daemon_does_not_know_are_not_half_set(
    old: Release, new: Release
) -> None:
    """The bytes are not set either, and whom to upgrade is said; what it knows can be set."""
    with running_node(gpus=2, variables=old.variables, is_steady=False) as node:
        words = ("-m", "aqua_daemon.ctl", "quota")
        where = ("--socket", node.socket)
        refused = new.run(*words, "set", "uid-7", "8MiB", "--leases", "3", *where)
        assert refused.returncode == 1
        assert "(version 0.1.0) does not know quotas of leases and sessions" in refused.stderr
        assert f"upgrade it to this aquactl's version, {new.version}" in refused.stderr
        assert new.run(*words, "get", "uid-7", *where).returncode == 1  # it has none
        assert new.run(*words, "set", "uid-7", "8MiB", *where).returncode == 0
        shown = new.run(*words, "get", *where).stdout.splitlines()
        assert [line.split() for line in shown if "uid-7" in line] == [
            ["uid-7", "8", "0", "-", "-", "1"]
        ]
        assert "a process:" not in "".join(shown)
