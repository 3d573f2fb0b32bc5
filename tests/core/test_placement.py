"""Which GPU is chosen, why, and what a refusal says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.model import GpuUuid
from aqua_daemon.core.placement import Lender, place
from aqua_daemon.core.sizes import MIB


def lender(
    name: str,
    lendable_mib: int,
    *,
    trouble: str = "",
    is_home: bool = False,
    leases_of_session: int = 0,
) -> Lender:
    return Lender(
        gpu=GpuUuid(name),
        lendable_bytes=lendable_mib * MIB,
        free_bytes=(lendable_mib + 38) * MIB,
        trouble=trouble,
        is_home=is_home,
        leases_of_session=leases_of_session,
    )


def choice(*lenders: Lender, nbytes: int = 32 * MIB, lend_to_own_gpu: bool = False) -> str:
    return place(lenders, nbytes=nbytes, lend_to_own_gpu=lend_to_own_gpu).gpu


def test_the_gpu_with_the_most_to_lend_is_chosen() -> None:
    """Later requests then find room everywhere."""
    assert choice(lender("A", 64), lender("B", 96), lender("C", 32)) == "B"


def test_the_first_of_equals_is_chosen() -> None:
    """The same books always give the same choice."""
    assert choice(lender("A", 64), lender("B", 64)) == "A"


def test_of_equals_one_where_the_session_borrows_already_is_chosen() -> None:
    """A fault of that GPU then costs the session no more than before."""
    assert choice(lender("A", 64), lender("B", 64, leases_of_session=3)) == "B"


def test_where_the_session_borrows_matters_only_between_equals() -> None:
    """Room comes first."""
    assert choice(lender("A", 66), lender("B", 64, leases_of_session=3)) == "A"


def reached(name: str, lendable_mib: int, *, egress: float, ingress: float) -> Lender:
    return replace(
        lender(name, lendable_mib),
        egress_bytes_per_second=egress,
        ingress_bytes_per_second=ingress,
    )


def test_the_narrower_end_decides_then_the_lender_that_is_shared_less_then_room() -> None:
    """What arrives is no more than what leaves there, nor than the borrower's own links take."""
    wide = reached("A", 64, egress=375.0, ingress=125.0)
    assert choice(wide, reached("B", 64, egress=187.0, ingress=187.0)) == "B"
    assert choice(wide, reached("B", 65, egress=125.0, ingress=375.0)) == "A"
    assert choice(wide, reached("B", 65, egress=375.0, ingress=125.0)) == "B"


def test_an_end_that_is_not_known_does_not_narrow_the_other() -> None:
    """A keeper that was not heard says nothing of its links."""
    assert (
        choice(
            reached("A", 64, egress=375.0, ingress=0.0),
            reached("B", 65, egress=187.0, ingress=375.0),
        )
        == "A"
    )


def test_the_home_gpu_is_never_chosen() -> None:
    """A session borrows because its own GPU is full."""
    assert choice(lender("A", 200, is_home=True), lender("B", 32)) == "B"


def test_the_home_gpu_is_chosen_when_the_daemon_lends_to_own_gpus() -> None:
    """What tests on one GPU do."""
    assert choice(lender("A", 200, is_home=True), lend_to_own_gpu=True) == "A"


def test_exactly_what_is_lendable_can_be_lent() -> None:
    """The bound itself is allowed."""
    assert choice(lender("A", 32)) == "A"


def test_the_choice_says_why() -> None:
    """A reason is for people who ask why a lease is where it is."""
    placement = place((lender("A", 64),), nbytes=MIB, lend_to_own_gpu=False)
    assert placement.reason == "64 MiB lendable, the most"


def test_a_refusal_says_what_each_gpu_lacked_and_what_to_do() -> None:
    """Three GPUs, three different reasons, and a remedy."""
    lenders = (
        lender("A", 200, is_home=True),
        lender("B", 0, trouble="the link to its keeper is broken"),
        lender("C", 12),
    )
    with pytest.raises(InsufficientMemory) as caught:
        place(lenders, nbytes=32 * MIB, lend_to_own_gpu=False)
    message = str(caught.value)
    assert "no GPU has 32 MiB" in message
    assert "A is the session's own" in message
    assert "B lends nothing, the link to its keeper is broken" in message
    assert "C has 12 MiB of 50 MiB free" in message
    assert "Use host memory" in message


def test_a_refusal_says_how_large_a_slab_may_be() -> None:
    """In whole granules, of a GPU that the session may borrow from: it need not be found by asking."""
    lenders = (
        lender("A", 200, is_home=True),
        replace(lender("B", 100), too_slow="B reaches it over PCIe"),
        lender("C", 12),
        replace(lender("D", 0), lendable_bytes=15 * MIB),
    )
    with pytest.raises(InsufficientMemory) as caught:
        place(lenders, nbytes=32 * MIB, lend_to_own_gpu=False)
    assert caught.value.largest_bytes == 14 * MIB
    with pytest.raises(InsufficientMemory) as caught:
        place(lenders[:2], nbytes=32 * MIB, lend_to_own_gpu=False)
    assert caught.value.largest_bytes == 0


def test_a_node_without_gpus_refuses() -> None:
    """Nothing to choose from is no special case for the caller."""
    with pytest.raises(InsufficientMemory, match="there is no GPU"):
        place((), nbytes=MIB, lend_to_own_gpu=False)
