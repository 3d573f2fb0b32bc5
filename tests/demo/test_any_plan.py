"""Whatever the plan, parking changes no answer and the budget holds."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aqua_client.demo.happenings import Fetched, Happening, Parked
from aqua_client.demo.model import Model
from aqua_client.demo.parking import Parking
from aqua_client.demo.plan import Plan
from aqua_client.demo.serving import Server
from tests.demo.stores import TINY, CopyStore

# The model is one for all examples, and that is meant.
SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any few conversations, and any budget that the largest of them fits."""
    plan = replace(
        TINY,
        conversations=draw(st.integers(1, 5)),
        turns=draw(st.integers(1, 4)),
        prompt_bytes=draw(st.integers(1, 30)),
        piece_bytes=draw(st.integers(1, 9)),
        reply_tokens=draw(st.integers(1, 4)),
        order_seed=draw(st.integers(0, 99)),
    )
    largest = plan.tokens_after(plan.turns - 1) * plan.shape.kv_bytes_per_token
    tensors = 2 * plan.shape.layers
    least = largest + largest // tensors  # one tensor is copied as it grows
    return replace(plan, kv_budget_bytes=draw(st.integers(least, 4 * least)))


@SETTINGS
@given(plan=plans())
def test_answers_are_the_same_within_any_budget(plan: Plan, model: Model) -> None:
    """Token for token, with the peak within the budget and no byte changed."""
    reference = Server(model, plan, tell=lambda _: None).serve_all()
    parking = Parking(CopyStore())
    served = Server(model, plan, tell=lambda _: None, parking=parking).serve_all()
    assert served.answers == reference.answers
    assert served.peak_resident_bytes <= plan.kv_budget_bytes
    assert served.all_kv_bytes == plan.final_kv_bytes
    assert parking.tensors_differing == 0


@SETTINGS
@given(plan=plans())
def test_every_fetch_gives_its_place_back(plan: Plan, model: Model) -> None:
    """The store holds just what is parked at the end, and the counts say how much went by."""
    store = CopyStore()
    parking = Parking(store)
    told: list[Happening] = []
    Server(model, plan, tell=told.append, parking=parking).serve_all()
    parked = [one for one in told if isinstance(one, Parked)]
    fetched = [one for one in told if isinstance(one, Fetched)]
    held = sum(copy._tensor is not None for copy in store.copies)
    assert held == 2 * plan.shape.layers * (len(parked) - len(fetched))
    assert (parking.parks, parking.fetches) == (len(parked), len(fetched))
    assert parking.parked_bytes.total() == sum(sum(one.tier_bytes.values()) for one in parked)


@SETTINGS
@given(plan=plans())
def test_no_conversation_is_in_two_places(plan: Plan, model: Model) -> None:
    """Parked only when resident, fetched only when parked."""
    away: set[int] = set()

    def follow(happening: Happening) -> None:
        if isinstance(happening, Parked):
            assert happening.conversation not in away
            away.add(happening.conversation)
        elif isinstance(happening, Fetched):
            assert happening.conversation in away
            away.remove(happening.conversation)

    Server(model, plan, tell=follow, parking=Parking(CopyStore())).serve_all()
