"""Serving: the budget holds, the longest waiting is parked, and answers do not change."""

from __future__ import annotations

from dataclasses import replace

from aqua_client.demo.happenings import Fetched, Happening, Parked, TurnEnded
from aqua_client.demo.model import Model
from aqua_client.demo.parking import Parking
from aqua_client.demo.plan import Plan
from aqua_client.demo.serving import Served, Server
from tests.demo.stores import TINY, CopyStore, ForgettingStore


def served_with(
    model: Model, store: CopyStore, *, plan: Plan = TINY
) -> tuple[Served, Parking, list[Happening]]:
    """A run of the plan that parks in the store, and what it told."""
    told: list[Happening] = []
    parking = Parking(store)
    return Server(model, plan, tell=told.append, parking=parking).serve_all(), parking, told


def test_parking_changes_no_answer(model: Model, reference: Served) -> None:
    """Token for token, every conversation answers as in the run that never parked."""
    served, parking, _ = served_with(model, CopyStore())
    assert parking.parks > TINY.conversations
    assert served.answers == reference.answers
    assert served.differing(reference.answers) == []
    assert served.tokens == TINY.total_turns * TINY.reply_tokens


def test_resident_kv_stays_within_the_budget(model: Model) -> None:
    """The peak, growth included, is at most the budget, and parking was needed for it."""
    served, _, _ = served_with(model, CopyStore())
    assert TINY.kv_budget_bytes // 2 < served.peak_resident_bytes <= TINY.kv_budget_bytes
    assert served.all_kv_bytes == TINY.final_kv_bytes


def test_the_reference_keeps_everything_resident(reference: Served) -> None:
    """Its peak is all KV at the end, and a growing tensor."""
    assert reference.peak_resident_bytes > TINY.final_kv_bytes


def test_a_budget_below_one_conversation_is_seen(model: Model) -> None:
    """It is served all the same, and the peak says that the budget was passed."""
    plan = replace(TINY, kv_budget_bytes=TINY.kv_budget_bytes // 8)
    served, _, _ = served_with(model, CopyStore(), plan=plan)
    assert served.peak_resident_bytes > plan.kv_budget_bytes


def test_the_longest_waiting_conversation_is_parked(model: Model) -> None:
    """Each one parked had its last turn before those of all that stay resident."""
    _, _, told = served_with(model, CopyStore())
    last_turn: dict[int, int] = {}
    resident: set[int] = set()
    for step, happening in enumerate(told):
        if isinstance(happening, TurnEnded):
            last_turn[happening.conversation] = step
            resident.add(happening.conversation)
        elif isinstance(happening, Fetched):
            resident.add(happening.conversation)
        elif isinstance(happening, Parked):
            resident.remove(happening.conversation)
            longest = last_turn[happening.conversation]
            assert all(longest < last_turn.get(other, step) for other in resident)


def test_wrong_bytes_change_answers(model: Model, reference: Served) -> None:
    """A store that forgets is found out by the answers as well as by the bytes."""
    served, parking, _ = served_with(model, ForgettingStore())
    assert served.differing(reference.answers)
    assert parking.tensors_differing


def test_a_difference_is_told_at_the_turn_it_arises(model: Model, reference: Served) -> None:
    """Screens need not wait for the end."""
    told: list[Happening] = []
    Server(
        model,
        TINY,
        tell=told.append,
        parking=Parking(ForgettingStore()),
        reference=reference.answers,
    ).serve_all()
    turns = [happening for happening in told if isinstance(happening, TurnEnded)]
    assert turns[0].differing == 0
    assert turns[-1].differing > 0


def test_before_turn_hears_of_every_turn(model: Model) -> None:
    """It gets the number of turns done, once before each."""
    heard: list[int] = []
    Server(model, TINY, tell=lambda _: None).serve_all(heard.append)
    assert heard == list(range(TINY.total_turns))
