"""Faults of elastic lending: newcomers, ramps, reclaims, whose leases go first, fair shares, drains."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_LENDING = "tests/core/test_lending.py"
_RECLAIMING = "tests/core/test_reclaiming.py"
_HASTENING = "tests/core/test_hastening.py"
_FIRST = "tests/core/test_whose_go_first.py"
_BALANCING = "tests/core/test_balancing.py"

ELASTIC = (
    Mutant(
        name="the reserve waits for who is at leisure",
        path="aqua_daemon/core/revoking.py",
        old="    if short_bytes > -account.coming_bytes:\n",
        new="    if False:\n",
        tests=(f"{_HASTENING}::test_an_owner_that_grows_hastens_what_was_asked_for_at_leisure",),
    ),
    Mutant(
        name="as a storm abates all are told again at each tick",
        path="aqua_daemon/core/revoking.py",
        old="> wanted.deadline + STANDARD_REVOKE_SECONDS\n",
        new="> wanted.deadline\n",
        tests=(f"{_HASTENING}::test_as_a_storm_abates_nobody_is_told_at_each_tick",),
    ),
    Mutant(
        name="what a keeper turns out to hold is left where all is taken back",
        path="aqua_daemon/core/keeping.py",
        old="        quiescing.go_on(turn, account)\n",
        new="",
        tests=(f"{_HASTENING}::test_what_a_keeper_turns_out_to_hold_is_taken_back_too",),
    ),
    Mutant(
        name="who is in need waits as long as who is at leisure",
        path="aqua_daemon/core/revoking.py",
        old="is RevokeReason.DEAD or under_way.deadline <= wanted.deadline:",
        new="is RevokeReason.DEAD or True:",
        tests=(f"{_HASTENING}::test_an_owner_in_need_hastens_what_it_asked_for_at_leisure",),
    ),
    Mutant(
        name="who asks again with more time gives it",
        path="aqua_daemon/core/revoking.py",
        old="is RevokeReason.DEAD or under_way.deadline <= wanted.deadline:",
        new="is RevokeReason.DEAD:",
        tests=(f"{_HASTENING}::test_nobody_gains_time",),
    ),
    Mutant(
        name="nobody is told that it has less time",
        path="aqua_daemon/core/revoking.py",
        old="            told.append(turn.revise(lease, revocation))",
        new="            turn.revise(lease, revocation)",
        tests=(f"{_HASTENING}::test_an_owner_in_need_hastens_what_it_asked_for_at_leisure",),
    ),
    Mutant(
        name="what is hastened is not looked at when it is due",
        path="aqua_daemon/core/revoking.py",
        old="        turn.books.lease_timers.push(revocation.deadline, lease.lease_id)\n    send_revokes",
        new="        pass\n    send_revokes",
        tests=(f"{_HASTENING}::test_an_owner_in_need_hastens_what_it_asked_for_at_leisure",),
    ),
    Mutant(
        name="what comes last is waited for first",
        path="aqua_daemon/core/choosing.py",
        old="sorted(coming, key=comes_by)",
        new="sorted(coming, key=comes_by, reverse=True)",
        tests=(
            f"{_HASTENING}::test_no_more_is_hastened_than_is_needed_and_what_comes_first_counts_first",
        ),
    ),
    Mutant(
        name="a storm counts what is under way twice",
        path="aqua_daemon/core/revoking.py",
        old="for one in leases if one.state is LEASED and one.safety_class is STORE)",
        new="for one in leases if one.safety_class is STORE)",
        tests=(f"{_HASTENING}::test_who_names_no_time_waits_for_the_link_as_ever",),
    ),
    Mutant(
        name="who takes a GPU back waits for what comes because its holder is gone",
        path="aqua_daemon/core/returning.py",
        old="    if turn.ledger.gpus[lease.lender].is_taken_back:\n",
        new="    if False:\n",
        tests=(f"{_HASTENING}::test_a_gpu_that_is_taken_back_gets_at_once_whatever_comes",),
    ),
    Mutant(
        name="a newcomer gets half of its GPU back",
        path="aqua_daemon/core/quiescing.py",
        old="    leases = turn.ledger.leases_of(account)\n",
        new="    leases = turn.ledger.leases_of(account)[::2]\n",
        tests=(f"{_LENDING}::test_a_new_process_gets_all_of_its_gpu_back_at_once",),
    ),
    Mutant(
        name="a newcomer is alone before all has come back",
        path="aqua_daemon/core/lending.py",
        old="if account.held_bytes > quarantined_bytes and not",
        new="if False and not",
        tests=(f"{_LENDING}::test_it_is_alone_from_when_all_has_come_back",),
    ),
    Mutant(
        name="a newcomer waits for who hangs",
        path="aqua_daemon/core/lending.py",
        old="quarantined_bytes = account.bytes_in[QUARANTINED]",
        new="quarantined_bytes = 0",
        tests=(f"{_LENDING}::test_what_does_not_come_back_is_not_waited_for",),
    ),
    Mutant(
        name="a newcomer sees free memory change",
        path="aqua_daemon/core/accounts.py",
        old=" or (self.newcomer is not None and self.newcomer.is_alone)",
        new="",
        tests=(f"{_LENDING}::test_what_was_late_for_others_is_freed_when_it_is_alone_no_more",),
    ),
    Mutant(
        name="who comes to a quiet GPU is a newcomer",
        path="aqua_daemon/core/lending.py",
        old="return is_seen and not account.quiets",
        new="return is_seen",
        tests=("tests/core/test_quiescing.py::test_who_comes_while_it_is_quiet_is_no_newcomer",),
    ),
    Mutant(
        name="nothing goes back before an engine starts",
        path="aqua_daemon/core/quiescing.py",
        old="        if event.takes_back:\n",
        new="        if False:\n",
        tests=(
            "tests/core/test_quiescing.py::test_all_that_is_lent_goes_back_first_where_that_is_wished",
        ),
    ),
    Mutant(
        name="what is offered has to settle",
        path="aqua_daemon/core/lending.py",
        old="is_auto = account.policy is AUTO",
        new="is_auto = True",
        tests=(f"{_LENDING}::test_what_is_offered_may_be_lent_at_once",),
    ),
    Mutant(
        name="a ramp falls below what is lent",
        path="aqua_daemon/core/ramping.py",
        old="max(account.ramp.most_bytes, step_bytes + int(part * account.total_bytes))",
        new="step_bytes + int(part * account.total_bytes)",
        tests=("tests/core/test_ramping.py::test_a_ramp_begins_above_what_is_lent_already",),
    ),
    Mutant(
        name="a new lender is flooded",
        path="aqua_daemon/core/ramping.py",
        old="most_bytes=account.held_bytes + step_bytes",
        new="most_bytes=account.total_bytes",
        tests=(
            "tests/core/test_ramping.py::test_a_gpu_that_begins_to_lend_lends_one_slab_first_and_all_in_the_end",
        ),
    ),
    Mutant(
        name="what is owed waits for the quiet to end",
        path="aqua_daemon/core/returning.py",
        old="if account.is_quiet and not _is_owed(turn, lease):",
        new="if account.is_quiet:",
        tests=("tests/core/test_quiescing.py::test_what_is_owed_to_a_reclaim_is_freed_at_once",),
    ),
    Mutant(
        name="what comes back is freed under an engine that measures",
        path="aqua_daemon/core/returning.py",
        old="if account.is_quiet and not _is_owed(turn, lease):",
        new="if False:",
        tests=("tests/core/test_quiescing.py::test_what_comes_back_is_freed_afterwards",),
    ),
    Mutant(
        name="what was reclaimed is lent again",
        path="aqua_daemon/core/reclaiming.py",
        old="account.limits[event.session_id] = min(limit, staying_bytes)",
        new="pass",
        tests=(f"{_RECLAIMING}::test_what_was_reclaimed_is_not_lent_again",),
    ),
    Mutant(
        name="a reclaim raises an offer",
        path="aqua_daemon/core/reclaiming.py",
        old="min(limit, staying_bytes)",
        new="staying_bytes",
        tests=(f"{_RECLAIMING}::test_a_reclaim_raises_no_offer",),
    ),
    Mutant(
        name="a reclaim is over at its first deadline",
        path="aqua_daemon/core/reclaiming.py",
        old="return max(deadlines, default",
        new="return min(deadlines, default",
        tests=(f"{_RECLAIMING}::test_a_reclaim_is_answered_after_the_latest_of_its_deadlines",),
    ),
    Mutant(
        name="whoever likes takes a GPU's memory back",
        path="aqua_daemon/core/reclaiming.py",
        old="if session.process.pid not in account.owner_bytes:",
        new="if False:",
        tests=(f"{_RECLAIMING}::test_only_a_process_of_the_gpu_may_offer_or_reclaim_it",),
    ),
    Mutant(
        name="a storm counts itself alone",
        path="aqua_daemon/core/revoking.py",
        old="return (under_way + more) /",
        new="return more /",
        tests=("tests/core/test_revoking.py::test_a_storm_counts_what_is_under_way_already",),
    ),
    Mutant(
        name="who has priority keeps more than its part",
        path="aqua_daemon/core/choosing.py",
        old="(rank, tenant not in above, priority)",
        new="(rank, priority, tenant not in above)",
        tests=(f"{_FIRST}::test_who_is_above_its_part_is_asked_before_who_has_less_priority",),
    ),
    Mutant(
        name="what has to be copied goes before what is empty",
        path="aqua_daemon/core/choosing.py",
        old="for key in sorted(alike):",
        new="for key in sorted(alike, key=lambda one: (one[1], one[0], one[2])):",
        tests=(f"{_FIRST}::test_what_costs_nothing_goes_before_anything_that_is_used",),
    ),
    Mutant(
        name="all parts are equal",
        path="aqua_daemon/core/choosing.py",
        old="if held[owner] > each * weight}",
        new="if held[owner] > each}",
        tests=(f"{_FIRST}::test_a_part_is_by_weight",),
    ),
    Mutant(
        name="nobody has time to hear of a drain again",
        path="aqua_daemon/core/revoking.py",
        old="turn.now + max(seconds, least_seconds)",
        new="turn.now + seconds",
        tests=(
            "tests/core/test_draining.py::test_a_new_daemon_asks_back_what_it_finds_on_a_drained_gpu",
        ),
    ),
    Mutant(
        name="a dry run drains",
        path="aqua_daemon/core/draining.py",
        old="if not event.is_dry_run:",
        new="if True:",
        tests=("tests/core/test_draining.py::test_a_dry_run_says_what_is_done_and_does_nothing",),
    ),
    Mutant(
        name="a want is remembered for ever",
        path="aqua_daemon/core/balancing.py",
        old="turn.now - want.at < WANT_SECONDS",
        new="want.at <= turn.now",
        tests=(f"{_BALANCING}::test_a_want_that_is_not_repeated_is_forgotten",),
    ),
    Mutant(
        name="who was not heard wants more",
        path="aqua_daemon/core/balancing.py",
        old="is_there = session is not None and session.state is LIVE",
        new="is_there = session is not None",
        tests=(f"{_BALANCING}::test_who_was_not_heard_wants_nothing",),
    ),
    Mutant(
        name="what was granted is still wanted",
        path="aqua_daemon/core/balancing.py",
        old="want = turn.books.wants.pop(session.session_id, None)",
        new="want = turn.books.wants.get(session.session_id)",
        tests=(f"{_BALANCING}::test_when_everybody_has_its_share_what_is_left_goes_to_who_asks",),
    ),
    Mutant(
        name="what comes back already is asked of others",
        path="aqua_daemon/core/balancing.py",
        old="turn.ledger.gpus[gpu].coming_bytes + _grantable",
        new="_grantable",
        tests=(f"{_BALANCING}::test_what_comes_back_already_serves_first",),
    ),
    Mutant(
        name="a quiet GPU gives back by choice",
        path="aqua_daemon/core/balancing.py",
        old="        elif turn.ledger.gpus[lease.lender].is_quiet:\n",
        new="        elif False:\n",
        tests=(f"{_BALANCING}::test_a_quiet_gpu_gives_nothing_back_by_choice",),
    ),
    Mutant(
        name="sub-tenants are all equal",
        path="aqua_daemon/core/balancing.py",
        old="weight=turn.books.weight_of(tenant) if owner_of(tenant) != tenant else 1.0,",
        new="weight=1.0,",
        tests=(f"{_BALANCING}::test_a_weight_divides_a_tenant_among_its_sub_tenants_too",),
    ),
    Mutant(
        name="a share that breathes moves slabs",
        path="aqua_daemon/core/fairness.py",
        old="(held[tenant] <= found[tenant], found[tenant] - shares[tenant])",
        new="found[tenant] - shares[tenant]",
        tests=(
            "tests/core/test_fairness.py::test_a_share_that_breathes_leaves_slabs_where_they_are",
        ),
    ),
    Mutant(
        name="clients' words are believed whatever they say",
        path="aqua_daemon/core/scores.py",
        old="max(LEAST_PART, used / best)",
        new="used / best",
        tests=(
            "tests/core/test_slow_links.py::test_a_clients_word_halves_what_a_link_is_worth_at_most",
        ),
    ),
    Mutant(
        name="the wider end of a link counts",
        path="aqua_daemon/core/placement.py",
        old="return min(egress, ingress) if",
        new="return max(egress, ingress) if",
        tests=(
            "tests/core/test_placement.py::test_the_narrower_end_decides_then_the_lender_that_is_shared_less_then_room",
        ),
    ),
    Mutant(
        name="an older revision is taken",
        path="aqua_daemon/core/quotas.py",
        old="if after.revision < before.revision:",
        new="if False:",
        tests=("tests/core/test_quotas.py::test_the_later_revision_wins",),
    ),
    Mutant(
        name="what blocks a rebalance is not counted",
        path="aqua_daemon/adapters/tally.py",
        old="self._counts.rebalance_blocks[block] += 1",
        new="self._counts.rebalance_moves += 1",
        tests=(
            "tests/daemon/test_tally.py::test_each_rebalance_counts_as_done_or_by_what_blocked_it",
        ),
    ),
)
