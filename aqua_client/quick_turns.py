"""While leases are taken back, threads that want the interpreter have their turn sooner.

One that computes in Python keeps it for `sys.getswitchinterval()`, 5 ms, where another waits. If it lets
go of it for an instant now and then, as an event loop does that polls, it keeps it for seconds: who
waits is woken each time, finds it taken again, and its 5 ms begin anew (`take_gil` in CPython's
`ceval_gil.h` asks for it only after an interval without being woken). So while a deadline runs, and
only then, the interval is shorter than what mostly lies between two such instants. Where nobody else
wants the interpreter it changes nothing.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack

from aqua_client.while_any import WhileAny

QUICK_SECONDS = 50e-6


class QuickTurns(WhileAny):
    """One a process, as there is one interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self._programs_own: float | None = None

    def wanted(self) -> AbstractContextManager[None]:
        """Some thread of the library's has a deadline to keep."""
        return self.within()

    def changed(self, *, is_any: bool) -> None:
        """The last gives the program its own back."""
        if not is_any:
            self._give_back()
        elif self._programs_own is None and sys.getswitchinterval() > 2 * QUICK_SECONDS:
            self._programs_own = sys.getswitchinterval()
            sys.setswitchinterval(QUICK_SECONDS)

    def _give_back(self) -> None:
        # Another than ours: the program has set one meanwhile, and keeps it.
        is_ours = sys.getswitchinterval() < 2 * QUICK_SECONDS
        if self._programs_own is not None and is_ours:
            sys.setswitchinterval(self._programs_own)
        self._programs_own = None


QUICK_TURNS = QuickTurns()


class Hurry:
    """Quick turns that one thread begins for another, until that has had its first. Under a lock of theirs."""

    def __init__(self) -> None:
        self._turns = ExitStack()
        self._is_on = self._is_over = False

    def begin(self) -> None:
        """The other is about to be woken."""
        if not self._is_on and not self._is_over:
            self._is_on = True
            self._turns.enter_context(QUICK_TURNS.wanted())

    def end(self, *, for_good: bool = False) -> None:
        """It has had its turn; *for_good*: it will have none any more. Idempotent."""
        self._is_over |= for_good
        self._is_on = False
        self._turns.close()
