"""What the client raises, and whose move it is.

AquaError
├── InvalidRequest         the caller: this can never be (also a ValueError)
│   ├── InvalidSetting         a value of the environment or of a setting is not allowed
│   ├── UnsupportedTensor      not a dense tensor with bytes of its own (also a TypeError)
│   └── HandleReleased         the handle has been released, or the client closed
├── InsufficientMemory     wait or free something: neither leased memory nor the host has room
├── LeaseLost              the bytes are gone: `cache` was dropped, or a GPU or keeper failed
├── ForkedChild            a forked child: connect anew
├── BrokerUnreachable      the daemon did not answer in time: use host memory, it is tried again
└── Refused                the daemon answered no: `reason` says why
    └── NotAnOwner             this process does not use that GPU, so it may not speak for it

`reason` is a short label, for counters and for `handle.reason`.
"""

from __future__ import annotations

# Of host memory: the daemon's ledger refuses with this reason, else the process's own limit held.
_LIMITS = {"no_host_room": "the daemon's --host-pool-bytes or --tenant-host-bytes"}


class AquaError(Exception):
    """Base of everything that `aqua_client` raises."""


class InvalidRequest(AquaError, ValueError):
    """What was asked can never be done."""


class InvalidSetting(InvalidRequest):
    """A setting has a value that is not allowed."""

    @classmethod
    def of(cls, key: str, value: object, allowed: str) -> InvalidSetting:
        """The error that names *key*, its *value* and what is *allowed*."""
        return cls(f"{key}={value!r} is not allowed: {allowed}")


class UnsupportedTensor(InvalidRequest, TypeError):
    """Only dense tensors with bytes of their own can be parked."""


class HandleReleased(InvalidRequest):
    """The handle holds nothing any more."""


class InsufficientMemory(AquaError):
    """Neither leased memory nor the host has room for this."""

    def __init__(
        self,
        message: str = "",
        *,
        asked_bytes: int = 0,
        peer_free_bytes: int = 0,
        host_free_bytes: int = 0,
        reason: str = "no_room",
    ) -> None:
        """Without a *message* one is made of the figures."""
        super().__init__(
            message
            or f"no room for {asked_bytes} bytes: {peer_free_bytes} bytes are free in leased "
            f"memory ({reason}) and {host_free_bytes} in host memory; release something, or "
            f"raise {_LIMITS.get(reason, 'AQUA_HOST_LIMIT')}"
        )
        self.asked_bytes = asked_bytes
        self.peer_free_bytes = peer_free_bytes
        self.host_free_bytes = host_free_bytes
        self.reason = reason


class LeaseLost(AquaError):
    """The bytes no longer exist anywhere."""


class ForkedChild(AquaError):
    """This process was forked from the one that connected; it has to connect anew."""


class BrokerUnreachable(AquaError):
    """No daemon answered in time, or none is expected to."""

    def __init__(self, message: str = "", *, reason: str = "no_daemon") -> None:
        """*reason*: no_daemon, refused, lost, restarting, silent, timeout, breaker, closed, ..."""
        super().__init__(message or f"the daemon can't be reached ({reason})")
        self.reason = reason


class Refused(AquaError):
    """The daemon said no. Nothing has changed there."""

    def __init__(
        self, message: str = "", *, reason: str = "refused", largest_bytes: int | None = None
    ) -> None:
        """*reason* is the daemon's label: no_room, no_host_room, quota, suspect, invalid, ...

        *largest_bytes*: of a slab for which there is room; None where the daemon did not say.
        """
        super().__init__(message or f"the daemon refused ({reason})")
        self.reason = reason
        self.largest_bytes = largest_bytes


class NotAnOwner(Refused):
    """Only a process that uses a GPU may lend or reclaim its memory."""

    def __init__(self, message: str = "", *, reason: str = "not_permitted") -> None:
        super().__init__(message, reason=reason)
