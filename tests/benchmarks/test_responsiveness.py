"""The benchmark of a burst on a real engine adds up, resumes, and says what it leaves out."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import aqua_client
from aqua_client.copying import Memory, Range
from aqua_client.rows import Rows
from tests.benchmarks.pacing import Rates, paced
from tests.benchmarks.responsiveness import __main__ as program
from tests.benchmarks.responsiveness import scales, tables
from tests.benchmarks.responsiveness.replay import Story
from tests.benchmarks.responsiveness.scales import SMALL, Scenario
from tests.benchmarks.responsiveness.ways import DRAM, FCFS, LEASES, RECOMPUTE, Links
from tests.integrations.hosting import host_client
from tests.nodes import MIB, running_node, wait_until

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.0000000,320,16
2023-11-16 18:15:46.2000000,640,16
2023-11-16 18:15:46.2500000,320,20
"""
TINY_BURST = Scenario(
    name="4 at once",
    story=tuple(
        replace(one, at=0.1 * i, reply_tokens=8)
        for i, one in enumerate(next(scales.bursts(SMALL, [2])).story[:4])
    ),
)


def test_a_story_knows_its_stalls() -> None:
    """A reader of ten tokens a second begins at the first; what comes sooner is no credit."""
    even = Story(came_at=0.0, tokens=[1.0, 1.1, 1.2])
    late = Story(came_at=0.0, tokens=[1.0, 1.1, 3.0])
    assert even.stalled_seconds == pytest.approx(0.0, abs=1e-9)
    assert late.stalled_seconds == pytest.approx(1.8)


@pytest.mark.limit(120)
def test_every_way_is_measured_kept_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four ways and two paced ones: each request has all its tokens, and none before it came."""
    monkeypatch.setattr(scales, "bursts", lambda _scale, _sizes: [TINY_BURST])
    path = tmp_path / "figures.json"
    words = ["--json", str(path), "--paced", "375", "--paced-host", "45"]
    program.main([*words, "--budget", "-1"])
    assert "call again" in capsys.readouterr().out
    program.main(words)
    rows = json.loads(path.read_text())["rows"]
    plain = [FCFS, RECOMPUTE, DRAM, LEASES]
    paced_ones = [f"{DRAM}, *paced* to 45 GB/s / 229", f"{LEASES}, *paced* to 375 GB/s / 229"]
    names = [*plain, *paced_ones]
    assert [row["way"] for row in rows.values()] == names
    for row in rows.values():
        assert len(row["first_tokens"]) == len(TINY_BURST.story)
        assert all(seconds > 0 for seconds in row["first_tokens"])
        assert row["first_token"][0] <= row["completion"][0]
        assert row["tokens_per_second"] > 0
        assert row["recomputed"] == 0 or row["way"] == RECOMPUTE
    monkeypatch.setattr(program, "engine", None)  # nothing is left to be computed
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    program.main([*words, "--png", str(tmp_path / "picture.png")])
    said = capsys.readouterr().out
    # Of FCFS itself, in both tables; others may be as soon by chance.
    first = [line for line in said.splitlines() if f"| {FCFS} |" in line]
    assert [line.count("| 1.0x better |") for line in first] == [1, 1]
    assert tables.NO_PLOTS in said


@pytest.mark.limit(120)
def test_a_trace_is_replayed_at_each_speed(tmp_path: Path) -> None:
    """Its requests at their times, of lengths for the engine."""
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    slow, fast = scales.replays(SMALL, trace, [1.0, 2.0], 10.0)
    assert [one.prompt_tokens for one in slow.story] == [10, 20, 10]
    assert [one.reply_tokens for one in slow.story] == [8, 8, 10]
    times = [[one.at - each.story[0].at for one in each.story] for each in (slow, fast)]
    assert times[1] == pytest.approx([0.5 * at for at in times[0]])
    path = tmp_path / "figures.json"
    words = ["--trace", str(trace), "--speed", "8", "--seconds", "4"]
    program.main(["--json", str(path), "--bursts", *words])
    rows = json.loads(path.read_text())["rows"]
    assert {row["scenario"] for row in rows.values()} == {"4 s of a trace at 8x"}
    assert len(rows) == 4


def test_copies_are_as_slow_as_they_are_said_to_be() -> None:
    """To and from leases, however they are made; afterwards they are as quick as before."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        wait_until(lambda: client.stats()["attached"], seconds=20, what="attached")
        cache = torch.ones(8, MIB // 4)
        pool = client.pool((MIB // 4,), cache.dtype)
        calls = (
            lambda: client.offload(cache).fetch(),
            lambda: pool.load(pool.store(cache, range(8)), cache, range(8)),
        )
        for call in calls:
            with paced(80 * MIB):  # 0.1 s for 8 MiB
                begin = time.perf_counter()
                call()
                assert time.perf_counter() - begin > 0.19
            quick = []
            for _ in range(5):
                begin = time.perf_counter()
                call()
                quick.append(time.perf_counter() - begin)
            assert min(quick) < 0.19


def test_host_memory_is_paced_where_that_is_asked_for() -> None:
    """Both ways; what is put in place within the device is not, nor is it where nobody asks."""
    cache = torch.ones(8, MIB // 4)
    near = Range(Memory(cache.clone().view(-1).view(torch.uint8)), 0, cache.nbytes)
    with host_client() as client:
        pool = client.pool((MIB // 4,), cache.dtype)

        def there_and_back() -> float:
            begin = time.perf_counter()
            pool.load(pool.store(cache, range(8)), cache, range(8))
            return time.perf_counter() - begin

        with paced(Rates(host=80 * MIB)):  # 0.1 s for 8 MiB
            assert there_and_back() > 0.19
        with paced(Rates(leases=1.0)):
            assert min(there_and_back() for _ in range(5)) < 0.19
    with paced(Rates(host=1.0)):  # 8 million seconds
        Rows(cache, (MIB // 4,), cache.dtype).read([near], torch.arange(8))


def test_a_swap_takes_as_many_iterations_of_the_toy_as_of_the_large_engine() -> None:
    """A mean request over one link, in iterations of either."""
    rates = Links(leases=375, host=45, part=scales.link_part(SMALL)).rates
    assert scales.link_part(scales.LARGE) == 1
    assert rates.host is not None
    iterations = []
    for scale, rate in ((SMALL, rates.host), (scales.LARGE, 45e9)):
        (burst,) = scales.bursts(scale, [50])
        tokens = sum(one.prompt_tokens + one.reply_tokens / 2 for one in burst.story)
        nbytes = tokens / len(burst.story) * scale.shape.token_bytes
        iterations.append(nbytes / rate / scale.iteration_seconds)
    assert iterations[0] == pytest.approx(iterations[1])
    assert iterations[0] == pytest.approx(0.6, abs=0.05)


def test_a_large_engine_bears_the_longest_request() -> None:
    """Whatever the generator or the trace asks for fits the cache, and a burst exceeds it by far."""
    tokens = scales.LARGE.blocks * 16
    (burst,) = scales.bursts(scales.LARGE, [50])
    lengths = [one.prompt_tokens + one.reply_tokens for one in burst.story]
    assert tokens > 14_000 + 1_000
    assert sum(lengths) > 3 * tokens
