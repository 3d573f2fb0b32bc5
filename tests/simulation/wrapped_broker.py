"""The real broker, wrapped to be broken."""

from __future__ import annotations

from collections.abc import Iterable

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.events import Event
from aqua_daemon.core.instructions import Instruction
from aqua_daemon.core.model import BrokerSettings, GpuUuid
from aqua_daemon.core.node_snapshot import NodeSnapshot


class BrokenBroker:
    """The real broker; what is broken is in the classes that derive from it."""

    def __init__(
        self, settings: BrokerSettings, now: float, drained: Iterable[GpuUuid] = ()
    ) -> None:
        self.inner = Broker(self.told(settings), now=now, strict=False, drained=drained)

    def told(self, settings: BrokerSettings) -> BrokerSettings:
        """The settings that it goes by."""
        return settings

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """As the real one, unless a subclass says otherwise."""
        return self.inner.handle(event, now=now)

    def snapshot(self, now: float) -> NodeSnapshot:
        """As the real one."""
        return self.inner.snapshot(now)

    def check_integrity(self) -> None:
        """Its own checks are off: it is the oracle that is under test."""

    def next_deadline(self) -> float | None:
        """As the real one."""
        return self.inner.next_deadline()
