"""An engine reports, its informer decides, and a thread of the library's own carries that out.

The engine's thread never waits for the daemon, and nothing that goes wrong here reaches it: errors
are counted, and each kind of them is logged once. Of several decisions only the newest matters, so
a daemon that is slow or away is caught up with in one step. From the first report on the GPU lends
what the informer has decided and nothing else: what the daemon lent before by itself comes back.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from aqua_client.errors import AquaError
from aqua_client.informing import Decision, Figures, Informer, Lend, Nothing, Reclaim

RETRY_SECONDS = 1.0  # after what the daemon did not take

# Who took memory back by hand wants it for more than a moment: an informer waits with its next offer.
REST_SECONDS = 30.0

logger = logging.getLogger("aqua")


class Reporter:
    """Of one GPU. Threads may share it."""

    def __init__(
        self,
        informer: Informer,
        carry_out: Callable[[int], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*carry_out* has the daemon lend so many bytes at most, and may raise AquaError.

        What takes long it leaves to a thread of its own, which ends with `again` or `later`.
        """
        self._informer = informer
        self._carry_out = carry_out
        self._clock = clock
        self._pid = os.getpid()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None  # started by the first report
        self._wanted_bytes = 0
        self._is_due = False
        self._is_closed = False
        self._rests_until = float("-inf")
        self._decisions = {"lend": 0, "reclaim": 0, "nothing": 0}
        self._last = ""
        self._failures: dict[str, int] = {}

    def report(self, figures: Figures) -> Decision:
        """What was decided; it is carried out a moment later. Never raises, waits for nobody."""
        if os.getpid() != self._pid:
            return Nothing(reason="forked")
        with self._change:
            if self._is_closed:
                return Nothing(reason="closed")
            now = self._clock()
            try:
                decision = self._informer.decide(figures, offered_bytes=self._wanted_bytes, now=now)
            except Exception as error:  # noqa: BLE001 - a policy may be the engine's own
                self._note_failure("informer", error)
                return Nothing(reason="informer")
            return self._take(decision, now)

    def offered_by_hand(self, nbytes: int) -> None:
        """The process has said itself how much may be lent."""
        with self._change:
            self._wanted_bytes = nbytes
            self._is_due = False

    def reclaimed_by_hand(self, nbytes: int, *, lent_bytes: int | None) -> None:
        """The process has taken memory back itself, and for a while no more of it is to be lent.

        *lent_bytes*: what still is, which a burst is to take back too; None: nobody knows.
        """
        with self._change:
            if lent_bytes is None:
                lent_bytes = max(0, self._wanted_bytes - nbytes)
            self._wanted_bytes = lent_bytes
            self._is_due = False
            self._rests_until = self._clock() + REST_SECONDS

    def again(self) -> None:
        """Carry out once more what is wanted: something has changed."""
        with self._change:
            self._is_due = True
            self._change.notify_all()

    def later(self, error: AquaError | None = None) -> None:
        """The same after a pause, by a thread that may wait; *error* is why."""
        with self._change:
            if error is not None:
                self._note_failure(str(getattr(error, "reason", type(error).__name__)), error)
            # What is decided meanwhile does not wait for the retry of what it replaces.
            self._change.wait_for(lambda: self._is_due or self._is_closed, RETRY_SECONDS)
        self.again()

    def stats(self) -> dict[str, object]:
        """What was decided, and what went wrong; nothing in a forked child."""
        if os.getpid() != self._pid:
            return {}
        with self._change:
            return {
                "wanted_bytes": self._wanted_bytes,
                "is_due": self._is_due,
                "decisions": dict(self._decisions),
                "last_decision": self._last,
                "report_failures": dict(self._failures),
            }

    def close(self) -> None:
        """Carry out nothing more. Idempotent; does not wait for what is under way."""
        if os.getpid() == self._pid:
            with self._change:
                self._is_closed = True
                self._change.notify_all()

    def _take(self, decision: Decision, now: float) -> Decision:
        if isinstance(decision, Lend) and now < self._rests_until:
            decision = Nothing(reason="rests")
        if self._thread is None:
            self._want(self._wanted_bytes)  # nothing, unless it was said by hand
        match decision:
            case Lend(nbytes=nbytes):
                self._want(nbytes)
                self._decisions["lend"] += 1
            case Reclaim(nbytes=nbytes):
                self._want(max(0, self._wanted_bytes - nbytes))
                self._decisions["reclaim"] += 1
            case Nothing():
                self._decisions["nothing"] += 1
                return decision
        self._last = f"{type(decision).__name__.lower()} {decision.nbytes} ({decision.reason})"
        return decision

    def _want(self, nbytes: int) -> None:
        self._wanted_bytes = nbytes
        self._is_due = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="aqua-reports", daemon=True)
            self._thread.start()
        self._change.notify_all()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._is_due or self._is_closed)
                if self._is_closed:
                    return
                wanted_bytes, self._is_due = self._wanted_bytes, False
            try:
                self._carry_out(wanted_bytes)
            except AquaError as error:
                self.later(error)
            with self._change:  # said by hand meanwhile, it may have been overtaken by this
                self._is_due |= self._wanted_bytes != wanted_bytes

    def _note_failure(self, reason: str, error: Exception) -> None:
        self._failures[reason] = self._failures.get(reason, 0) + 1
        if self._failures[reason] == 1:
            logger.warning("a report could not be carried out (told once): %s", error)
