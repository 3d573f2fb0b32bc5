"""The verdict: each broken promise is a sentence and an exit status of 1."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from click.testing import CliRunner, Result

from aqua_client.demo import __main__ as command
from aqua_client.demo import running
from aqua_client.demo.happenings import GpuBytes, TakenBack
from aqua_client.demo.model import Model
from aqua_client.demo.node import NodeFailed
from aqua_client.demo.parking import Parking
from aqua_client.demo.plan import Plan
from aqua_client.demo.serving import Served, Server
from aqua_client.demo.summary import Summary
from aqua_client.demo.watching import Watch
from tests.demo.stores import TINY, CopyStore, FlippingStore, ForgettingStore

TAKEN = TakenBack(
    gpu="SHM-3",
    asked_bytes=32 * 2**20,
    revoked_bytes=32 * 2**20,
    freed_bytes=32 * 2**20,
    quarantined_bytes=0,
    seconds=0.2,
    lent_again_bytes=256 * 2**20,
)


@dataclass(frozen=True)
class Fault:
    """What is broken, and a part of the sentence that says so."""

    store: Callable[[], CopyStore]
    sentence: str
    plan: Plan = TINY


FAULTS = {
    "a bit flipped": Fault(FlippingStore, "came back with other bytes"),
    "bytes forgotten": Fault(ForgettingStore, "differ from the run that never parked"),
    "nothing on a peer": Fault(
        lambda: CopyStore(tier="host"), "Nothing was parked on another GPU. The client fell back"
    ),
    "no revoke": Fault(lambda: CopyStore(revokes=0), "No revoke was served"),
    "budget passed": Fault(
        CopyStore, "more than the budget", replace(TINY, kv_budget_bytes=TINY.kv_budget_bytes // 8)
    ),
    "nothing parked": Fault(
        CopyStore, "Nothing was parked and fetched", replace(TINY, kv_budget_bytes=2**30)
    ),
}


def summary_of(model: Model, reference: Served, store: CopyStore, plan: Plan = TINY) -> Summary:
    """A true run with this store, put together as the demo does."""
    gpus = (GpuBytes(gpu="SHM-3", own=0, lent=32, quarantined=0, returning=0, free=10),)
    watch = Watch(gauges=lambda: gpus, stats=store.stats, tell=lambda _: None)
    watch.look()
    parking = Parking(store)
    served = Server(model, plan, tell=lambda _: None, parking=parking).serve_all()
    return running.summary(
        plan, reference, served, parking, watch=watch, taken_back=TAKEN, seconds=1.5
    )


def ran(monkeypatch: pytest.MonkeyPatch, outcome: Summary | NodeFailed, *options: str) -> Result:
    """The command, with a run that comes to this."""

    def run(_plan: Plan, _node: object, *, tell: object) -> Summary:
        assert callable(tell)
        if isinstance(outcome, NodeFailed):
            raise outcome
        return outcome

    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr(command, "Node", contextlib.nullcontext)
    return CliRunner().invoke(command.main, list(options))


def test_a_whole_run_passes(model: Model, reference: Served) -> None:
    """Nothing is said against a run that kept every promise."""
    summary = summary_of(model, reference, CopyStore())
    assert summary.faults() == []
    assert summary.lenders == {"SHM-3": 32}
    assert summary.peer_bytes == sum(summary.parked_bytes.values())


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_said_and_fails(
    name: str, model: Model, reference: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends with 1 and a sentence, in both forms of output."""
    fault = FAULTS[name]
    summary = summary_of(model, reference, fault.store(), fault.plan)
    plain = ran(monkeypatch, summary)
    assert plain.exit_code == 1
    assert fault.sentence in plain.stdout
    assert "PASSED" not in plain.stdout
    as_json = ran(monkeypatch, summary, "--json")
    assert as_json.exit_code == 1
    document = json.loads(as_json.stdout)
    assert not document["passed"]
    assert any(fault.sentence in sentence for sentence in document["faults"])


def test_an_owner_without_an_answer_is_a_fault(model: Model, reference: Served) -> None:
    """Also where its growth alone made the broker revoke."""
    summary = replace(summary_of(model, reference, CopyStore()), taken_back=None)
    assert summary.faults() == ["The owner that asked for its GPU's memory got no answer."]


@pytest.mark.parametrize(
    ("taken", "sentence"),
    [
        (replace(TAKEN, freed_bytes=0), "The burst on SHM-3 got nothing back"),
        (replace(TAKEN, lent_again_bytes=0), "Nothing of SHM-3 was lent again"),
    ],
)
def test_a_burst_without_reclaim_or_without_lending_again_fails(
    taken: TakenBack,
    sentence: str,
    model: Model,
    reference: Served,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command ends with 1 and says which of the two did not happen."""
    summary = replace(summary_of(model, reference, CopyStore()), taken_back=taken)
    result = ran(monkeypatch, summary)
    assert result.exit_code == 1
    assert sentence in result.stdout


def test_json_is_all_there_is_on_stdout(
    model: Model, reference: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine can read the output as it is, and finds the summary's every part."""
    result = ran(monkeypatch, summary_of(model, reference, CopyStore()), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    assert document["passed"]
    assert document["outputs_equal"]
    assert document["parked_bytes_equal"]
    assert document["taken_back"]["gpu"] == "SHM-3"
    assert set(Summary.__dataclass_fields__) <= set(document)


def test_plain_summary_names_every_figure(
    model: Model, reference: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversations, peak and budget, bytes by tier, revokes, equality, seconds."""
    result = ran(monkeypatch, summary_of(model, reference, CopyStore()))
    assert result.exit_code == 0
    for name in (
        "conversations",
        "resident KV, peak",
        "parked",
        "fetched",
        "lent at most",
        "revokes served",
        "to host because of",
        "taken back",
        "outputs equal",
        "parked bytes equal",
        "seconds",
        "PASSED",
    ):
        assert any(line.startswith(name) for line in result.stdout.splitlines()), name


def test_a_node_that_does_not_come_up_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says what the daemon wrote, and stdout stays empty for a machine."""
    result = ran(monkeypatch, NodeFailed("the daemon did not come up: no room"), "--json")
    assert result.exit_code == 1
    assert "no room" in result.stderr
    assert result.stdout == ""


def test_a_tensor_in_both_tiers_counts_as_gone_to_a_peer(model: Model, reference: Served) -> None:
    """`mixed` is not nothing."""
    summary = summary_of(model, reference, CopyStore(tier="mixed"))
    assert summary.peer_bytes > 0
    assert summary.faults() == []
