"""The model adds up, and shows what fair slices are for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from aqua_client.scheduling import Swap
from tests.benchmarks.serving_model import __main__ as program
from tests.benchmarks.serving_model import arrivals, policies
from tests.benchmarks.serving_model.arrivals import Arrival
from tests.benchmarks.serving_model.engine import Engine, Hardware, Story
from tests.benchmarks.serving_model.policies import FCFS, POLICIES, Policy

MIB = 2**20
SMALL = Hardware(kv_bytes=512 * MIB)
FAIR = {one.link: one for one in POLICIES if one.settings is policies.DEFAULTS and not one.admits}
BURST = arrivals.a_burst(40, per_second=3, seconds=12, seed=5)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_every_policy_serves_everybody(policy: Policy) -> None:
    """Each reply is as long as it was to be, in order of time, and no block is lost."""
    coming = [one for one in BURST if one.prompt_tokens < 2000][:30]
    engine = Engine(SMALL, policy.scheduler(SMALL), policy.swap(SMALL), admits=policy.admits)
    stories = engine.replay(coming)
    assert [one.done_tokens for one in stories] == [one.reply_tokens for one in coming]
    assert all(
        one.arrival.at < one.first_token_at <= one.last_token_at <= engine.now for one in stories
    )
    assert engine.free_blocks == SMALL.blocks
    assert (engine.moved.nbytes > 0) == (policy.link in policies.LINK_BYTES_PER_SECOND)


def test_one_request_alone_takes_what_its_parts_take() -> None:
    """Two chunks of prompt, then an iteration a token."""
    hardware = Hardware()
    engine = Engine(hardware, Policy(name=FCFS).scheduler(hardware), None)
    (story,) = engine.replay([Arrival(at=1.0, prompt_tokens=3000, reply_tokens=11)])
    assert story.first_token_at - 1.0 == pytest.approx(2 * 0.006 + 3000 / 40_000)
    assert story.last_token_at - story.first_token_at == pytest.approx(10 * 0.00603)
    assert story.stalled_seconds == 0


def test_a_stall_is_what_a_reader_waits() -> None:
    """Ten tokens a second are read; what comes sooner is saved up."""
    story = Story(arrival=Arrival(at=0.0, prompt_tokens=1, reply_tokens=4))
    for at in (1.0, 1.01, 1.5, 1.6):
        story.answer(at)
    assert story.stalled_seconds == pytest.approx(0.3)  # two tokens are read by 1.2


def test_a_link_carries_no_more_than_it_can() -> None:
    """A swap hides behind what is computed, and what is longer than that does not."""
    engine = Engine(Hardware(), Policy(name=FCFS).scheduler(Hardware()), None)
    assert engine._seconds(1, 0, 0.001) == pytest.approx(0.00603 + 0.0002)
    assert engine._seconds(1, 0, 1.0) == pytest.approx(1.0)


def test_write_through_leaves_the_last_block_to_copy() -> None:
    """Preempted, a request costs a block out; back come all."""
    swap = Swap(
        bytes_per_token=10,
        store_bytes_per_second=100,
        fetch_bytes_per_second=1000,
        writes_through=True,
    )
    assert swap.seconds(35, 16) == pytest.approx(3 * 10 / 100 + 35 * 10 / 1000)


def test_near_capacity_fair_slices_over_leases_are_worth_it() -> None:
    """The first token comes much sooner, at no cost in tokens; what is recomputed costs some."""
    chosen = [Policy(name=FCFS), FAIR["leases"], FAIR["DRAM"], FAIR["recompute"]]
    coming = arrivals.a_burst(10, per_second=9, seconds=30, seed=2)
    hardware = Hardware(kv_bytes=3072 * MIB)
    fcfs, leases, dram, recompute = program.compare(coming, hardware, policies=chosen).values()
    assert leases.first_token.p99 * 10 < fcfs.first_token.p99
    assert leases.tokens_per_second > 0.97 * fcfs.tokens_per_second
    assert leases.completion.p99 < 2 * fcfs.completion.p99
    assert dram.completion.p50 >= leases.completion.p50
    assert recompute.tokens_per_second < leases.tokens_per_second


def test_the_program_prints_and_keeps_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model says that it is one."""
    path = tmp_path / "results" / "model.json"
    words = ["--seconds", "2", "--speed", "1", "--bursts", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["serving_model", *words])
    monkeypatch.setattr(program, "POLICIES", POLICIES[:2])
    program.main()
    printed = capsys.readouterr().out
    assert "a model, not a measurement" in printed
    assert "## 1 times real speed" in printed
    document = json.loads(path.read_text())
    assert document["level"] == "a model, not a measurement"
    assert set(document["1 times real speed"]["policies"]) == {one.name for one in POLICIES[:2]}
