"""The books of host memory: what is reserved, covered, and told to the daemon."""

from __future__ import annotations

from aqua_client.host_tier import STEP_BYTES, HostTier

KIB = 2**10


def test_reservations_are_made_in_steps() -> None:
    """So that an offload seldom has to ask."""
    host = HostTier(0)
    reserved = []
    host.claim(100 * KIB)
    reserved.append(host.is_reserved)
    wish = host.wish(rounded=True)
    assert wish.nbytes == STEP_BYTES
    host.granted(wish)
    host.claim(STEP_BYTES - 100 * KIB)
    reserved.append(host.is_reserved)
    host.claim(1)
    reserved.append(host.is_reserved)
    assert reserved == [False, True, False]


def test_an_answer_that_a_later_statement_overtook_changes_nothing() -> None:
    """The daemon applied the statement last, whatever came back first."""
    host = HostTier(0)
    host.claim(100)
    wish = host.wish(rounded=True)
    statement = host.statement()
    assert statement.revision > wish.revision
    assert statement.nbytes == 100
    host.granted(wish)
    assert host.reserved_bytes == 100


def test_a_statement_lets_go_of_steps_that_are_not_needed() -> None:
    """What was given up goes back to the node with the next keepalive."""
    host = HostTier(0)
    host.claim(3 * STEP_BYTES)
    host.granted(host.wish(rounded=True))
    host.give_up(3 * STEP_BYTES - 10)
    assert host.statement().nbytes == STEP_BYTES
    host.give_up(10)
    assert host.statement().nbytes == 0


def test_what_a_revoke_moved_here_is_covered_until_its_slab_is_given_back() -> None:
    """The slab's own reservation holds so long; stating both would need room twice."""
    host = HostTier(0)
    host.claim(1000)
    host.cover("lease", 1000)
    assert host.statement().nbytes == 0
    host.uncover("lease")
    assert host.statement().nbytes == 1000
    host.uncover("lease")


def test_without_a_daemon_the_limit_of_the_process_holds() -> None:
    """With one, what it agreed to."""
    host = HostTier(1000)
    host.claim(900)
    assert host.free_bytes(has_daemon=False) == 100
    assert host.free_bytes(has_daemon=True) == -900
    host.granted(host.wish(rounded=True))
    assert host.free_bytes(has_daemon=True) == STEP_BYTES - 900
    assert host.free_bytes(has_daemon=False) == STEP_BYTES - 900


def test_what_is_asked_for_is_not_stated_before_it_is_granted() -> None:
    """A refusal that is on its way must not have been reserved meanwhile by a keepalive."""
    host = HostTier(0)
    host.claim(100)
    host.granted(host.wish(rounded=False))
    host.claim(1000)
    host.asked_bytes += 1000
    assert host.wish(rounded=False).nbytes == 1100
    assert host.statement().nbytes == 100
    assert not host.is_reserved
    host.asked_bytes -= 1000
    assert host.statement().nbytes == 1100  # it is used now, with or without a yes
