"""Serves conversations within a KV budget: whose turn it is has its KV resident, others wait.

When room is needed the conversation that had its turn longest ago is parked. Without parking
(the reference run) everything stays resident and there is no budget.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from aqua_client.demo.happenings import Fetched, Parked, Teller, TurnEnded
from aqua_client.demo.model import KvCache, Model
from aqua_client.demo.parking import ParkedCache, Parking
from aqua_client.demo.plan import Plan
from aqua_client.demo.text import piece

Answers = dict[int, list[list[int]]]  # of each conversation, the tokens of each turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a run of all conversations came to."""

    answers: Answers
    turns: int
    tokens: int
    peak_resident_bytes: int
    all_kv_bytes: int  # resident and parked, at the end
    seconds: float

    def differing(self, reference: Answers) -> list[int]:
        """The conversations that were not answered as in the reference."""
        return [number for number in reference if self.answers[number] != reference[number]]


class Server:
    """All conversations of a plan, with one model."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        *,
        tell: Teller,
        parking: Parking | None = None,
        reference: Answers | None = None,
    ) -> None:
        self._model = model
        self._plan = plan
        self._tell = tell
        self._parking = parking
        self._reference = reference
        self._resident: OrderedDict[int, KvCache] = OrderedDict()  # the longest waiting first
        self._parked: dict[int, ParkedCache] = {}
        self._started_at = time.monotonic()
        self.answers: Answers = {number: [] for number in range(plan.conversations)}
        self.turns_done = 0
        self.tokens_done = 0
        self.peak_resident_bytes = 0

    def serve_all(self, before_turn: Callable[[int], None] | None = None) -> Served:
        """Every turn of the plan; `before_turn` gets the number of turns done."""
        for number in self._plan.order():
            if before_turn is not None:
                before_turn(self.turns_done)
            self.serve_turn(number)
        return Served(
            answers=self.answers,
            turns=self.turns_done,
            tokens=self.tokens_done,
            peak_resident_bytes=self.peak_resident_bytes,
            all_kv_bytes=self._resident_bytes()
            + sum(parked.nbytes for parked in self._parked.values()),
            seconds=time.monotonic() - self._started_at,
        )

    def serve_turn(self, number: int) -> None:
        """One turn of one conversation: read the next piece, answer, wait again."""
        turn = len(self.answers[number])
        cache = self._make_resident(number, turn)
        self._resident.move_to_end(number)
        following = self._model.read(cache, piece(self._plan, conversation=number, turn=turn))
        reply: list[int] = []
        for _ in range(self._plan.reply_tokens):
            self._note_peak(cache)
            reply.append(following)
            following = self._model.read(cache, [following])
        self._note_peak(cache)
        self.answers[number].append(reply)
        self.turns_done += 1
        self.tokens_done += len(reply)
        self._tell(self._turn_ended(number))

    def differing(self) -> int:
        """How many answers so far are not the reference's."""
        if self._reference is None:
            return 0
        return sum(
            reply != expected
            for number, replies in self.answers.items()
            for reply, expected in zip(replies, self._reference[number], strict=False)
        )

    def _make_resident(self, number: int, turn: int) -> KvCache:
        self._make_room(number, turn)
        if number in self._resident:
            return self._resident[number]
        parked = self._parked.pop(number, None)
        if parked is None or self._parking is None:
            cache = KvCache()
        else:
            cache, tier_bytes = self._parking.fetch(parked)
            self._tell(Fetched(conversation=number, tier_bytes=tier_bytes))
        self._resident[number] = cache
        self._note_peak(cache)
        return cache

    def _make_room(self, number: int, turn: int) -> None:
        """Park others until this conversation fits as large as it will be after its turn."""
        if self._parking is None:
            return
        shape = self._plan.shape
        needed = self._plan.tokens_after(turn) * shape.kv_bytes_per_token
        needed += needed // (2 * shape.layers)  # one tensor is copied as it grows
        others = [waiting for waiting in self._resident if waiting != number]
        for waiting in others:
            held = sum(self._resident[other].nbytes for other in self._resident if other != number)
            if held + needed <= self._plan.kv_budget_bytes:
                return
            parked, tier_bytes = self._parking.park(self._resident.pop(waiting))
            self._parked[waiting] = parked
            self._tell(Parked(conversation=waiting, tier_bytes=tier_bytes))

    def _note_peak(self, growing: KvCache) -> None:
        resident = self._resident_bytes() + growing.growth_bytes
        self.peak_resident_bytes = max(self.peak_resident_bytes, resident)

    def _resident_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._resident.values())

    def _turn_ended(self, number: int) -> TurnEnded:
        seconds = max(time.monotonic() - self._started_at, 1e-6)
        return TurnEnded(
            run="reference" if self._parking is None else "parking",
            conversation=number,
            turns_done=self.turns_done,
            tokens_done=self.tokens_done,
            tokens_per_second=self.tokens_done / seconds,
            resident_bytes=self._resident_bytes(),
            differing=self.differing(),
        )
