"""Faults of what serves in fair slices and parks for it, beside those of `scheduling`."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_FAIR = "tests/client/scheduling/test_fair.py"
_PROPERTIES = "tests/client/scheduling/test_properties.py"
_ADMISSION = "tests/client/scheduling/test_admission.py"
_MODEL = "tests/benchmarks/serving_model/test_serving_model.py"
_PAGING = "tests/integrations/transformers/test_paging.py"
_TURNS = "tests/integrations/transformers/test_fair.py"
_MODULES = "tests/integrations/test_modules.py"
_ADAPTERS = "tests/integrations/test_adapters.py"
_PACKING = "aqua_client/scheduling/packing.py"

_POLICY = (
    Mutant(
        name="a batch reads whatever fits into the cache",
        path=_PACKING,
        old="self._readable = room.kv_tokens",
        new="self._readable = 2**40",
        tests=(f"{_PROPERTIES}::test_a_newcomer_has_its_first_token_within_a_slice",),
    ),
    Mutant(
        name="a rush has whole slices",
        path=_PACKING,
        old="if self._is_rush and not request.has_had_slice:",
        new="if False:",
        tests=(f"{_PROPERTIES}::test_a_rush_has_its_first_tokens_sooner_and_ends_as_soon",),
    ),
    Mutant(
        name="whoever is larger than the newcomers' share is a rush",
        path=_PACKING,
        old="return len(waiting) > 1",
        new="return True",
        tests=(f"{_PROPERTIES}::test_newcomers_have_whole_slices_unless_they_are_too_many",),
    ),
    Mutant(
        name="newcomers may read all that a batch can",
        path=_PACKING,
        old="                or self._newcomer_tokens + claim > share * self._room.kv_tokens\n",
        new="",
        tests=(f"{_PROPERTIES}::test_nobody_starves_however_many_come",),
    ),
    Mutant(
        name="prompts are read in the order of the batch",
        path="aqua_client/scheduling/chunks.py",
        old="prefilling = sorted((one for one in running if one.is_prefilling), key=_progress)",
        new="prefilling = [one for one in running if one.is_prefilling]",
        tests=(f"{_FAIR}::test_decodes_come_first_and_prefills_share_what_is_left",),
    ),
    Mutant(
        name="age is no advance",
        path="aqua_client/scheduling/ranks.py",
        old="request.virtual_tokens + aged",
        new="request.virtual_tokens",
        tests=(f"{_PROPERTIES}::test_age_is_an_advance",),
    ),
    Mutant(
        name="a newcomer's slice is as long as a swap is dear",
        path="aqua_client/scheduling/slices.py",
        old=" or not request.has_had_slice:",
        new=":",
        tests=(f"{_PROPERTIES}::test_a_newcomers_slice_is_the_shortest_however_dear_a_swap",),
    ),
    Mutant(
        name="a swap that no slice pays for is cheap",
        path="aqua_client/scheduling/slices.py",
        old="if growth >= 1 or needed / (1 - growth) >= longest:",
        new="if False:",
        tests=(f"{_PROPERTIES}::test_a_swap_that_no_slice_pays_for_has_the_longest_slice",),
    ),
    Mutant(
        name="one more gives way than must",
        path=_PACKING,
        old="while losers and free < 0:",
        new="while losers and free < 1:",
        tests=(f"{_FAIR}::test_nobody_goes_whose_blocks_nobody_needs",),
    ),
    Mutant(
        name="the last is brought near first",
        path=_PACKING,
        old="parked = (one for _, one in self._waiting.parked if one.is_parked)",
        new="parked = reversed([one for _, one in self._waiting.parked if one.is_parked])",
        tests=(f"{_FAIR}::test_those_who_come_next_are_named_in_order",),
    ),
    Mutant(
        name="who is refused may ask again at once",
        path="aqua_client/scheduling/fair.py",
        old="max(SOONEST_RETRY_SECONDS, late)",
        new="SOONEST_RETRY_SECONDS",
        tests=(f"{_ADMISSION}::test_what_is_refused_comes_back_in_time",),
    ),
    Mutant(
        name="an engine with room refuses",
        path="aqua_client/scheduling/fair.py",
        old="if late <= 0 or not self._is_full:",
        new="if late <= 0:",
        tests=(f"{_ADMISSION}::test_once_nobody_waits_any_more_everybody_is_taken",),
    ),
    Mutant(
        name="what can never fit is taken",
        path="aqua_client/scheduling/fair.py",
        old="self._settings.blocks(prompt_tokens) > self._cache_blocks",
        new="False",
        tests=(f"{_ADMISSION}::test_what_never_fits_is_refused_for_good",),
    ),
    Mutant(
        name="what is written through is copied again",
        path="aqua_client/scheduling/swaps.py",
        old="return kv_tokens % block_tokens if self.writes_through else kv_tokens",
        new="return kv_tokens",
        tests=(f"{_MODEL}::test_write_through_leaves_the_last_block_to_copy",),
    ),
)

_PARKING = (
    Mutant(
        name="who has just come back is written ahead before the engine has looked for its blocks",
        path="aqua_client/integrations/transformers/paging.py",
        old="self._writer is not None and scheduled.state.request_id not in self._just_back",
        new="self._writer is not None",
        tests=(f"{_TURNS}::test_forks_and_shared_prefixes_take_turns",),
    ),
    Mutant(
        name="slices know nothing of the swaps that were measured",
        path="aqua_client/integrations/transformers/fair.py",
        old="swap=self._paging.swap())",
        new="swap=None)",
        tests=(f"{_TURNS}::test_everybody_is_answered_right_while_taking_turns",),
    ),
    Mutant(
        name="an engine's queue is not reported",
        path="aqua_client/integrations/transformers/lending.py",
        old="pending_requests=waiting,",
        new="pending_requests=0,",
        tests=("tests/integrations/transformers/test_lending.py::test_who_waits_is_reported",),
    ),
    Mutant(
        name="each request that is computed again is told of",
        path="aqua_client/integrations/transformers/telling.py",
        old="if now - self._since >= EVERY_SECONDS:",
        new="if True:",
        tests=(f"{_PAGING}::test_a_node_without_room_is_told_of_once_a_minute",),
    ),
    Mutant(
        name="an immutable module is copied out each time",
        path="aqua_client/integrations/modules/blocks.py",
        old="            if self._immutable:\n                self._marks",
        new="            if False:\n                self._marks",
        tests=(f"{_MODULES}::test_an_immutable_module_is_copied_out_once",),
    ),
    Mutant(
        name="a step finds parameters empty",
        path="aqua_client/integrations/modules/waking.py",
        old='    resume_all(blocks_of(one for group in optimizer.param_groups for one in group["params"]))',
        new="    pass",
        tests=(f"{_MODULES}::test_training_with_a_park_after_each_step_is_bitwise_the_same",),
    ),
    Mutant(
        name="the adapter that came first goes first",
        path="aqua_client/integrations/adapters/pool.py",
        old="            self._here.move_to_end(name)\n",
        new="",
        tests=(f"{_ADAPTERS}::test_each_adapter_answers_as_without_a_pool",),
    ),
)

SERVING = (*_POLICY, *_PARKING)
