"""When in a run the owner has its burst, and when that is over."""

from __future__ import annotations

from aqua_client.demo.happenings import OwnerSaid, Teller
from aqua_client.demo.neighbours import Owner
from aqua_client.demo.plan import BURST_GPU, Plan
from aqua_client.demo.watching import Watch

# Parts of the turns. By the first the budget has long been full; by the second the owner has its
# answer on all but the busiest machines, and is waited for; enough are left to lend it again.
BEGIN = 0.4
END = 0.65

# What it lets go is lent after the node's settle time, and seen at the next look.
LENDABLE_SECONDS = 30.0


class Middle:
    """The burst in a run."""

    def __init__(self, plan: Plan, watch: Watch, owner: Owner, *, tell: Teller) -> None:
        self._begin_turn = int(BEGIN * plan.total_turns)
        self._end_turn = int(END * plan.total_turns)
        self._watch = watch
        self._owner = owner
        self._tell = tell
        self._has_begun = False
        self._has_ended = False

    def before_turn(self, turns_done: int) -> None:
        """Let the burst begin where the GPU lends something; end it later, with its answer."""
        if not self._has_begun and turns_done >= self._begin_turn:
            self._begin()
        if self._has_begun and not self._has_ended and turns_done >= self._end_turn:
            self._end()
        self.look()

    def look(self) -> None:
        """See what is lent again."""
        self._owner.note_lent(self._lent_bytes())

    def _begin(self) -> None:
        self._watch.look()
        if self._lent_bytes():
            self._has_begun = True
            self._owner.burst()

    def _end(self) -> None:
        self._has_ended = True
        if not self._owner.wait_grown():
            self._tell(OwnerSaid(text=f"{BURST_GPU}: its owner got no answer in time"))
        if self._owner.lend_again() and not self._watch.wait_lendable(
            BURST_GPU, seconds=LENDABLE_SECONDS
        ):
            self._tell(OwnerSaid(text=f"{BURST_GPU}: nothing may be lent of it"))

    def _lent_bytes(self) -> int:
        return sum(gpu.lent for gpu in self._watch.gpus if gpu.gpu == BURST_GPU)
