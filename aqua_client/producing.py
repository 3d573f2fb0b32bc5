"""Lend a GPU's idle memory, and take it back: for a process that uses that GPU.

    with aqua_client.producer("SHM-1") as mine:
        mine.lend(512 * 2**20)
        ...
        result = mine.reclaim(512 * 2**20)   # returns when the bytes are free, or at the deadline
        print(result.outcome)                # "complete", "partial", "nothing_lent", ...

An engine leaves the two to an informer, and tells it how it is doing, as often as it likes:

    mine = aqua_client.producer("cuda:0", informer=LlmInformer())
    mine.report(LlmFigures(pending_requests=3, kv_used_bytes=2**33, kv_total_bytes=2**36))

Covers the producer's calls and what is offered again to a new daemon. What an informer decides is
`informing`'s, how that is carried out `reporting`'s. Does not cover what becomes of the borrowers:
the broker asks them, and nobody is killed.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from aqua_client import reclaiming
from aqua_client.counters import Counters
from aqua_client.errors import AquaError, BrokerUnreachable, InvalidRequest, NotAnOwner
from aqua_client.gpu_names import uuid_of
from aqua_client.informing import Decision, Figures, Informer
from aqua_client.records import (
    HostRoom,
    LeaseUse,
    OfferResult,
    ReclaimOutcome,
    ReclaimProgress,
    ReclaimResult,
    RevokeNotice,
)
from aqua_client.reporting import Reporter
from aqua_client.session import Session
from aqua_client.settings import ClientSettings

logger = logging.getLogger("aqua")


def producer(
    gpu: object,
    *,
    informer: Informer | None = None,
    must_attach: bool = True,
    settings: ClientSettings | None = None,
) -> Producer:
    """Speak for *gpu*: its UUID, `SHM-n`, or a CUDA device of torch ("cuda:1", a torch.device).

    *informer* decides about what `Producer.report` is told. Without *must_attach* a daemon may come
    later.

    Raises:
        InvalidRequest: that names no GPU.
        BrokerUnreachable: no daemon is there, and without one there is nobody to lend to.
    """
    chosen = settings or ClientSettings.from_environment()
    return Producer(uuid_of(gpu), chosen, informer=informer, must_attach=must_attach)


class Producer:
    """What one process offers of one GPU. It ends with `close`, and with it the offer."""

    def __init__(
        self,
        gpu: str,
        settings: ClientSettings,
        *,
        informer: Informer | None = None,
        must_attach: bool = True,
    ) -> None:
        """Attach to the daemon; raises as `producer`."""
        self.gpu = gpu
        self._settings = settings
        self._offered_bytes: int | None = None  # what a new daemon has to be told
        self._reclaimed = {"reclaims": 0, "freed_bytes": 0, "quarantined_bytes": 0}
        self._counting = threading.Lock()  # an informer's thread reclaims too
        self._reporter = None if informer is None else Reporter(informer, self._carry_out)
        self._session = Session(settings, _Lender(self._offer_again), Counters())
        self._session.start()
        if must_attach and not self._session.attached:
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
        result = self._offer(nbytes)
        if self._reporter is not None:
            self._reporter.offered_by_hand(nbytes)
        return result

    def reclaim(
        self,
        nbytes: int,
        deadline: float | None = None,
        on_progress: Callable[[ReclaimProgress], object] | None = None,
    ) -> ReclaimResult:
        """Take *nbytes* back; waits until they are free, or for *deadline* seconds and 2 more.

        What did not come back stands in `quarantined_bytes`. What came back is not lent again
        until `lend` says so, or the informer, which waits for 30 s. That the daemon is not there, or
        says no, is a result too: see `ReclaimResult.outcome`. *on_progress* is called by this
        thread, each 50 ms and at the end.

        Raises:
            InvalidRequest: the bytes or the deadline can't be.
            NotAnOwner: this process has no memory on the GPU.
        """
        _check_bytes(nbytes, least=1)
        if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
            msg = f"deadline={deadline!r} is not allowed: a number of seconds over 0, or None"
            raise InvalidRequest(msg)
        result = self._reclaim(nbytes, deadline or 0.0, on_progress)
        if result.outcome is not ReclaimOutcome.REFUSED:
            self._offered_bytes = 0  # also where the daemon was not there: the next one hears it
        if self._reporter is not None:
            lent_bytes = reclaiming.lent_bytes(self._session, self.gpu)
            self._reporter.reclaimed_by_hand(nbytes, lent_bytes=lent_bytes)
        return result

    def report(self, figures: Figures) -> Decision:
        """Tell the informer how the engine is doing; what it decides is done in the background.

        Returns in microseconds, whatever the daemon does. What goes wrong is counted in `stats`.
        From the first report on nothing of the GPU is lent but what the informer has decided.

        Raises:
            InvalidRequest: there is no informer.
        """
        if self._reporter is None:
            msg = "nobody listens to reports: give producer(..., informer=...) one"
            raise InvalidRequest(msg)
        return self._reporter.report(figures)

    def stats(self) -> dict[str, object]:
        """What is offered, what came back, and of an informer what it decided and what failed."""
        return {
            "gpu": self.gpu,
            "attached": self._session.attached,
            "reason": self._session.reason,
            "offered_bytes": self._offered_bytes,
            **self._reclaimed,
            **({} if self._reporter is None else self._reporter.stats()),
        }

    def close(self) -> None:
        """Withdraw the offer. Idempotent."""
        if self._reporter is not None:
            self._reporter.close()
        self._session.close(seconds=self._settings.close_seconds)

    def _offer(self, nbytes: int) -> OfferResult:
        try:
            result = self._session.offer(self.gpu, nbytes)
        except NotAnOwner as error:
            raise self._not_an_owner(error) from error
        self._offered_bytes = nbytes
        return result

    def _reclaim(
        self, nbytes: int, seconds: float, watcher: reclaiming.Watcher | None = None
    ) -> ReclaimResult:
        try:
            result = reclaiming.reclaim(self._session, self.gpu, nbytes, seconds, watcher)
        except NotAnOwner as error:
            raise self._not_an_owner(error) from error
        with self._counting:
            self._reclaimed["reclaims"] += 1
            self._reclaimed["freed_bytes"] += result.freed_bytes
            self._reclaimed["quarantined_bytes"] += result.quarantined_bytes
        return result

    def _carry_out(self, wanted_bytes: int) -> None:
        """Lend at most so much, and set on its way back what is lent beyond it."""
        beyond_bytes = self._offer(wanted_bytes).lent_bytes - wanted_bytes
        if beyond_bytes > 0:
            # A borrower that hangs must not hold up the burst that comes next and wants all of it.
            threading.Thread(
                target=self._take_back, args=(beyond_bytes,), name="aqua-reclaim", daemon=True
            ).start()

    def _take_back(self, nbytes: int) -> None:
        """Wait for them; then it is looked again, and what is to be lent is said again.

        For the reclaim has lowered the limit, and counted what was on its way back anyhow.
        """
        if self._reporter is None:
            return
        try:
            result = self._reclaim(nbytes, 0.0)
        except AquaError as error:
            self._reporter.later(error)
            return
        if result.freed_bytes:
            self._reporter.again()
        else:
            self._reporter.later(result.error)

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
