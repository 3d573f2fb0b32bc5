"""The breaker: a stuck daemon costs one deadline, then one probe now and then."""

from __future__ import annotations

from aqua_client.breaker import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Breaker


def opened() -> Breaker:
    breaker = Breaker()
    breaker.failed(now=0.0)
    return breaker


def test_closed_it_lets_everything_through() -> None:
    """Nothing has failed: nothing is held back."""
    breaker = Breaker()
    assert not breaker.is_open
    assert all(breaker.allows(now=now) for now in (0.0, 0.0, 5.0))


def test_a_failure_opens_it() -> None:
    """After one unanswered call nothing goes out for the first pause."""
    breaker = opened()
    assert breaker.is_open
    assert not breaker.allows(now=0.0)
    assert not breaker.allows(now=FIRST_PAUSE_SECONDS - 0.001)


def test_one_probe_at_a_time() -> None:
    """When the pause is over one call goes out, and no other until it has ended."""
    breaker = opened()
    assert breaker.allows(now=1.0)
    assert not breaker.allows(now=1.0)
    assert not breaker.allows(now=100.0)


def test_an_answered_probe_closes_it() -> None:
    """An answer, be it a refusal, shows that the daemon works."""
    breaker = opened()
    assert breaker.allows(now=1.0)
    breaker.answered()
    assert not breaker.is_open
    assert breaker.allows(now=1.0)


def test_pauses_double_up_to_their_limit() -> None:
    """Each failed probe doubles the pause, up to 10 s."""
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(6):
        start = now
        while not breaker.allows(now=now):
            now += 0.25
        pauses.append(now - start)
        breaker.failed(now=now)
    assert pauses == [1.0, 2.0, 4.0, 8.0, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]


def test_calls_that_were_out_together_count_as_one_failure() -> None:
    """Ten callers that time out together must not push the first probe ten pauses away."""
    breaker = opened()
    for _ in range(9):
        breaker.failed(now=0.1)
    assert breaker.allows(now=FIRST_PAUSE_SECONDS)


def test_a_probe_that_was_given_up_does_not_block_the_next() -> None:
    """An interrupted probe says nothing of the daemon, and lets another try."""
    breaker = opened()
    assert breaker.allows(now=1.0)
    breaker.probe_ended()
    assert breaker.is_open
    assert breaker.allows(now=1.0)


def test_after_closing_it_starts_afresh() -> None:
    """A daemon that worked again gets the short pause at its next failure."""
    breaker = opened()
    assert breaker.allows(now=1.0)
    breaker.failed(now=1.0)
    assert breaker.allows(now=3.0)
    breaker.answered()
    breaker.failed(now=10.0)
    assert breaker.allows(now=11.0)
