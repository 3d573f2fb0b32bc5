"""A service between a broker that says what a test wrote down, and fakes of its ports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from aqua_daemon.core import events, instructions
from aqua_daemon.core.events import Event
from aqua_daemon.core.instructions import Instruction
from aqua_daemon.core.node_snapshot import NodeSnapshot
from aqua_daemon.service import BrokerService
from tests.daemon.samples import GPU, LEASE, MIB, REQUEST_ID, ROOM, SESSION_ID, SNAPSHOT
from tests.fakes.clock import FakeClock
from tests.fakes.journal import FakeJournal
from tests.fakes.keepers import FakeKeepers
from tests.fakes.sessions import FakeSessions

GRANTED = instructions.AnswerGranted(session_id=SESSION_ID, request_id=REQUEST_ID, lease=LEASE)
KEEPALIVE = events.KeepaliveReceived(
    session_id=SESSION_ID, request_id=REQUEST_ID, uses=(), host_room=ROOM
)
KEPT = instructions.AnswerKeepalive(
    session_id=SESSION_ID, request_id=REQUEST_ID, ended=(), unheard=()
)


class ScriptedBroker:
    """Says for each kind of event what the test wrote down: instructions, or an error to raise."""

    def __init__(self) -> None:
        self.script: dict[type[Event], tuple[Instruction, ...] | Exception] = {}
        self.handled: list[tuple[Event, float]] = []
        self.deadline: float | None = None
        self.when_handled: Callable[[Event], None] = lambda _event: None

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        self.handled.append((event, now))
        self.when_handled(event)
        answer = self.script.get(type(event), ())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def snapshot(self, now: float) -> NodeSnapshot:
        return replace(SNAPSHOT, now=now)

    def next_deadline(self) -> float | None:
        return self.deadline


class Bench:
    """A service between a scripted broker and fakes."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.journal = FakeJournal()
        self.broker = ScriptedBroker()
        self.service = BrokerService(self.broker, clock=self.clock, journal=self.journal)
        self.keepers = FakeKeepers(self.service.submit, gpus=[GPU], gpu_bytes=64 * MIB)
        self.sessions = FakeSessions(self.service.submit)
        self.service.connect(keepers=self.keepers, sessions=self.sessions)

    @property
    def handled(self) -> list[str]:
        return [type(event).__name__ for event, _ in self.broker.handled]


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until *condition* holds."""
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110 - the condition is of another object
            await asyncio.sleep(0.001)
