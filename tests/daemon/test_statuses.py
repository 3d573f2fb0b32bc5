"""Every refusal has a gRPC status."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from aqua_daemon.adapters import statuses
from aqua_daemon.adapters.statuses import STATUSES, status_of
from aqua_daemon.core.errors import BrokerError, InsufficientMemory


def all_errors(base: type[BrokerError]) -> Iterator[type[BrokerError]]:
    yield base
    for kind in base.__subclasses__():
        yield from all_errors(kind)


def test_each_error_class_has_a_status() -> None:
    """No error of the broker or the adapters is missing in the table, and none is OK."""
    ours = {kind for kind in all_errors(BrokerError) if kind.__module__.startswith("aqua_daemon")}
    assert ours == set(STATUSES)
    assert grpc.StatusCode.OK not in STATUSES.values()


def test_each_error_class_has_a_reason_that_fits_a_label() -> None:
    """Reasons become metric labels and metadata: lower case, no blanks."""
    for kind in STATUSES:
        assert kind.reason.replace("_", "").isalpha(), kind
        assert kind.reason.islower(), kind


def test_an_error_that_nobody_placed_is_a_fault_of_ours() -> None:
    """INTERNAL, so that it is looked at."""

    class Unplaced(InsufficientMemory):
        pass

    assert status_of(InsufficientMemory("x")) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_of(Unplaced("x")) is grpc.StatusCode.INTERNAL
    assert status_of(statuses.Unauthenticated("x")) is grpc.StatusCode.UNAUTHENTICATED
