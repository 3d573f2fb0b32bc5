"""Faults of copies, of links and of what is said of them, found on stand-ins and the made-up driver."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_ENGINE = "tests/cuda/test_copy_engine.py"
_WAYS = "tests/cuda/test_copy_ways.py"
_TIMED = "tests/cuda/test_timed_fetches.py"
_STREAMS = "tests/client/test_streams.py"
_MEASURED = "tests/core/test_measured_links.py"
_SLOW = "tests/core/test_slow_links.py"
_PROBING = "tests/core/test_probing.py"
_DOCTOR = "tests/ctl/test_doctor_checks.py"

LINKS = (
    Mutant(
        name="what goes and what comes share a stream",
        path="aqua_client/cuda_streams.py",
        old='"in" if inward else "out"',
        new='"out"',
        tests=(f"{_ENGINE}::test_what_goes_and_what_comes_have_a_stream_each",),
    ),
    Mutant(
        name="a side stream waits for nobody",
        path="aqua_client/cuda_streams.py",
        old="            self._recorded(ordinal, self._torch.current(ordinal)).wait_on(ordinal, side)\n",
        new="            self._recorded(ordinal, self._torch.current(ordinal))\n",
        tests=(f"{_ENGINE}::test_a_side_stream_waits_for_the_caller_s",),
    ),
    Mutant(
        name="a source is given away under its copy",
        path="aqua_client/cuda_streams.py",
        old="                self._torch.keep(tensor, ordinal, side)\n",
        new="                pass\n",
        tests=(f"{_ENGINE}::test_what_goes_and_what_comes_have_a_stream_each",),
    ),
    Mutant(
        name="a fetch does not come after its offload",
        path="aqua_client/enqueuing.py",
        old="        return\n    written.wait_on_current_stream()\n",
        new="        return\n",
        tests=(f"{_STREAMS}::test_a_fetch_comes_after_the_writing_on_whatever_stream",),
    ),
    Mutant(
        name="pinned memory has no bound",
        path="aqua_client/evacuation_buffer.py",
        old="min(host.evacuation_bytes + ahead, most - used)",
        new="host.evacuation_bytes + ahead",
        tests=("tests/cuda/test_pinned.py::test_what_is_pinned_is_bounded",),
    ),
    Mutant(
        name="pinned memory lies anywhere",
        path="aqua_client/pinned.py",
        old="cuda_driver.numa_node(ordinal))",
        new="None)",
        tests=("tests/cuda/test_pinned.py::test_it_lies_on_the_numa_node_of_its_gpu",),
    ),
    Mutant(
        name="what a failed batch has begun is forgotten",
        path="aqua_client/cuda_streams.py",
        old="                self._come_after(ordinal, stream, current)\n",
        new="                pass\n",
        tests=(f"{_WAYS}::test_what_a_failed_batch_has_begun_is_waited_for",),
    ),
    Mutant(
        name="the first of many chooses the way",
        path="aqua_client/cuda_streams.py",
        old="mean_bytes = sum_of_bytes(pieces) // len(pieces)",
        new="mean_bytes = int(pieces[0][2])",
        tests=(f"{_WAYS}::test_tensors_of_different_sizes_go_as_the_mean_of_them",),
    ),
    Mutant(
        name="a way that gives other bytes is taken",
        path="aqua_client/calibrating.py",
        old="if self._is_right(cache, ids, span, out, back):",
        new="if True:",
        tests=(f"{_WAYS}::test_a_way_that_is_refused_or_wrong_is_in_no_table",),
    ),
    Mutant(
        name="a client that closes measures on",
        path="aqua_client/calibrating.py",
        old="        if self._pager.is_closed:\n",
        new="        if False:\n",
        tests=(f"{_WAYS}::test_a_client_that_closes_waits_for_no_measurement",),
    ),
    Mutant(
        name="an event that can't be recorded is over",
        path="aqua_client/cuda_streams.py",
        old='            _wait_for(ordinal, stream)\n            logger.warning("a',
        new='            logger.warning("a',
        tests=(f"{_ENGINE}::test_a_copy_whose_end_cant_be_recorded_is_waited_for",),
    ),
    Mutant(
        name="fetches on CUDA say nothing of links",
        path="aqua_client/tiers.py",
        old="            self.counters.count_link(slab.lender_gpu, nbytes, nanoseconds)\n",
        new="            pass\n",
        tests=(f"{_TIMED}::test_slow_fetches_move_a_lender_back",),
    ),
    Mutant(
        name="the faster direction counts",
        path="aqua_daemon/core/scores.py",
        old="min(found, self._narrower.get(ends, found))",
        new="max(found, self._narrower.get(ends, found))",
        tests=(f"{_MEASURED}::test_the_slower_direction_counts",),
    ),
    Mutant(
        name="links are their sums' parts",
        path="aqua_daemon/core/links.py",
        old="return min(worth, total / borrowers)",
        new="return worth",
        tests=(f"{_MEASURED}::test_sums_far_below_their_parts_are_shared_by_all_who_borrow",),
    ),
    Mutant(
        name="links that are never measured are not known",
        path="aqua_daemon/core/rating.py",
        old="        if to_lender is not None:\n            lender.egress",
        new="        if False:\n            lender.egress",
        tests=(
            "tests/core/test_links.py::test_of_lenders_that_were_never_measured_the_shared_one_lends_later",
        ),
    ),
    Mutant(
        name="slow is from 1.3 times on",
        path="aqua_daemon/core/scores.py",
        old="if one * SLOW_FACTOR <= middle",
        new="if one * 1.3 <= middle",
        tests=(f"{_SLOW}::test_a_link_is_slow_from_1_2_times_on",),
    ),
    Mutant(
        name="each link of a slow GPU is named",
        path="aqua_daemon/core/scores.py",
        old="left_out = {HOST, EVERY, *self.slow_gpus}",
        new="left_out = {HOST, EVERY}",
        tests=(f"{_SLOW}::test_a_slow_gpu_among_many_does_not_make_its_peers_links_slow",),
    ),
    Mutant(
        name="latency is bandwidth",
        path="aqua_daemon/core/link_figures.py",
        old="bytes_per_second = (large.nbytes - small.nbytes) / more_seconds",
        new="bytes_per_second = large.nbytes / large.seconds",
        tests=(f"{_PROBING}::test_two_sizes_tell_latency_and_bandwidth",),
    ),
    Mutant(
        name="what nobody offered is measured with",
        path="aqua_daemon/core/probing.py",
        old="account.policy is OFFERED and not account.offers",
        new="account.policy is NEVER",
        tests=(f"{_PROBING}::test_memory_that_nobody_offered_is_not_measured_with",),
    ),
    Mutant(
        name="a producer's limit is none for measurements",
        path="aqua_daemon/core/probing.py",
        old="if offered < nbytes:",
        new="if False:",
        tests=(f"{_PROBING}::test_a_measurement_takes_no_more_than_a_producer_lends",),
    ),
    Mutant(
        name="the first use of a link is measured",
        path="aqua_daemon/keeper/probing.py",
        old="    copying(source, target, nbytes)  # what",
        new="    pass  # what",
        tests=(
            "tests/keeper/test_probing.py::test_what_the_first_use_of_a_link_costs_is_no_part_of_its_figure",
        ),
    ),
    Mutant(
        name="what was offered to a reader that is gone is kept",
        path="aqua_daemon/keeper/probing.py",
        old="        self._loop.add_reader(end, self._end_offer, end)\n",
        new="",
        tests=(
            "tests/cuda/test_link_probes.py::test_what_is_offered_counts_as_used_until_its_reader_is_gone",
        ),
    ),
    Mutant(
        name="doctor sees no link that is down",
        path="aqua_daemon/ctl/doctor/link_checks.py",
        old="if gpu.nvlinks < most[gpu.model]]",
        new="if gpu.nvlinks < 0]",
        tests=(
            "tests/ctl/test_doctor_nvidia.py::test_links_that_are_down_and_a_fabric_that_is_not_there_are_said",
        ),
    ),
    Mutant(
        name="doctor misses no device node",
        path="aqua_daemon/ctl/doctor/gpu_checks.py",
        old="[path for path in needed if path not in there]",
        new="[path for path in needed if not there]",
        tests=(f"{_DOCTOR}::test_what_is_found_is_judged_and_remedied",),
    ),
    Mutant(
        name="doctor takes any PID namespace for the host's",
        path="aqua_daemon/ctl/doctor/place_checks.py",
        old="if place.is_hosts_pid is False and machine.nvidia.driver:",
        new="if False:",
        tests=(f"{_DOCTOR}::test_what_is_found_is_judged_and_remedied",),
    ),
    Mutant(
        name="a fetch is timed from its end",
        path="aqua_client/timing.py",
        old="        if not is_enqueued:\n",
        new="        begin()\n        if not is_enqueued:\n",
        tests=(f"{_TIMED}::test_what_a_fetch_took_is_what_its_device_says",),
    ),
    Mutant(
        name="what comes from several lenders is timed as if from one",
        path="aqua_client/timing.py",
        old="if len(lenders) == 1 else None",
        new="if lenders else None",
        tests=(f"{_TIMED}::test_what_comes_from_several_lenders_is_not_timed",),
    ),
    Mutant(
        name="what is fetched together counts with each piece",
        path="aqua_client/transfers.py",
        old="    ends = [enqueuing.end(streams, device, one) for device, one in pairs[:-1]]\n",
        new="    ends = [enqueuing.end(streams, device, one, since=since) for device, one in pairs[:-1]]\n",
        tests=(f"{_TIMED}::test_what_is_fetched_together_is_timed_as_one",),
    ),
    Mutant(
        name="pages that a device may still write are given back",
        path="aqua_client/pinned.py",
        old="                if error.name not in CONTEXT_GONE:\n                    raise\n",
        new="                pass\n",
        tests=("tests/cuda/test_pinned.py::test_what_the_driver_does_not_unpin_stays_where_it_is",),
    ),
    Mutant(
        name="links at once need memory for one",
        path="aqua_daemon/core/probing.py",
        old="uses * nbytes",
        new="nbytes",
        tests=(f"{_PROBING}::test_links_of_one_gpu_at_once_need_memory_for_each",),
    ),
    Mutant(
        name="links at once are promised memory for one",
        path="aqua_daemon/core/probing.py",
        old=".probe_bytes += nbytes",
        new=".probe_bytes = nbytes",
        tests=(f"{_PROBING}::test_links_of_one_gpu_at_once_need_memory_for_each",),
    ),
    Mutant(
        name="what was said of a link outlives its figure",
        path="aqua_daemon/core/scores.py",
        old="        self._used.pop(pair, None)  # that was beside another figure\n",
        new="",
        tests=(f"{_SLOW}::test_what_is_measured_anew_is_believed",),
    ),
    Mutant(
        name="a keeper measures any number of links at once",
        path="aqua_daemon/keeper/probing.py",
        old="if self._running >= MOST_AT_ONCE:",
        new="if False:",
        tests=(
            "tests/keeper/test_probing.py::test_no_more_links_are_measured_at_once_than_there_may_be",
        ),
    ),
)
