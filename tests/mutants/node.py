"""Faults of a node in service: a server that is hurt, a limit that lets through, a word left unsaid."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_CLIENT, _DAEMON = "tests/client", "tests/daemon"
_FORKING, _SHORTAGES = f"{_CLIENT}/test_forking.py", f"{_CLIENT}/test_shortages.py"
_PAGER, _LIMITS = f"{_CLIENT}/test_pager.py", f"{_DAEMON}/test_presence_limits.py"
_REVOKES, _REATTACHING = f"{_CLIENT}/test_revokes.py", f"{_CLIENT}/test_reattaching.py"
_MODULE, _ROOM = f"{_CLIENT}/test_client.py", "tests/core/test_host_room.py"
_PROCESSES = f"{_DAEMON}/test_processes.py"
_LATE = "test_two_pings_may_come_late_before_the_daemon_is_taken_for_dead"
_SOURCES = "aqua_daemon/config_sources.py"
_OF_SOURCES = f"{_DAEMON}/test_config_sources.py"

NODE = (
    Mutant(
        name="a daemon that is stuck is asked again each time",
        path="aqua_client/calls.py",
        old="breaker.failed(now=time.monotonic())",
        new="pass",
        tests=(f"{_CLIENT}/test_stuck_daemons.py::test_a_stuck_daemon_costs_one_deadline",),
    ),
    Mutant(
        name="each slab of a tensor has a deadline of its own",
        path="aqua_client/borrowing.py",
        old="seconds = max(0.001, end - time.monotonic())",
        new="seconds = max(2.0, end - time.monotonic())",
        tests=(f"{_SHORTAGES}::test_a_tensor_of_many_slabs_waits_once_for_all_of_them",),
    ),
    Mutant(
        name="a slab is asked for that can't be taken",
        path="aqua_client/session.py",
        old="        check_spare(SLAB_DESCRIPTORS)\n",
        new="",
        tests=(f"{_SHORTAGES}::test_a_slab_is_not_asked_for_that_could_not_be_taken",),
    ),
    Mutant(
        name="a slab whose answer came late is lost",
        path="aqua_client/session.py",
        old='if error.reason in {"timeout", BREAKER}:',
        new="if not error.reason:",
        tests=(f"{_SHORTAGES}::test_what_was_not_answered_is_asked_again_and_not_twice",),
    ),
    Mutant(
        name="a fallback is not counted",
        path="aqua_client/host_reserving.py",
        old="tiers.counters.count_fallback(reason)",
        new="pass",
        tests=(f"{_PAGER}::test_without_a_daemon_host_memory_is_used_and_told_once",),
    ),
    Mutant(
        name="a lease that may have lapsed is written to",
        path="aqua_client/reserving.py",
        old="self._news.silent_seconds > WRITABLE_TERMS * self._lender.term_seconds",
        new="self._news.silent_seconds > self._lender.term_seconds",
        tests=(
            f"{_PAGER}::test_while_detached_held_slabs_are_used_until_their_term_may_have_lapsed",
        ),
    ),
    Mutant(
        name="no empty slab is kept warm",
        path="aqua_client/worker.py",
        old="(WARM_SECONDS if is_warm else IDLE_SECONDS)",
        new="IDLE_SECONDS",
        tests=(f"{_PAGER}::test_empty_slabs_go_back_after_a_while_all_but_one",),
    ),
    Mutant(
        name="a burst borrows ahead",
        path="aqua_client/growth.py",
        old="seconds < STEADY_SECONDS",
        new="seconds < 0.0",
        tests=(f"{_CLIENT}/test_growth.py::test_growth_within_a_moment_is_a_burst",),
    ),
    Mutant(
        name="what was written to counts as unchanged",
        path="aqua_client/immutables.py",
        old=" or known.version != _version(tensor)",
        new="",
        tests=(f"{_CLIENT}/test_immutables.py::test_one_that_was_written_to_after_all_is_copied",),
    ),
    Mutant(
        name="a fork waits for no call",
        path="aqua_client/forking.py",
        old="self._change.wait_for(lambda: not self._calls_out, self._patience_seconds)",
        new="pass",
        tests=(f"{_FORKING}::test_a_fork_waits_for_the_calls_that_are_out",),
    ),
    Mutant(
        name="a child waits for a thread of its parent's",
        path="aqua_client/forking.py",
        old="        self._change = threading.Condition()\n        self._calls_out = 0\n        self._forking = set()\n\n\nGATE",
        new="        self._calls_out = 0\n        self._forking = set()\n\n\nGATE",
        tests=(f"{_FORKING}::test_a_child_is_free_of_a_lock_that_a_thread_held",),
    ),
    Mutant(
        name="evacuated bytes stay on the GPU that is asked back",
        path="aqua_client/evacuation.py",
        old="avoid_gpu=slab.lender_gpu",
        new='avoid_gpu=""',
        tests=(f"{_REVOKES}::test_nothing_moves_to_another_slab_of_the_same_gpu",),
    ),
    Mutant(
        name="what was evacuated is reserved twice",
        path="aqua_client/evacuation.py",
        old="                self._tiers.host.cover(slab.lease_id, place.nbytes)\n",
        new="",
        tests=(f"{_REVOKES}::test_what_was_moved_is_stated_only_when_its_slab_goes_back",),
    ),
    Mutant(
        name="leases that ended meanwhile are kept",
        path="aqua_client/presence.py",
        old="self._listener.leases_ended(welcome.ended_lease_ids)",
        new="pass",
        tests=(f"{_REATTACHING}::test_leases_that_a_welcome_calls_ended_are_told",),
    ),
    Mutant(
        name="the end of a process waits for no copy",
        path="aqua_client/client.py",
        old="    awaiting.await_background(_END_SECONDS)\n",
        new="",
        tests=(f"{_MODULE}::test_the_end_of_a_process_waits_for_copies_in_the_background",),
    ),
    Mutant(
        name="users make tenants of their own",
        path="aqua_daemon/adapters/processes.py",
        old='        if part == "user.slice":\n            return ""',
        new='        if part == "user.slice":\n            continue',
        tests=(f"{_PROCESSES}::test_a_cgroup_names_its_unit_or_container",),
    ),
    Mutant(
        name="a new daemon forgets what is in host memory",
        path="aqua_daemon/core/sessions.py",
        old="is_rebuilding = session.session_id in turn.books.awaited",
        new="is_rebuilding = False",
        tests=(f"{_ROOM}::test_a_holder_of_slabs_that_is_back_keeps_what_it_has_in_host_memory",),
    ),
    Mutant(
        name="a peer that ended is taken for who has its pid",
        path="aqua_daemon/adapters/processes.py",
        old='        if has_ended(pidfd):\n            raise PeerGone(f"process {pid} has ended")\n',
        new="",
        tests=(f"{_PROCESSES}::test_a_peer_that_ends_while_it_is_looked_at_is_gone",),
    ),
    Mutant(
        name="a sub-tenant leaves its tenant's quota",
        path="aqua_daemon/core/books.py",
        old="        owner = owner_of(tenant)\n        quota = self.quotas.get(owner)",
        new="        owner = tenant\n        quota = self.quotas.get(owner)",
        tests=(
            "tests/core/test_quotas.py::test_a_sub_tenant_has_its_own_quota_within_its_tenants",
        ),
    ),
    Mutant(
        name="more processes may make more calls",
        path="aqua_daemon/adapters/call_limits.py",
        old='        _check(user, f"uid {uid}", limits.under_way_per_uid)\n',
        new="",
        tests=(f"{_DAEMON}/test_call_limits.py::test_a_user_gains_nothing_by_more_processes",),
    ),
    Mutant(
        name="a large frame costs no more than a small one",
        path="aqua_daemon/adapters/presence_link.py",
        old="_FRAME_CREDITS + len(payload) / _BYTES_PER_CREDIT",
        new="_FRAME_CREDITS",
        tests=(f"{_LIMITS}::test_large_frames_buy_no_more_of_the_daemons_time_than_small_ones",),
    ),
    Mutant(
        name="sessions that are made up are let in",
        path="aqua_daemon/adapters/greeting.py",
        old="if self._process_of.get(session_id) == process:",
        new="if session_id:",
        tests=(f"{_LIMITS}::test_sessions_are_limited_per_process",),
    ),
    Mutant(
        name="without descriptors the loop turns for nothing else",
        path="aqua_daemon/adapters/accepting.py",
        old="                loop.remove_reader(self._listener)\n",
        new="",
        tests=(f"{_DAEMON}/test_adoption.py::test_want_of_descriptors_is_a_pause_and_no_end",),
    ),
    Mutant(
        name="the token of a dead connection is good",
        path="aqua_daemon/adapters/presence.py",
        old="        self._tokens.pop(link.token, None)\n",
        new="",
        tests=(
            f"{_DAEMON}/test_presence.py::test_the_token_ends_with_its_connection_and_the_process_may_come_back",
        ),
    ),
    Mutant(
        name="the log forgets what a slab was asked back for",
        path="aqua_daemon/adapters/audit.py",
        old="note.why if revocation is None else revocation.reason.value",
        new="note.why",
        tests=(f"{_DAEMON}/test_audit.py::test_each_step_of_the_table_is_written",),
    ),
    Mutant(
        name="what admins set is written in place",
        path="aqua_daemon/adapters/settings_file.py",
        old='beside = path.with_name(path.name + ".new")',
        new="beside = path",
        tests=(f"{_DAEMON}/test_settings_file.py::test_a_disk_that_refuses_leaves_the_old_file",),
    ),
    Mutant(
        name="one late ping has the daemon restarted",
        path="aqua_daemon/adapters/service_manager.py",
        old="period_seconds / _PINGS_PER_PERIOD",
        new="period_seconds",
        tests=(f"{_DAEMON}/test_service_manager.py::{_LATE}",),
    ),
    Mutant(
        name="the file wins over the environment",
        path=_SOURCES,
        old="        *_from_file(path, default_path),\n        *_from_environment(environment),",
        new="        *_from_environment(environment),\n        *_from_file(path, default_path),",
        tests=(f"{_OF_SOURCES}::test_flags_win_over_variables_and_they_over_the_file",),
    ),
    Mutant(
        name="a key that is no setting is passed over",
        path=_SOURCES,
        old="            raise ConfigError(key, word, allowed, origin=origin)",
        new="            continue",
        tests=(f"{_OF_SOURCES}::test_a_refusal_names_the_place_in_the_file",),
    ),
    Mutant(
        name="a setting does not reach the broker",
        path="aqua_daemon/assembly.py",
        old="rest_seconds=config.lending.rest_seconds",
        new="rest_seconds=config.lending.ramp_seconds",
        tests=(f"{_DAEMON}/test_assembly.py::test_the_broker_is_told_all_that_it_goes_by",),
    ),
    Mutant(
        name="a restart counts what clients did again",
        path="aqua_daemon/adapters/client_tally.py",
        old="_folded(heard_before or ClientFigures())",
        new="_folded(ClientFigures())",
        tests=(
            f"{_DAEMON}/test_client_tally.py::test_a_new_daemon_counts_from_what_was_heard_before",
        ),
    ),
    Mutant(
        name="old figures pass for new ones",
        path="aqua_daemon/adapters/metrics.py",
        old="stale.add_metric([], 0 if fresh else 1)",
        new="stale.add_metric([], 0)",
        tests=(f"{_DAEMON}/test_metrics.py::test_a_hung_loop_gives_the_last_reading_and_says_so",),
    ),
)
