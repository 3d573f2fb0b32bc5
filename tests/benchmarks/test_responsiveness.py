"""The benchmark of a burst on a real engine adds up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.responsiveness.__main__ import arrivals
from tests.benchmarks.responsiveness.replay import Story, serve
from tests.benchmarks.threads import one_thread
from tests.integrations.hosting import host_client
from tests.nodes import MIB


def test_a_story_knows_its_stalls() -> None:
    """A reader of ten tokens a second begins at the first; what comes sooner is no credit."""
    even = Story(came_at=0.0, tokens=[1.0, 1.1, 1.2])
    late = Story(came_at=0.0, tokens=[1.0, 1.1, 3.0])
    assert even.stalled_seconds == pytest.approx(0.0, abs=1e-9)
    assert late.stalled_seconds == pytest.approx(1.8)


@pytest.mark.parametrize("scheduler", ["fifo", "aqua_fair"])
def test_everybody_is_answered_and_counted(scheduler: str) -> None:
    """However the engine is shared, each request has all its tokens, and none before it came."""
    some = [replace(one, at=0.1 * i, reply_tokens=8) for i, one in enumerate(arrivals(2)[:4])]
    with one_thread(), host_client(host_limit_bytes=64 * MIB) as host:
        found = serve(
            some, blocks=16, scheduler=scheduler, client=None if scheduler == "fifo" else host
        )
    assert len(found.first_tokens) == len(some)
    assert all(seconds > 0 for seconds in found.first_tokens)
    assert found.first_token[0] <= found.completion[0]
    assert found.tokens_per_second > 0
    assert found.recomputed == 0
