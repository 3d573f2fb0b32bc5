"""Faults of fair scheduling: each breaks one of its promises."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_PROPERTIES = "tests/client/scheduling/test_properties.py"
_PACKING = "aqua_client/scheduling/packing.py"

SCHEDULING = (
    Mutant(
        name="newcomers may have the whole cache",
        path=_PACKING,
        old="share = self._settings.newcomer_share",
        new="share = 1.0",
        tests=(f"{_PROPERTIES}::test_nobody_starves_however_many_come",),
    ),
    Mutant(
        name="small ones pass who does not fit",
        path=_PACKING,
        old="                break\n            given",
        new="                continue\n            given",
        tests=(f"{_PROPERTIES}::test_small_ones_do_not_pass_a_large_one_for_ever",),
    ),
    Mutant(
        name="a resident without a slice idles",
        path=_PACKING,
        old="        for request in losers:\n            claim",
        new="        for request in losers[:0]:\n            claim",
        tests=(f"{_PROPERTIES}::test_who_is_in_the_cache_computes",),
    ),
    Mutant(
        name="prompts queue in the cache",
        path=_PACKING,
        old="if request.request_id in given or self._would_only_queue(request):",
        new="if request.request_id in given:",
        tests=(f"{_PROPERTIES}::test_a_burst_pushes_nobody_out_before_it_is_read",),
    ),
    Mutant(
        name="a newcomer catches up",
        path="aqua_client/scheduling/fair.py",
        old="0.0 if self._settings.order is Order.LEAST_SERVED else self._floor",
        new="0.0",
        tests=(f"{_PROPERTIES}::test_a_newcomer_starts_where_the_others_are",),
    ),
    Mutant(
        name="a weight is ignored",
        path="aqua_client/scheduling/requests.py",
        old="given / self.weight",
        new="given",
        tests=(f"{_PROPERTIES}::test_a_weight_is_a_share",),
    ),
    Mutant(
        name="a swap counts for one",
        path="aqua_client/scheduling/slices.py",
        old=" * max(1, self._residents)",
        new="",
        tests=(f"{_PROPERTIES}::test_swaps_cost_no_more_than_their_share",),
    ),
    Mutant(
        name="blocks are kept for whole slices",
        path=_PACKING,
        old="sure = min(iterations, self._settings.slice_iterations)",
        new="sure = iterations",
        tests=(f"{_PROPERTIES}::test_a_long_slice_keeps_no_blocks_empty",),
    ),
    Mutant(
        name="a slice that ends early is forgotten",
        path="aqua_client/scheduling/slices.py",
        old=" + request.owed_iterations",
        new="",
        tests=(f"{_PROPERTIES}::test_swaps_cost_no_more_than_their_share",),
    ),
    Mutant(
        name="short prompts hold up long ones",
        path="aqua_client/scheduling/chunks.py",
        old="kept = min(oldest.missing_tokens, left - int(newcomer_share * left))",
        new="kept = 0",
        tests=(f"{_PROPERTIES}::test_a_long_prompt_is_read_however_many_short_ones_come",),
    ),
    Mutant(
        name="an idle hour is slow",
        path="aqua_client/scheduling/turnover.py",
        old=" and is_full and",
        new=" and",
        tests=(
            "tests/client/scheduling/test_admission.py::test_an_idle_hour_says_nothing_of_the_pace",
        ),
    ),
)
