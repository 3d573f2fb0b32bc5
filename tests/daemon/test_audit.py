"""Every step of every slab is one line of the log that says who, what and why."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable
from dataclasses import replace

import pytest

from aqua_daemon.adapters.audit import AUDIT_KEYS
from aqua_daemon.adapters.journal import LogJournal
from aqua_daemon.adapters.json_lines import JsonLines
from aqua_daemon.core.books import Books
from aqua_daemon.core.broker import Broker
from aqua_daemon.core.events import Event, ProcessEnded, SentinelEnded
from aqua_daemon.core.instructions import Instruction, NoteMove
from aqua_daemon.core.ledger import Ledger
from aqua_daemon.core.lifecycle import TRANSITIONS, Move
from aqua_daemon.core.model import (
    BrokerSettings,
    GpuUuid,
    HostRoom,
    LeaseId,
    LeaseState,
    Revocation,
    RevokeReason,
    Session,
    SessionState,
)
from aqua_daemon.core.node_snapshot import NodeSnapshot
from aqua_daemon.core.turn import Turn
from tests.core.bench import HOME, NEAR, SETTINGS, Bench
from tests.daemon.samples import LEASE, LEASE_ID, PROCESS, SESSION_ID, TENANT
from tests.nodes import REPOSITORY
from tests.simulation.run import simulate

Line = dict[str, object]
REVOKED = Revocation(reason=RevokeReason.RECLAIM, started_at=1.0, deadline=3.0)


class Written:
    """A journal at the usual level, and what it has written of slabs."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(JsonLines())
        logger = logging.getLogger("aqua.test.audit")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [handler]
        self._journal = LogJournal(clock=lambda: 1.0, logger=logger)

    def lines(self, instructions: tuple[Instruction, ...]) -> list[Line]:
        """What is written of these."""
        for instruction in instructions:
            self._journal.instructed(instruction)
        text = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if line.get("instruction") == "NoteMove"]


@pytest.mark.parametrize(("before", "move"), TRANSITIONS, ids=str)
def test_each_step_of_the_table_is_written(before: LeaseState | None, move: Move) -> None:
    """From where to where, by whom, and for what: the reason of the revoke, or the step itself."""
    ledger = Ledger((HOME, NEAR))
    turn = Turn(Books(settings=SETTINGS, ledger=ledger, started_at=0.0), 20.0)
    ledger.open_session(session_of_sample())
    after = TRANSITIONS[before, move]
    lease = replace(LEASE, state=before or after or LEASE.state)
    if before is None:
        turn.enter(lease, move)
    else:
        ledger.enter(lease)
        turn.move(lease, move, revocation=REVOKED if move is Move.REVOKED else None)
    (line,) = Written().lines(tuple(turn.instructions))
    assert {key: line[key] for key in AUDIT_KEYS} == {
        "tenant": TENANT,
        "uid": PROCESS.uid,
        "pid": PROCESS.pid,
        "session_id": SESSION_ID,
        "lease_id": LEASE_ID,
        "gpu": NEAR,
        "nbytes": LEASE.nbytes,
        "before": before and before.value,
        "after": after and after.value,
        "move": move.value,
        "reason": "reclaim" if move is Move.REVOKED else move.value,
    }


def test_the_reason_stays_with_a_lease_to_its_end() -> None:
    """Who reads the last line of a lease sees what it went for."""
    bench, written = Bench(), Written()
    session = bench.open()
    lease_id = bench.grant(session)
    lines = written.lines(bench.handle(ProcessEnded(session_id=session)))
    lines += written.lines(bench.handle(SentinelEnded(session_id=session)))
    bench.freed(lease_id)
    lines += written.lines(bench.last)
    assert [(line["move"], line["reason"]) for line in lines] == [
        ("revoked", "dead"),
        ("proved_gone", "dead"),
        ("free_asked", "dead"),
        ("freed", "dead"),
    ]
    assert {line["lease_id"] for line in lines} == {lease_id}


def test_a_whole_life_under_faults_is_written() -> None:
    """The lines alone tell where each slab of a simulated node is, after every event."""
    moves: set[tuple[object, object]] = set()
    for seed in range(3):
        outcome = simulate(
            seed,
            200,
            lambda settings, now, drained: AuditedBroker(settings, now, drained, moves),
        )
        assert not outcome.failure, outcome.failure + outcome.where
    assert len(moves) >= 12, moves


def test_the_readme_names_the_keys() -> None:
    """An operator filters by them."""
    text = (REPOSITORY / "README.md").read_text()
    watch = text[text.index("*Watch.*") : text.index("*Turn off.*")]
    assert [key for key in AUDIT_KEYS if f"`{key}`" not in watch] == []


class AuditedBroker:
    """A broker whose lines are compared with its books after each event."""

    def __init__(
        self,
        settings: BrokerSettings,
        now: float,
        drained: Iterable[GpuUuid],
        moves: set[tuple[object, object]],
    ) -> None:
        self.inner = Broker(settings, now=now, strict=True, drained=drained)
        self._written = Written()
        self._told: dict[object, object] = {}
        self._moves = moves

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        instructions = self.inner.handle(event, now=now)
        for line in self._written.lines(instructions):
            lease_id = line["lease_id"]
            assert line["before"] == self._told.get(lease_id), line
            assert line["uid"] is not None, line
            assert line["pid"] is not None, line
            assert line["reason"], line
            self._moves.add((line["before"], line["move"]))
            if line["after"] is None:
                del self._told[lease_id]
            else:
                self._told[lease_id] = line["after"]
        if any(isinstance(one, NoteMove) for one in instructions):
            assert self._told == self._states(now)
        return instructions

    def snapshot(self, now: float) -> NodeSnapshot:
        return self.inner.snapshot(now)

    def next_deadline(self) -> float | None:
        return self.inner.next_deadline()

    def check_integrity(self) -> None:
        assert self._told == self._states(0.0)
        self.inner.check_integrity()

    def _states(self, now: float) -> dict[LeaseId, str]:
        return {one.lease_id: one.state.value for one in self.inner.snapshot(now).leases}


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 2),
    ],
)
def test_the_systemd_journal_is_told_the_priority(level: int, priority: int) -> None:
    """Before the line and only there: `journalctl -p warning` finds what is grave."""
    record = logging.LogRecord("aqua", level, "", 0, "said", (), None)
    plain = JsonLines().format(record)
    assert json.loads(plain)["message"] == "said"
    assert JsonLines(has_priority=True).format(record) == f"<{priority}>{plain}"


def session_of_sample() -> Session:
    return Session(
        session_id=SESSION_ID,
        tenant=TENANT,
        process=PROCESS,
        home_gpu=HOME,
        is_admin=False,
        state=SessionState.LIVE,
        heard_at=0.0,
        host_room=HostRoom(revision=0, nbytes=0),
    )
