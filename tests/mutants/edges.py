"""Faults of keepers and of the client library."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

EDGES = (
    Mutant(
        name="turns are slow beside a revoke",
        path="aqua_client/worker.py",
        old="QUICK_TURNS.wanted() if fenced else nullcontext()",
        new="nullcontext()",
        tests=("tests/client/test_quick_turns.py::test_a_revoke_is_such_a_time",),
    ),
    Mutant(
        name="a tag is written after the handle left",
        path="aqua_daemon/keeper/server.py",
        old="        slab = self._node.allocate(request, pidfd=pidfd, sentinel=sentinel)\n",
        new=(
            "        slab = self._node.allocate(request, pidfd=pidfd, sentinel=sentinel)\n"
            "        books, lease_id = self._node._gpus[request.gpu].slabs, request.tag.lease_id\n"
            "        self._loop.call_later(1.0, books.__setitem__, lease_id, books.pop(lease_id))\n"
        ),
        tests=(
            "tests/keeper/test_adoption.py::test_a_handle_never_leaves_before_its_tag_is_written",
        ),
    ),
    Mutant(
        name="the scrub is skipped",
        path="aqua_daemon/keeper/node.py",
        old="return slab.memory.scrub()",
        new="return slab.memory.nbytes",
        tests=(
            "tests/keeper/test_slabs.py::test_an_ex_tenant_that_kept_its_descriptor_sees_nothing",
        ),
    ),
    Mutant(
        name="the scrub removes nothing",
        path="aqua_daemon/keeper/shm_memory.py",
        old="mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE",
        new="mode = _FALLOC_FL_KEEP_SIZE",
        tests=("tests/keeper/test_shm_memory.py::test_a_scrub_removes_every_byte",),
    ),
    Mutant(
        name="a mapped slab is freed",
        path="aqua_daemon/keeper/node.py",
        old="if mapped is not Mapped.NO:",
        new="if False:",
        tests=("tests/keeper/test_slabs.py::test_a_free_of_a_mapped_slab_waits_and_loses_nothing",),
    ),
    Mutant(
        name="what is offered is freed under its reader",
        path="aqua_daemon/keeper/probing.py",
        old="        self._loop.add_reader(end, self._end_offer, end)\n",
        new=(
            "        self._loop.add_reader(end, self._end_offer, end)\n"
            "        self._loop.call_soon(memory.close)\n"
        ),
        tests=(
            "tests/cuda/test_link_probes.py::test_what_is_offered_counts_as_used_until_its_reader_is_gone",
        ),
    ),
    Mutant(
        name="the sentinel is ignored",
        path="aqua_daemon/keeper/proofs.py",
        old=" and _polls(self.sentinel, select.POLLHUP)",
        new="",
        tests=("tests/keeper/test_proofs.py::test_only_both_together_prove_that_a_holder_is_gone",),
    ),
    Mutant(
        name="the canary is not looked at",
        path="aqua_client/opening.py",
        old="if found != grant.canary:",
        new="if False:",
        tests=(
            "tests/client/test_copying.py::test_a_slab_that_is_not_what_was_granted_is_refused",
        ),
    ),
    Mutant(
        name="a fenced slab is filled again",
        path="aqua_client/tiers.py",
        old="slab.is_fenced = True",
        new="slab.is_fenced = False",
        tests=("tests/client/test_revokes.py::test_store_data_moves_to_another_gpu",),
    ),
    Mutant(
        name="a fence keeps nothing out",
        path="aqua_client/held_slabs.py",
        old="        not slab.is_fenced\n",
        new="        True\n",
        tests=(
            "tests/client/test_revokes_in_use.py::test_nothing_new_is_put_into_a_slab_that_is_asked_back",
        ),
    ),
    Mutant(
        name="a place is freed under its pins",
        path="aqua_client/tiers.py",
        old="            place.is_retired = True\n            if place.pins == 0:",
        new="            place.is_retired = True\n            if True:",
        tests=("tests/client/test_streams.py::test_a_fetch_holds_its_place_until_it_is_over",),
    ),
    Mutant(
        name="a piece is moved while it is written",
        path="aqua_client/slabs.py",
        old="if not (one.is_writing or one.is_retired)",
        new="if not one.is_retired",
        tests=("tests/client/test_revokes_in_use.py::test_a_revoke_waits_for_a_write",),
    ),
    Mutant(
        name="an acknowledgement does not wait for the event",
        path="aqua_client/in_flight.py",
        old="return flight.event.is_done()",
        new="return True",
        tests=(
            "tests/client/test_streams.py::test_a_revoke_is_not_acknowledged_before_the_copies_are_over",
        ),
    ),
    Mutant(
        name="a slab is acknowledged before it is empty",
        path="aqua_client/worker.py",
        old="if not slab.places and self._close(slab):",
        new="if self._close(slab):",
        tests=(
            "tests/client/test_revokes_in_use.py::test_a_revoke_waits_for_a_fetch_and_others_do_not",
        ),
    ),
    Mutant(
        name="a child uses its parent's handles",
        path="aqua_client/pager.py",
        old="self._is_forked = True",
        new="self._is_forked = False",
        tests=("tests/client/test_client.py::test_a_forked_child_is_told_to_connect_anew",),
    ),
    Mutant(
        name="a child uses its parent's session",
        path="aqua_client/session.py",
        old="        if self._is_abandoned:\n            msg",
        new="        if False:\n            msg",
        tests=("tests/client/test_forking.py::test_every_call_in_a_child_says_so",),
    ),
    Mutant(
        name="what was moved a moment ago is moved to a peer again",
        path="aqua_client/evacuation.py",
        old=" and place.is_settled(now):",
        new=":",
        tests=("tests/client/test_revokes.py::test_what_was_moved_lately_goes_to_the_host",),
    ),
)
