"""Faults of the broker's rules."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

CORE = (
    Mutant(
        name="the reserve is ignored",
        path="aqua_daemon/core/accounts.py",
        old="math.ceil(GRANT_RESERVE_FACTOR * self.reserve_bytes)",
        new="0",
        tests=("tests/core/test_granting.py::test_a_grant_leaves_one_and_a_half_reserves_free",),
    ),
    Mutant(
        name="hysteresis is removed",
        path="aqua_daemon/core/accounts.py",
        old="math.ceil(GRANT_RESERVE_FACTOR * self.reserve_bytes)",
        new="self.reserve_bytes",
        tests=("tests/core/test_granting.py::test_a_grant_leaves_one_and_a_half_reserves_free",),
    ),
    Mutant(
        name="the settle time is ignored",
        path="aqua_daemon/core/accounts.py",
        old="room -= self.unsettled_bytes + self.probe_bytes",
        new="room -= 0",
        tests=("tests/core/test_lending.py::test_what_was_let_go_a_moment_ago_is_not_lent",),
    ),
    Mutant(
        name="an offer bounds nothing",
        path="aqua_daemon/core/accounts.py",
        old="room = min(room, min(self.limits.values()) - self.held_bytes)",
        new="room = max(room, 0)",
        tests=(
            "tests/core/test_reclaiming.py::test_an_offer_bounds_what_is_lent_and_the_lowest_of_several_counts",
        ),
    ),
    Mutant(
        name="what is not known is zero",
        path="aqua_daemon/core/accounts.py",
        old="if said.total_bytes <= 0 or min(others_bytes, *said.owner_bytes.values(), 0) < 0:",
        new="if False:",
        tests=("tests/core/test_gpu_reports.py::test_a_report_that_cant_be_is_not_believed",),
    ),
    Mutant(
        name="a newcomer is not noticed",
        path="aqua_daemon/core/lending.py",
        old="if _sees_newcomers(settings, account) and account.owner_bytes.keys() - owners.keys():",
        new="if False:",
        tests=("tests/core/test_lending.py::test_a_new_process_gets_all_of_its_gpu_back_at_once",),
    ),
    Mutant(
        name="what is let go is forgotten at once",
        path="aqua_daemon/core/lending.py",
        old="    _note_past_use(account, used_bytes, turn.now)\n",
        new="",
        tests=("tests/core/test_lending.py::test_what_was_let_go_a_moment_ago_is_not_lent",),
    ),
    Mutant(
        name="a share bars nobody",
        path="aqua_daemon/core/balancing.py",
        old="if held_bytes + nbytes > share:",
        new="if False:",
        tests=(
            "tests/core/test_balancing.py::test_what_was_asked_back_for_one_is_not_taken_by_who_has_its_share",
        ),
    ),
    Mutant(
        name="what was granted a moment ago is moved",
        path="aqua_daemon/core/balancing.py",
        old="elif turn.now - lease.since < REST_SECONDS:",
        new="elif False:",
        tests=(
            "tests/core/test_balancing.py::test_what_was_granted_a_moment_ago_is_left_alone_and_the_books_say_so",
        ),
    ),
    Mutant(
        name="who is silent is asked for ever more",
        path="aqua_daemon/core/balancing.py",
        old="{LEASED, QUARANTINED}",
        new="()",
        tests=(
            "tests/core/test_balancing.py::test_who_does_not_answer_is_asked_for_no_more_until_it_does",
        ),
    ),
    Mutant(
        name="the rest of who is silent is asked for",
        path="aqua_daemon/core/balancing.py",
        old="elif lease.session_id in silent:",
        new="elif False:",
        tests=(
            "tests/core/test_balancing.py::test_what_is_silent_is_not_asked_when_the_rest_may_not_be_moved_yet",
        ),
    ),
    Mutant(
        name="scraps are waited for",
        path="aqua_daemon/core/balancing.py",
        old="return account.lendable_bytes // smallest_bytes * smallest_bytes",
        new="return account.lendable_bytes",
        tests=(
            "tests/core/test_balancing.py::test_scraps_that_no_slab_fits_into_are_not_waited_for",
        ),
    ),
    Mutant(
        name="more is asked back than is above a share",
        path="aqua_daemon/core/rebalancing.py",
        old="nbytes = min(excess, int(needed))",
        new="nbytes = int(needed)",
        tests=(
            "tests/core/test_fairness.py::test_what_is_asked_back_leaves_nobody_below_its_share",
        ),
    ),
    Mutant(
        name="what leaves already is asked for again",
        path="aqua_daemon/core/rebalancing.py",
        old="party.held_bytes - party.leaving_bytes - shares",
        new="party.held_bytes - shares",
        tests=(
            "tests/core/test_fairness.py::test_what_leaves_a_tenant_already_is_not_above_its_share",
        ),
    ),
    Mutant(
        name="weights are ignored",
        path="aqua_daemon/core/fairness.py",
        old="left * weights[key] / weight_left",
        new="left / (len(demands) - len(shares))",
        tests=("tests/core/test_fairness.py::test_shares_by_hand",),
    ),
    Mutant(
        name="others pay for what is stuck",
        path="aqua_daemon/core/fairness.py",
        old="if poured[key] < least.get(key, 0)",
        new="if False",
        tests=(
            "tests/core/test_fairness.py::test_what_is_stuck_comes_out_of_the_share_of_who_keeps_it",
        ),
    ),
    Mutant(
        name="a storm has two seconds",
        path="aqua_daemon/core/revoking.py",
        old="seconds = min(max(STANDARD_REVOKE_SECONDS, carried_seconds), LONGEST_REVOKE_SECONDS)",
        new="seconds = STANDARD_REVOKE_SECONDS",
        tests=(
            "tests/core/test_revoking.py::test_a_storm_gets_the_time_that_the_way_to_host_memory_takes",
        ),
    ),
    Mutant(
        name="a reserve is asked for twice",
        path="aqua_daemon/core/revoking.py",
        old="account.free_bytes - account.coming_bytes",
        new="account.free_bytes",
        tests=(
            "tests/core/test_revoking.py::test_a_reserve_that_is_on_its_way_is_not_asked_for_twice",
        ),
    ),
    Mutant(
        name="a death buys time",
        path="aqua_daemon/core/revoking.py",
        old="deadline_of_lease = min(deadline, lease.revocation.deadline)",
        new="deadline_of_lease = deadline",
        tests=("tests/core/test_sessions.py::test_a_death_during_a_revoke_never_buys_time",),
    ),
    Mutant(
        name="host room is not reserved",
        path="aqua_daemon/core/granting.py",
        old="if event.safety_class is STORE:",
        new="if False:",
        tests=(
            "tests/core/test_host_room.py::test_a_store_slab_that_the_pool_can_not_back_is_refused",
        ),
    ),
    Mutant(
        name="what did not fit once is never reserved",
        path="aqua_daemon/core/host_room.py",
        old="HostRoom(revision=room.revision - 1, nbytes=most)",
        new="HostRoom(revision=room.revision, nbytes=most)",
        tests=(
            "tests/core/test_host_room.py::test_what_did_not_fit_is_taken_with_the_return_that_covers_it",
        ),
    ),
    Mutant(
        name="a quota is off by one slab",
        path="aqua_daemon/core/granting.py",
        old="if account.held_bytes + nbytes > limits.nbytes:",
        new="if account.held_bytes > limits.nbytes:",
        tests=("tests/core/test_granting.py::test_a_tenant_never_gets_more_than_its_quota",),
    ),
    Mutant(
        name="a quota of leases is off by one",
        path="aqua_daemon/core/granting.py",
        old="if account.leases >= limits.leases:",
        new="if account.leases > limits.leases:",
        tests=("tests/core/test_tenant_counts.py::test_leases_are_counted_whatever_their_size",),
    ),
    Mutant(
        name="a repeated request is met twice",
        path="aqua_daemon/core/granting.py",
        old="if _is_repeated(turn, session, event):",
        new="if False:",
        tests=("tests/core/test_granting.py::test_a_repeated_request_has_one_effect",),
    ),
    Mutant(
        name="a suspect session is granted to",
        path="aqua_daemon/core/granting.py",
        old="if session.state is SUSPECT:",
        new="if False:",
        tests=(
            "tests/core/test_granting.py::test_a_suspect_session_gets_nothing_until_it_is_back",
        ),
    ),
    Mutant(
        name="a new daemon grants at once",
        path="aqua_daemon/core/granting.py",
        old="    if turn.books.is_restarting:",
        new="    if False:",
        tests=("tests/core/test_restart.py::test_nothing_is_lent_before_every_keeper_was_heard",),
    ),
    Mutant(
        name="bytes that are promised are free",
        path="aqua_daemon/core/accounts.py",
        old="HELD = frozenset(LeaseState) - {LOST}",
        new="HELD = frozenset(LeaseState) - {LOST, ALLOCATING}",
        tests=("tests/core/test_granting.py::test_a_lease_is_promised_made_and_granted",),
    ),
    Mutant(
        name="a lease id comes back",
        path="aqua_daemon/core/turn.py",
        old="self.books.remember_ended(lease.lease_id)",
        new="pass",
        tests=("tests/core/test_granting.py::test_a_lease_id_never_comes_back",),
    ),
    Mutant(
        name="a slab is freed at the deadline",
        path="aqua_daemon/core/lifecycle.py",
        old="(LeaseState.REVOKING, Move.OVERDUE): LeaseState.QUARANTINED",
        new="(LeaseState.REVOKING, Move.OVERDUE): LeaseState.RETURNED",
        tests=(
            "tests/core/test_revoking.py::test_a_revoke_ends_at_its_deadline_in_quarantine_and_heals_late",
        ),
    ),
    Mutant(
        name="a quarantined slab does not heal",
        path="aqua_daemon/core/lifecycle.py",
        old="for state in (LeaseState.REVOKING, LeaseState.QUARANTINED)\n",
        new="for state in (LeaseState.REVOKING,)\n",
        tests=(
            "tests/core/test_revoking.py::test_a_revoke_ends_at_its_deadline_in_quarantine_and_heals_late",
        ),
    ),
    Mutant(
        name="the pidfd alone is taken as proof",
        path="aqua_daemon/core/sessions.py",
        old="    if session.sentinel_ended:\n",
        new="    if True:\n",
        tests=(
            "tests/core/test_sessions.py::test_what_an_heir_maps_is_quarantined_within_a_second_and_heals_with_it",
        ),
    ),
    Mutant(
        name="a session is taken over",
        path="aqua_daemon/core/sessions.py",
        old="if session.process != event.process:",
        new="if False:",
        tests=("tests/core/test_sessions.py::test_another_process_can_not_take_a_session_over",),
    ),
    Mutant(
        name="others' leases are returned",
        path="aqua_daemon/core/returning.py",
        old="lease is None or lease.session_id != event.session_id or lease",
        new="lease is None or lease",
        tests=(
            "tests/core/test_returning.py::test_ids_that_are_not_the_callers_leases_have_no_effect",
        ),
    ),
    Mutant(
        name="a GPU lends to its own session",
        path="aqua_daemon/core/placement.py",
        old="        if lender.is_home and not lend_to_own_gpu:",
        new="        if False:",
        tests=("tests/core/test_granting.py::test_the_home_gpu_lends_nothing_to_its_own_session",),
    ),
    Mutant(
        name="who never names a lease keeps it",
        path="aqua_daemon/core/terms.py",
        old="if claim_ends_at <= turn.now:",
        new="if False:",
        tests=("tests/core/test_terms.py::test_a_lease_that_is_never_named_is_taken_back",),
    ),
    Mutant(
        name="who is silent for a term keeps all",
        path="aqua_daemon/core/terms.py",
        old="revoke(turn, lapsed, reason=RevokeReason.LAPSED)",
        new="pass",
        tests=("tests/core/test_terms.py::test_a_term_of_silence_lapses_every_lease",),
    ),
    Mutant(
        name="what was measured is ignored",
        path="aqua_daemon/core/rating.py",
        old="        if worth := scores.worth(lender.gpu, home):\n",
        new="        if worth := 0.0:\n",
        tests=(
            "tests/core/test_measured_links.py::test_what_was_measured_beats_what_is_printed_on_the_box",
        ),
    ),
    Mutant(
        name="a slow link is not avoided",
        path="aqua_daemon/core/placement.py",
        old="        not lender.is_slow,\n",
        new="        True,\n",
        tests=("tests/core/test_slow_links.py::test_a_slow_gpu_lends_after_those_that_are_shared",),
    ),
    Mutant(
        name="a peer slower than DRAM lends",
        path="aqua_daemon/core/scores.py",
        old="        if peer > host:\n",
        new="        if True:\n",
        tests=("tests/core/test_measured_links.py::test_a_peer_slower_than_dram_is_never_chosen",),
    ),
    Mutant(
        name="a measurement may use the reserve",
        path="aqua_daemon/core/probing.py",
        old="    if room < nbytes:\n",
        new="    if False:\n",
        tests=("tests/core/test_probing.py::test_a_measurement_never_breaks_a_reserve",),
    ),
)
