"""A borrower: a client that takes and gives back leases until it has what its pattern says."""

from __future__ import annotations

from functools import partial

from aqua_daemon.core.errors import BrokerError, InsufficientMemory
from aqua_daemon.core.instructions import Answer
from aqua_daemon.core.model import SafetyClass
from tests.simulation.clients import Client
from tests.simulation.elastic.patterns import STEP_BYTES, Pattern, Steady
from tests.simulation.stage import Stage

_MOST_AT_ONCE = 6
_MOST_ITEMS = 12
_REFUSED_SECONDS = 1.0  # until it asks again


class Borrower:
    """Drives one client; what it stores it reads back."""

    def __init__(self, client: Client, pattern: Pattern, stage: Stage) -> None:
        self.client = client
        self.pattern = pattern
        self._stage = stage
        self._asking_bytes = 0
        self._asks_again_at = 0.0
        self._was_refused = False

    @property
    def wanted_bytes(self) -> int:
        """What it wants now."""
        return self.pattern.bytes_at(self._stage.now)

    def hold(self) -> None:
        """Want the same from now on."""
        self.pattern = Steady(self.wanted_bytes)

    def look(self) -> None:
        """Take or give back what is missing or too much."""
        if not self.client.is_ready:
            return
        held = self.client.holdings.slabs.values()
        usable = sum(one.lease.nbytes for one in held if not one.is_fenced)
        missing = self.wanted_bytes - usable - self._asking_bytes
        if missing >= STEP_BYTES:
            self._ask(missing)
        elif missing <= -STEP_BYTES:
            self._give_back(-missing)
        self._use()

    def _ask(self, missing: int) -> None:
        if self._stage.now < self._asks_again_at:
            return
        safety_class = self._stage.chance.pick((SafetyClass.STORE, SafetyClass.CACHE))
        for _ in range(1 if self._was_refused else _MOST_AT_ONCE):
            nbytes = min(missing, STEP_BYTES if self._was_refused else 2 * STEP_BYTES)
            if nbytes < STEP_BYTES:
                return
            self._asking_bytes += nbytes
            self.client.acquire(
                nbytes,
                safety_class,
                wanted_bytes=missing,
                told=partial(self._told, nbytes),
            )
            missing -= nbytes

    def _told(self, nbytes: int, answer: Answer | BrokerError | None) -> None:
        self._asking_bytes -= nbytes
        # Refused the larger, it asks for the smaller at once; refused that, after a while.
        if isinstance(answer, InsufficientMemory) and nbytes == STEP_BYTES:
            pause = self._stage.chance.between(0.5, 1.0) * _REFUSED_SECONDS
            self._asks_again_at = self._stage.now + pause
        self._was_refused = isinstance(answer, BrokerError)

    def _give_back(self, nbytes: int) -> None:
        chosen = []
        for lease_id, held in self.client.holdings.slabs.items():
            if not held.is_fenced and held.lease.nbytes <= nbytes:
                chosen.append(lease_id)
                nbytes -= held.lease.nbytes
        if chosen:
            self._stage.count("releases")
            self.client.release(tuple(chosen))

    def _use(self) -> None:
        chance, holdings = self._stage.chance, self.client.holdings
        if len(holdings.items) >= _MOST_ITEMS:
            number = chance.pick(list(holdings.items))
            holdings.read(number)
            if number in holdings.items:
                holdings.forget(number)
        elif chance.happens(0.5):
            nbytes = int(chance.between(1, STEP_BYTES))
            if holdings.put(nbytes, chance.pick((SafetyClass.STORE, SafetyClass.CACHE))):
                self._stage.count("offloads to peers")
