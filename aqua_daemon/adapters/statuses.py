"""Which gRPC status each refusal of the broker becomes: the one table, for calls and frames alike."""

from __future__ import annotations

import grpc

from aqua_daemon.core import errors
from aqua_daemon.core.errors import BrokerError

LONGEST_DETAILS = 1000  # of what a refusal says


class Unauthenticated(BrokerError):
    """The caller's token is missing, foreign or dead."""

    reason = "unauthenticated"


class NotKept(BrokerError):
    """What was set is in force, and would not survive a restart."""

    reason = "not_kept"


class TooLarge(BrokerError):
    """The message is longer than anything that can be asked."""

    reason = "too_large"


class TooMany(BrokerError):
    """The caller has too many connections, or sends too fast."""

    reason = "too_many"


class TooLate(BrokerError):
    """The time for it is over."""

    reason = "deadline"


class UnknownProtocol(BrokerError):
    """The client is more than one release apart."""

    reason = "protocol"


class UnknownService(BrokerError):
    """A health check asked about a service that is not here."""

    reason = "unknown_service"


STATUSES: dict[type[BrokerError], grpc.StatusCode] = {
    errors.BrokerError: grpc.StatusCode.UNKNOWN,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnknownSession: grpc.StatusCode.NOT_FOUND,
    errors.StaleRequest: grpc.StatusCode.ABORTED,  # try again a level higher: with a new id
    errors.ExchangeRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotExchangeable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExchangeGone: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExchangeTooSmall: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExchangeTooLate: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RefusedForNow: grpc.StatusCode.UNAVAILABLE,
    errors.InsufficientMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.InsufficientHostRoom: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SessionSuspect: grpc.StatusCode.FAILED_PRECONDITION,  # re-attach first
    errors.Measuring: grpc.StatusCode.UNAVAILABLE,
    errors.Restarting: grpc.StatusCode.UNAVAILABLE,
    errors.BrokerBug: grpc.StatusCode.INTERNAL,
    errors.InvalidTransition: grpc.StatusCode.INTERNAL,
    errors.IntegrityViolation: grpc.StatusCode.INTERNAL,
    NotKept: grpc.StatusCode.DATA_LOSS,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooMany: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLate: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnknownProtocol: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownService: grpc.StatusCode.NOT_FOUND,
}


def status_of(error: BrokerError) -> grpc.StatusCode:
    """The status of a refusal; an error class that nobody placed is a fault of ours."""
    return STATUSES.get(type(error), grpc.StatusCode.INTERNAL)
