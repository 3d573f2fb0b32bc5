"""What the broker refuses, and whose move it is.

BrokerError
├── InvalidRequest        the caller asked for something that can never be: change the call
├── NotPermitted          the caller may not ask this
├── UnknownSession        the session has ended: open a new one
├── StaleRequest          this request id has had its effect, and that lease has ended
├── ExchangeRefused       what was asked back has to come: evacuate it
│   ├── NotExchangeable       just these leases, or all there, are wanted
│   ├── ExchangeGone          some lease is not (any more) what the answer takes it for
│   ├── ExchangeTooSmall      what is offered is less than what was asked back
│   └── ExchangeTooLate       too little is left until the deadline, or it has passed
├── RefusedForNow         try again later, or use host memory
│   ├── InsufficientMemory    no GPU has room that may be lent
│   ├── InsufficientHostRoom  the node's or the tenant's host room is used up
│   ├── QuotaExceeded         the tenant has what it may have
│   ├── SessionSuspect        the session has not been heard in time: re-attach
│   ├── Measuring             another link of the node is being measured
│   └── Restarting            the daemon is waiting for holders of adopted leases
└── BrokerBug             the books are wrong: stop and report
    ├── InvalidTransition     a move that the life-cycle table does not have
    └── IntegrityViolation    an invariant does not hold

`reason` is the label that metrics and clients count a refusal under.
"""

from __future__ import annotations

from typing import ClassVar


class BrokerError(Exception):
    """Base of everything that `Broker.handle` raises."""

    reason: ClassVar[str] = "error"


class InvalidRequest(BrokerError):
    """The request can never be met."""

    reason = "invalid"


class NotPermitted(BrokerError):
    """The caller may not ask this."""

    reason = "not_permitted"


class UnknownSession(BrokerError):
    """No such session, or it has ended."""

    reason = "unknown_session"


class StaleRequest(BrokerError):
    """The request id was used before and what it got has ended."""

    reason = "stale_request"


class ExchangeRefused(BrokerError):
    """Other leases are not taken for those that were asked back; nothing has changed."""

    reason = "exchange_refused"


class NotExchangeable(ExchangeRefused):
    """No other leases will do: these are wanted, or all that is lent there is."""

    reason = "not_exchangeable"


class ExchangeGone(ExchangeRefused):
    """A lease to be spared is not being revoked any more, or one that is offered is not held."""

    reason = "exchange_gone"


class ExchangeTooSmall(ExchangeRefused):
    """What is offered has fewer bytes than what is to be spared."""

    reason = "exchange_small"


class ExchangeTooLate(ExchangeRefused):
    """What is offered could not be evacuated by the deadline any more."""

    reason = "exchange_late"


class RefusedForNow(BrokerError):
    """Not now: waiting can help."""

    reason = "refused"


class InsufficientMemory(RefusedForNow):
    """No GPU has enough room that may be lent."""

    reason = "no_room"

    def __init__(self, message: str, *, largest_bytes: int | None = None) -> None:
        """*largest_bytes*: of a slab for which there is room; None where that is not known."""
        super().__init__(message)
        self.largest_bytes = largest_bytes


class InsufficientHostRoom(RefusedForNow):
    """The ledger of host memory has no room for this."""

    reason = "no_host_room"


class QuotaExceeded(RefusedForNow):
    """The tenant already holds what its quota allows."""

    reason = "quota"


class SessionSuspect(RefusedForNow):
    """The session missed its keepalives or lost its presence connection."""

    reason = "suspect"


class Measuring(RefusedForNow):
    """One measurement at a time: two at once would measure each other."""

    reason = "measuring"


class Restarting(RefusedForNow):
    """A new daemon has not yet heard from every holder."""

    reason = "restarting"


class BrokerBug(BrokerError):
    """The broker itself is wrong."""

    reason = "bug"


class InvalidTransition(BrokerBug):
    """The life-cycle table has no such move."""


class IntegrityViolation(BrokerBug):
    """An invariant of the books does not hold."""
