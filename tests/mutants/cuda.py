"""Faults of the keeper's and the client's doors to CUDA and NVML, found on the made-up driver."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_DOOR = "tests/cuda/client_door"
_KEEPER = "tests/cuda/test_cuda_keeper.py"
_WITH_NVML = "tests/cuda/test_keeper_and_nvml.py"
_REFUSALS = "tests/cuda/test_nvml_refusals.py"
_INVENTORY = "tests/cuda/test_nvml_inventory.py"

CUDA = (
    Mutant(
        name="the keeper's process id is not looked at",
        path="aqua_client/opening.py",
        old="if grant.keeper_pid == os.getpid():",
        new="if False:",
        tests=(f"{_DOOR}/test_failures.py::test_what_is_not_the_slab_granted_is_refused",),
    ),
    Mutant(
        name="a CUDA slab's canary is believed",
        path="aqua_client/cuda_mapping.py",
        old="            return read_bytes(self._live().address, nbytes)\n",
        new="            return bytes(nbytes)\n",
        tests=(f"{_DOOR}/test_opening.py::test_bytes_go_both_ways",),
    ),
    Mutant(
        name="the same lease is opened twice",
        path="aqua_client/cuda_mapping.py",
        old="opened = _table.get(key)",
        new="opened = None",
        tests=(f"{_DOOR}/test_opening.py::test_the_same_lease_is_opened_once",),
    ),
    Mutant(
        name="a slab is opened on the first GPU",
        path="aqua_client/opening.py",
        old="ordinal = own_device.own_ordinal(home_gpu)",
        new="ordinal = own_device.own_ordinal(home_gpu) and 0",
        tests=(f"{_DOOR}/test_opening.py::test_it_is_opened_on_the_clients_own_gpu_alone",),
    ),
    Mutant(
        name="an opened slab keeps its physical handle",
        path="aqua_client/cuda_mapping.py",
        old='release.callback(call, "cuMemRelease", memory)',
        new="release.callback(int, memory)",
        tests=(f"{_DOOR}/test_opening.py::test_two_hundred_cycles_leave_nothing",),
    ),
    Mutant(
        name="copies count as over when they are enqueued",
        path="aqua_client/in_flight.py",
        old="return flight.event.is_done()",
        new="return True",
        tests=(
            "tests/client/test_streams.py::test_a_release_frees_nothing_before_the_copy_is_over",
        ),
    ),
    Mutant(
        name="an offload goes into a graph",
        path="aqua_client/enqueuing.py",
        old="    pager.check_not_forked()\n    streams.check_not_capturing()\n",
        new="    pager.check_not_forked()\n",
        tests=(
            "tests/client/test_streams.py::test_nothing_is_enqueued_on_a_stream_that_is_captured",
        ),
    ),
    Mutant(
        name="the library's calls end others' captures",
        path="aqua_client/cuda_driver.py",
        old="        with relaxed_capture():\n            yield\n",
        new="        yield\n",
        tests=(f"{_DOOR}/test_captures.py::test_a_slab_is_opened_read_and_closed",),
    ),
    Mutant(
        name="an event is asked as anybody would",
        path="aqua_client/cuda_driver.py",
        old="    with relaxed_capture():\n        code = bindings",
        new="    if bindings:\n        code = bindings",
        tests=(f"{_DOOR}/test_captures.py::test_the_end_of_a_copy_is_asked_for",),
    ),
    Mutant(
        name="a scrub is one piece",
        path="aqua_daemon/keeper/cuda_driver.py",
        old="_PIECE_BYTES = 64 * 2**20",
        new="_PIECE_BYTES = 2**40",
        tests=("tests/cuda/test_cuda_driver.py::test_a_scrub_is_done_in_pieces",),
    ),
    Mutant(
        name="a scrub is not verified",
        path="aqua_daemon/keeper/cuda_memory.py",
        old="if any(self.device.read(address + offset, _SAMPLE_BYTES)):",
        new="if False:",
        tests=(f"{_KEEPER}::test_memory_that_is_not_clean_is_given_to_nobody",),
    ),
    Mutant(
        name="a keeper is a client of MPS",
        path="aqua_daemon/keeper/cuda_driver.py",
        old='            os.putenv("CUDA_MPS_PIPE_DIRECTORY", str(no_mps))\n',
        new="",
        tests=("tests/cuda/test_cuda_driver.py::test_it_never_becomes_a_client_of_mps",),
    ),
    Mutant(
        name="what is freed while mapped is free",
        path="aqua_daemon/keeper/cuda_gpu.py",
        old="if risen_bytes >= memory.nbytes // 2:",
        new="if True:",
        tests=(f"{_KEEPER}::test_what_is_freed_while_mapped_is_never_counted_as_free",),
    ),
    Mutant(
        name="a broken context is not seen",
        path="aqua_daemon/keeper/cuda_gpu.py",
        old="self._health.looked(self._device.ailment(), is_lost=self.reader.is_lost)",
        new="self._health.looked(None, is_lost=False)",
        tests=(f"{_WITH_NVML}::test_a_gpu_that_disappears_ends_its_keeper_with_the_reason",),
    ),
    Mutant(
        name="a GPU that may not be lent gets a context",
        path="aqua_daemon/keeper/cuda_gpu.py",
        old="elif not self._gpu_trouble() and time.monotonic() >= self._open_again_at:",
        new="elif time.monotonic() >= self._open_again_at:",
        tests=(f"{_WITH_NVML}::test_a_refused_gpu_gets_no_context_until_it_may_be_lent",),
    ),
    Mutant(
        name="old figures of NVML are believed",
        path="aqua_daemon/keeper/cuda_gpu.py",
        old="if age_seconds > STALE_SECONDS:",
        new="if False:",
        tests=(f"{_WITH_NVML}::test_a_stalled_nvml_holds_nothing_up_and_stops_lending",),
    ),
    Mutant(
        name="a GPU cut by MIG is lent",
        path="aqua_daemon/keeper/inventory.py",
        old="if reading.has_mig:",
        new="if False:",
        tests=(f"{_REFUSALS}::test_a_gpu_cut_by_mig_is_refused_and_its_neighbours_are_not",),
    ),
    Mutant(
        name="a GPU in exclusive mode is lent",
        path="aqua_daemon/keeper/inventory.py",
        old='if reading.compute_mode != "DEFAULT":',
        new="if False:",
        tests=(f"{_REFUSALS}::test_a_compute_mode_that_keeps_others_out_is_refused",),
    ),
    Mutant(
        name="a GPU where strangers share MPS is lent",
        path="aqua_daemon/keeper/inventory.py",
        old="if users is not None and (len(users) > 1 or None in users):",
        new="if False:",
        tests=(f"{_REFUSALS}::test_an_mps_server_of_several_users_is_refused",),
    ),
    Mutant(
        name="nobody is warned that ECC is off",
        path="aqua_daemon/keeper/inventory.py",
        old="if reading.has_ecc is False:",
        new="if False:",
        tests=(f"{_REFUSALS}::test_ecc_off_and_heat_are_warned_of",),
    ),
    Mutant(
        name="links to a switch are not counted",
        path="aqua_daemon/keeper/nvml.py",
        old="to_switch += 1",
        new="to_switch += 0",
        tests=(f"{_INVENTORY}::test_every_pair_of_a_recorded_node_is_linked_as_it_was",),
    ),
    Mutant(
        name="peer access is taken for granted",
        path="aqua_daemon/keeper/nvml.py",
        old="return bool(status == self._nvml.NVML_P2P_STATUS_OK)",
        new="return bool(status is not None or self._nvml)",
        tests=(f"{_INVENTORY}::test_peer_access_is_told_pair_by_pair",),
    ),
    Mutant(
        name="what throttles a GPU is not read",
        path="aqua_daemon/keeper/nvml.py",
        old="if reasons & bit)",
        new="if not reasons)",
        tests=(f"{_INVENTORY}::test_a_reading_has_what_all_use",),
    ),
)
