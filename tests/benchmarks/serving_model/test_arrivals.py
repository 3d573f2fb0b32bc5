"""What comes when: the made-up trace is like the real one, and a real one is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.benchmarks.figure import percentile
from tests.benchmarks.serving_model import arrivals
from tests.benchmarks.serving_model.arrivals import Arrival

LINES = """TIMESTAMP,ContextTokens,GeneratedTokens
2030-01-01 00:00:00.5000000,10,3
2030-01-01 00:00:01.2500001,0,4
2030-01-01 00:01:00.5000009,12,0
"""


@pytest.mark.parametrize("seed", range(3))
def test_the_made_up_hour_has_the_quantiles_of_the_real_one(seed: int) -> None:
    """Within a tenth; the highest counts, which are luck, within four tenths."""
    hour = arrivals.an_hour(seed)
    context = [one.prompt_tokens for one in hour]
    generated = [one.reply_tokens for one in hour]
    assert len(hour) == pytest.approx(19_366, rel=0.1)
    assert percentile(context, 50) == pytest.approx(1020, rel=0.1)
    assert percentile(context, 95) == pytest.approx(4083, rel=0.1)
    assert percentile(generated, 50) == pytest.approx(129, rel=0.1)
    assert percentile(generated, 95) == pytest.approx(451, rel=0.1)
    assert max(Counter(int(one.at) for one in hour).values()) == pytest.approx(16, rel=0.4)
    assert max(Counter(int(one.at // 10) for one in hour).values()) == pytest.approx(98, rel=0.4)
    assert len(hour) / hour[-1].at == pytest.approx(5.5, rel=0.1)


def test_a_seed_is_a_story() -> None:
    """The same again, and another one."""
    assert arrivals.an_hour(1) == arrivals.an_hour(1)
    assert arrivals.an_hour(1) != arrivals.an_hour(2)


def test_a_trace_is_read(tmp_path: Path) -> None:
    """Times from the first on, at least a token either way."""
    path = tmp_path / "trace.csv"
    path.write_text(LINES)
    assert arrivals.read(path) == [
        Arrival(at=0.0, prompt_tokens=10, reply_tokens=3),
        Arrival(at=0.75, prompt_tokens=1, reply_tokens=4),
        Arrival(at=60.0, prompt_tokens=12, reply_tokens=1),
    ]


def test_the_highest_burst_is_in_the_middle() -> None:
    """As many seconds before its beginning as after."""
    times = [float(second) for second in range(1000)] + [700.5 + 0.01 * i for i in range(50)]
    coming = [Arrival(at=at, prompt_tokens=1, reply_tokens=1) for at in sorted(times)]
    inside = arrivals.around_the_highest_burst(coming, 100)
    assert 99 + 50 <= len(inside) <= 101 + 50
    burst = [one.at for one in inside if one.at != int(one.at)]
    assert all(39 < at < 61 for at in burst)
    half = arrivals.faster(inside, 2)
    assert [one.at * 2 for one in half] == pytest.approx([one.at for one in inside])


def test_a_burst_comes_at_once_among_others() -> None:
    """A third of the way through."""
    coming = arrivals.a_burst(50, per_second=2, seconds=60, seed=1)
    assert Counter(one.at for one in coming)[20.0] == 50
    assert 80 < len(coming) - 50 < 160
    assert [one.at for one in coming] == sorted(one.at for one in coming)
