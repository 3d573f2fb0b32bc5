"""Brokers that forget a limit, a drain or a restart: the oracle must see every one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from aqua_daemon.core.events import DrainRequested, Event
from aqua_daemon.core.instructions import AnswerDrain, Instruction
from aqua_daemon.core.model import BrokerSettings, GpuUuid
from tests.simulation.wrapped_broker import BrokenBroker


class HasNoQuota(BrokenBroker):
    """Every tenant may have everything."""

    def told(self, settings: BrokerSettings) -> BrokerSettings:
        """Forget the quota."""
        return replace(settings, tenant_quota_bytes=2**50)


class CountsNoLeases(BrokenBroker):
    """Every tenant may have any number of leases within its bytes."""

    def told(self, settings: BrokerSettings) -> BrokerSettings:
        """Forget how many there may be."""
        return replace(settings, tenant_quota_leases=2**30)


class CountsNoSessions(BrokenBroker):
    """Every tenant may have any number of sessions."""

    def told(self, settings: BrokerSettings) -> BrokerSettings:
        """Forget how many there may be."""
        return replace(settings, tenant_quota_sessions=2**30)


class OverbooksTheHost(BrokenBroker):
    """`store` slabs are granted without room to evacuate them to."""

    def told(self, settings: BrokerSettings) -> BrokerSettings:
        """Believe in more host memory than there is."""
        return replace(settings, host_pool_bytes=2**50, tenant_host_bytes=2**50)


class GrantsWhileRestarting(BrokenBroker):
    """A new daemon does not wait for anybody."""

    def told(self, settings: BrokerSettings) -> BrokerSettings:
        """Have no patience."""
        return replace(settings, restart_grace_seconds=0.0)


class LeavesWhatIsLentThere(BrokenBroker):
    """A drain asks nobody for anything."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Only look, and say that it was done."""
        if isinstance(event, DrainRequested):
            event = replace(event, is_dry_run=True)
        done = self.inner.handle(event, now=now)
        return tuple(
            replace(one, is_dry_run=False) if isinstance(one, AnswerDrain) else one for one in done
        )


class ForgetsDrains(BrokenBroker):
    """A new daemon lends whatever was drained."""

    def __init__(
        self, settings: BrokerSettings, now: float, drained: Iterable[GpuUuid] = ()
    ) -> None:
        del drained
        super().__init__(settings, now)
