"""Lend a GPU's idle memory, and take it back: for a process that uses that GPU.

    with aqua_client.producer("SHM-1") as mine:
        mine.lend(512 * 2**20)
        ...
        result = mine.reclaim(512 * 2**20)   # returns when the bytes are free, or at the deadline

Covers the producer's two calls and what is offered again to a new daemon. Does not cover what
becomes of the borrowers: the broker asks them, and nobody is killed.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, cast

from aqua_client.counters import Counters
from aqua_client.errors import AquaError, BrokerUnreachable, InvalidRequest, NotAnOwner
from aqua_client.records import HostRoom, LeaseUse, OfferResult, ReclaimResult, RevokeNotice
from aqua_client.session import Session
from aqua_client.settings import ClientSettings

logger = logging.getLogger("aqua")


def producer(gpu: object, *, settings: ClientSettings | None = None) -> Producer:
    """Speak for *gpu*: its UUID, `SHM-n`, or a CUDA device of torch ("cuda:1", a torch.device).

    Raises:
        InvalidRequest: that names no GPU.
        BrokerUnreachable: no daemon is there, and without one there is nobody to lend to.
    """
    return Producer(uuid_of(gpu), settings or ClientSettings.from_environment())


class Producer:
    """What one process offers of one GPU. It ends with `close`, and with it the offer."""

    def __init__(self, gpu: str, settings: ClientSettings) -> None:
        """Attach to the daemon; raises as `producer`."""
        self.gpu = gpu
        self._settings = settings
        self._offered_bytes: int | None = None  # what a new daemon has to be told
        self._session = Session(settings, _Lender(self._offer_again), Counters())
        self._session.start()
        if not self._session.attached:
            reason = self._session.reason
            self._session.close()
            msg = f"no daemon at {settings.socket_path} takes this process ({reason})"
            raise BrokerUnreachable(msg, reason=reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def lend(self, nbytes: int) -> OfferResult:
        """Let at most *nbytes* of the GPU be lent from now on; 0: nothing more.

        Raises:
            NotAnOwner: this process has no memory on the GPU.
            BrokerUnreachable, Refused: nothing has changed.
        """
        _check_bytes(nbytes, least=0)
        try:
            result = self._session.offer(self.gpu, nbytes)
        except NotAnOwner as error:
            raise self._not_an_owner(error) from error
        self._offered_bytes = nbytes
        return result

    def reclaim(self, nbytes: int, deadline: float | None = None) -> ReclaimResult:
        """Take *nbytes* back; waits until they are free, or for *deadline* seconds and 2 more.

        What did not come back stands in `quarantined_bytes`. What came back is not lent again
        until `lend` says so. Raises as `lend`.
        """
        _check_bytes(nbytes, least=1)
        if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
            msg = f"deadline={deadline!r} is not allowed: a number of seconds over 0, or None"
            raise InvalidRequest(msg)
        try:
            result = self._session.reclaim(self.gpu, nbytes, deadline or 0.0)
        except NotAnOwner as error:
            raise self._not_an_owner(error) from error
        self._offered_bytes = 0
        return result

    def close(self) -> None:
        """Withdraw the offer. Idempotent."""
        self._session.close(seconds=self._settings.close_seconds)

    def _not_an_owner(self, error: NotAnOwner) -> NotAnOwner:
        msg = f"{error}: call this in a process that has memory of its own on {self.gpu}"
        return NotAnOwner(msg, reason=error.reason)

    def _offer_again(self) -> None:
        # A new daemon knows no offers. On a thread of its own: the session's must not wait.
        if self._offered_bytes is not None:
            threading.Thread(target=self._send_offer, name="aqua-offer", daemon=True).start()

    def _send_offer(self) -> None:
        try:
            self._session.offer(self.gpu, self._offered_bytes or 0)
        except AquaError as error:
            logger.warning("the offer of %s could not be repeated: %s", self.gpu, error)


def uuid_of(gpu: object) -> str:
    """The name that the daemon knows *gpu* by.

    Raises:
        InvalidRequest: it names none.
    """
    name = f"cuda:{gpu}" if isinstance(gpu, int) else str(gpu)
    if name.startswith(("GPU-", "SHM-")):
        return name
    kind, _, ordinal = name.partition(":")
    # Who has a CUDA device in hand has imported torch; everybody else does without it.
    torch = cast("_Torch | None", sys.modules.get("torch"))
    if kind != "cuda" or torch is None or (ordinal and not ordinal.isdigit()):
        msg = f'{gpu!r} names no GPU: give its UUID ("GPU-..."), "SHM-n" or a CUDA device of torch'
        raise InvalidRequest(msg)
    if not torch.cuda.is_available():
        msg = f"{gpu!r} names no GPU: torch sees no CUDA device in this process"
        raise InvalidRequest(msg)
    number = int(ordinal) if ordinal else torch.cuda.current_device()
    if number >= torch.cuda.device_count():
        msg = f"{gpu!r} names no GPU: torch sees {torch.cuda.device_count()} CUDA devices"
        raise InvalidRequest(msg)
    return f"GPU-{torch.cuda.get_device_properties(number).uuid}"


class _Lender:
    """The listener of a session that borrows nothing."""

    def __init__(self, attached_again: Callable[[], None]) -> None:
        self._attached_again = attached_again

    def revoked(self, notice: RevokeNotice) -> None:
        """There is nothing to revoke."""

    def leases_ended(self, lease_ids: Sequence[str]) -> None:
        """There are none."""

    def leases_lost(self, lease_ids: Sequence[str], reason: str) -> None:
        """There are none."""

    def attached(self) -> None:
        """A new daemon has to be told what is offered."""
        self._attached_again()

    def detached(self, reason: str) -> None:
        """The session comes back by itself."""

    def lease_uses(self) -> Sequence[LeaseUse]:
        return ()

    def host_room(self) -> HostRoom:
        return HostRoom(revision=0, nbytes=0)


def _check_bytes(nbytes: object, *, least: int) -> None:
    if isinstance(nbytes, bool) or not isinstance(nbytes, int) or not least <= nbytes < 2**63:
        msg = f"nbytes={nbytes!r} is not allowed: a whole number of bytes, {least} or more"
        raise InvalidRequest(msg)


class _Properties(Protocol):
    @property
    def uuid(self) -> object: ...


class _Cuda(Protocol):
    def is_available(self) -> bool: ...
    def current_device(self) -> int: ...
    def device_count(self) -> int: ...
    def get_device_properties(self, device: int) -> _Properties: ...


class _Torch(Protocol):
    @property
    def cuda(self) -> _Cuda: ...
