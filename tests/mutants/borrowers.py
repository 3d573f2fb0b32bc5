"""Faults in how a client gives back, moves and offers memory as load changes."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_INFORMING = "tests/client/test_informing.py"
_PROMOTION = "tests/client/test_promotion.py"
_PACE = "tests/client/test_promotion_pace.py"
_ENLARGING = "tests/client/test_enlarging.py"
_FRAMED = "tests/client/test_framed_calls.py"

BORROWERS = (
    Mutant(
        name="a long revoke holds up a short one",
        path="aqua_client/worker.py",
        old="if has_copied and self._tiers.revokes_heard != self._revokes_heard:",
        new="if False:",
        tests=(
            "tests/client/test_revokes.py::test_what_has_less_time_does_not_wait_for_what_has_more",
        ),
    ),
    Mutant(
        name="the cheapest goes before what has less time",
        path="aqua_client/worker.py",
        old="key=lambda slab: (slab.deadline, slab.copy_bytes)",
        new="key=lambda slab: slab.copy_bytes",
        tests=(
            "tests/client/test_revokes.py::test_what_has_less_time_does_not_wait_for_what_has_more",
        ),
    ),
    Mutant(
        name="an engine offers what it had for a moment",
        path="aqua_client/informing/margins.py",
        old="if now - self._since < self._margins.settle_seconds:",
        new="if False:",
        tests=(f"{_INFORMING}::test_a_calm_engine_offers_its_spare_kv_memory",),
    ),
    Mutant(
        name="promotion does not yield to a fetch",
        path="aqua_client/promotion.py",
        old="if began - self._tiers.fetched_at < QUIET_SECONDS and began < self._yields_until:",
        new="if False:",
        tests=(f"{_PACE}::test_it_waits_for_fetches_but_not_for_ever",),
    ),
    Mutant(
        name="promotion has all of the time",
        path="aqua_client/promotion.py",
        old="(SHARE - 1) * (now - began)",
        new="0.0 * (now - began)",
        tests=(f"{_PACE}::test_it_takes_its_share_of_the_time_at_most",),
    ),
    Mutant(
        name="all is promoted in one step",
        path="aqua_client/promotion.py",
        old="while moved_bytes < STEP_BYTES:",
        new="while True:",
        tests=(f"{_PACE}::test_it_takes_its_share_of_the_time_at_most",),
    ),
    Mutant(
        name="a revoke waits for all that is promoted",
        path="aqua_client/promotion.py",
        old="found = None if self._tiers.has_changed else self._next()",
        new="found = self._next()",
        tests=(f"{_PACE}::test_news_ends_a_step",),
    ),
    Mutant(
        name="what is being written is promoted",
        path="aqua_client/promotion.py",
        old="return not (place.is_writing or place.is_retired) and",
        new="return not place.is_retired and",
        tests=(f"{_PACE}::test_what_is_still_being_written_waits",),
    ),
    Mutant(
        name="who was refused asks at once",
        path="aqua_client/promotion.py",
        old="self._asks_at = time.monotonic() + self._pause",
        new="self._asks_at = 0.0",
        tests=(f"{_PACE}::test_until_then_it_does_not_ask",),
    ),
    Mutant(
        name="a reclaim is followed by an offer at once",
        path="aqua_client/informing/margins.py",
        old="        self.disturb()\n        kept_bytes",
        new="        kept_bytes",
        tests=(f"{_INFORMING}::test_after_a_reclaim_it_has_to_settle_anew",),
    ),
    Mutant(
        name="the coldest is promoted first",
        path="aqua_client/promotion.py",
        old="key=lambda one: one.stored.used_at",
        new="key=lambda one: -one.stored.used_at",
        tests=(f"{_PROMOTION}::test_what_was_fetched_last_comes_first",),
    ),
    Mutant(
        name="a revoke does not cancel a promotion",
        path="aqua_client/promotion.py",
        old="if target.slab is None or target.slab.is_fenced:",
        new="if target.slab is None:",
        tests=(f"{_PROMOTION}::test_a_revoke_cancels_it",),
    ),
    Mutant(
        name="whoever tells of a slab waits for the answer",
        path="aqua_client/framed_calls.py",
        old="seconds, lambda: True)",
        new="seconds, lambda: number not in self._out)",
        tests=(f"{_FRAMED}::test_nobody_waits_for_the_answer_to_what_is_only_told",),
    ),
    Mutant(
        name="a no to what was told is heard by nobody",
        path="aqua_client/framed_calls.py",
        old="        self._out[number] = hear\n",
        new="",
        tests=(f"{_FRAMED}::test_a_no_to_what_is_only_told_is_counted_when_it_comes",),
    ),
    Mutant(
        name="slabs get their huge pages beside a fetch",
        path="aqua_client/enlarging.py",
        old="max(tiers.fetched_at, *(",
        new="max(0.0, *(",
        tests=(f"{_ENLARGING}::test_nothing_is_asked_for_beside_anything_else",),
    ),
    Mutant(
        name="a revoke waits for all huge pages",
        path="aqua_client/enlarging.py",
        old="is_wanted = tiers.has_changed or tiers.garbage",
        new="is_wanted = tiers.garbage",
        tests=(f"{_ENLARGING}::test_a_revoke_waits_for_no_more_than_one",),
    ),
    Mutant(
        name="a slab's addresses stay reserved",
        path="aqua_client/mapping.py",
        old="if libc.munmap(self._reserved, self._nbytes + _HUGE_PAGE_BYTES):",
        new="if libc.munmap(self._address, self._nbytes):",
        tests=(
            f"{_ENLARGING}::test_a_slab_lies_where_huge_pages_can_and_gives_its_addresses_back",
        ),
    ),
)
