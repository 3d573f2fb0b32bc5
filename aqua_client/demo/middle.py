"""When in a run the owner comes, and when it lends again."""

from __future__ import annotations

from collections.abc import Callable

from aqua_client.demo.happenings import GpuBytes, OwnerSaid, Teller
from aqua_client.demo.plan import Plan
from aqua_client.demo.summary import TakenBack
from aqua_client.demo.taking_back import Owner, gpu_to_take
from aqua_client.demo.watching import Watch

# Parts of the turns. By the first the budget has long been full; by the second the owner, a
# process that starts meanwhile, has its answer on all but the busiest machines, and is waited for.
BEGIN = 0.45
END = 0.8


class Middle:
    """The owner's part in a run."""

    def __init__(
        self, plan: Plan, watch: Watch, *, make_owner: Callable[[GpuBytes], Owner], tell: Teller
    ) -> None:
        self._begin_turn = int(BEGIN * plan.total_turns)
        self._end_turn = int(END * plan.total_turns)
        self._make_owner = make_owner
        self._watch = watch
        self._tell = tell
        self._owner: Owner | None = None
        self._ended = False

    def before_turn(self, turns_done: int) -> None:
        """Start the owner in the middle, where leases are to be had; let it lend again later."""
        if self._owner is None and turns_done >= self._begin_turn:
            self._start()
        if self._owner is not None and not self._ended and turns_done >= self._end_turn:
            self._end(self._owner)

    def close(self) -> None:
        """End the owner, whatever it does. Idempotent."""
        if self._owner is not None:
            self._owner.close()

    def taken_back(self) -> TakenBack | None:
        """What it got, if it came at all."""
        return None if self._owner is None else self._owner.taken_back()

    def _start(self) -> None:
        gpu = gpu_to_take(self._watch.look())
        if gpu is not None:
            self._owner = self._make_owner(gpu)

    def _end(self, owner: Owner) -> None:
        self._ended = True
        if not owner.wait_answered():
            self._tell(OwnerSaid(text="it got no answer in time"))
        owner.lend_again()
