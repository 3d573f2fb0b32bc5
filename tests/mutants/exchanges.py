"""Faults of exchanges: leases that are given for others which were revoked."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

EXCHANGES = (
    Mutant(
        name="fewer bytes come than were asked back",
        path="aqua_daemon/core/exchanging.py",
        old="if offered_bytes < wanted_bytes:",
        new="if False:",
        tests=("tests/core/test_exchanging.py::test_fewer_bytes_are_refused_with_both_figures",),
    ),
    Mutant(
        name="an exchange buys time",
        path="aqua_daemon/core/exchanging.py",
        old="Move.EXCHANGED, revocation=revocation)",
        new="Move.EXCHANGED, revocation=replace(revocation, deadline=revocation.deadline + 1))",
        tests=(
            "tests/simulation/test_exchanges.py::test_holders_that_offer_other_leases_break_no_promise",
        ),
    ),
    Mutant(
        name="others are taken too late to be evacuated",
        path="aqua_daemon/core/exchanging.py",
        old="if late_seconds > 0:",
        new="if False:",
        tests=(
            "tests/core/test_exchanging.py::test_the_second_half_of_a_revokes_time_is_for_evacuating",
        ),
    ),
    Mutant(
        name="a reclaim waits for what was spared",
        path="aqua_daemon/core/exchanging.py",
        old="    _owe_instead(turn, spared, revoked)\n",
        new="",
        tests=(
            "tests/core/test_exchanging.py::test_the_owner_gets_its_bytes_of_what_came_instead",
        ),
    ),
    Mutant(
        name="what comes instead is never quarantined",
        path="aqua_daemon/core/exchanging.py",
        old="turn.books.lease_timers.push(revocation.deadline, lease.lease_id)",
        new="pass",
        tests=(
            "tests/simulation/test_exchanges.py::test_holders_that_offer_other_leases_break_no_promise",
        ),
    ),
    Mutant(
        name="what comes instead is told in the answer alone",
        path="aqua_daemon/core/exchanging.py",
        old="    send_revokes(turn, revoked)",
        new="    pass",
        tests=(
            "tests/core/test_exchanging.py::test_other_leases_of_the_same_size_come_instead_with_the_same_deadline",
        ),
    ),
    Mutant(
        name="a spared lease keeps its deadline",
        path="aqua_daemon/core/turn.py",
        old="None if is_spared else revocation or lease.revocation",
        new="revocation or lease.revocation",
        tests=(
            "tests/core/test_exchanging.py::test_other_leases_of_the_same_size_come_instead_with_the_same_deadline",
        ),
    ),
    Mutant(
        name="what is asked for again meanwhile is kept",
        path="aqua_client/exchanging.py",
        old="if slab.notice is None and slab.fence_reason == notice.reason:",
        new="if slab.fence_reason == notice.reason:",
        tests=(
            "tests/client/test_exchanging.py::test_what_is_asked_for_again_meanwhile_is_not_kept",
        ),
    ),
    Mutant(
        name="what is offered is filled meanwhile",
        path="aqua_client/exchanging.py",
        old="                self._tiers.fence(slab, OFFERED)",
        new="                slab.fence_reason = OFFERED",
        tests=("tests/client/test_exchanging.py::test_nothing_comes_into_what_is_offered",),
    ),
    Mutant(
        name="what was refused stays fenced",
        path="aqua_client/exchanging.py",
        old="                    self._tiers.unfence(slab)\n\n    def _taken",
        new="                    pass\n\n    def _taken",
        tests=(
            "tests/client/test_exchanging.py::test_a_refusal_ends_it_and_the_empty_slab_is_of_use_again",
        ),
    ),
    Mutant(
        name="more cache is dropped than is saved",
        path="aqua_client/swapping.py",
        old="if given and dropped_bytes < slab.copy_bytes:",
        new="if given and slab.copy_bytes:",
        tests=(
            "tests/client/test_swapping.py::test_what_saves_nothing_or_is_no_use_to_the_owner_is_not_offered",
        ),
    ),
)
