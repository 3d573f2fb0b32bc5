"""A whole node: GPUs, keepers, a daemon that comes and goes, clients that do too; and one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.model import (
    BrokerSettings,
    GpuUuid,
    LeaseId,
    ProcessIdentity,
    SessionId,
    TenantName,
    owner_of,
)
from tests.simulation.admins import Admins
from tests.simulation.agenda import Agenda
from tests.simulation.audit import Audit
from tests.simulation.chance import Chance
from tests.simulation.clients import Client
from tests.simulation.daemon import BrokerLike, Daemon
from tests.simulation.keepers import Keeper
from tests.simulation.oracle import Oracle
from tests.simulation.scenario import Scenario, scenario_for
from tests.simulation.stage import Stage
from tests.simulation.story import Story
from tests.simulation.truth import Gpu, Process, Slab

MakeBroker = Callable[[BrokerSettings, float, Iterable[GpuUuid]], BrokerLike]
_REPORT_SECONDS = 1.0


def real_broker(settings: BrokerSettings, now: float, drained: Iterable[GpuUuid]) -> BrokerLike:
    """The broker as it is."""
    return Broker(settings, now=now, strict=True, drained=drained)


class Node:
    """Everything that exists, and what can be done to it."""

    def __init__(
        self,
        seed: int,
        make_broker: MakeBroker = real_broker,
        scenario: Scenario | None = None,
    ) -> None:
        chance = Chance(seed)
        self.scenario: Scenario = scenario or scenario_for(chance)
        self.stage = Stage(agenda=Agenda(), chance=chance, story=Story())
        total = self.scenario.gpu_bytes
        self.gpus = {gpu: Gpu(gpu, total) for gpu in self.scenario.settings.gpus}
        self.clients: list[Client] = []
        self.families: dict[SessionId, Process] = {}
        self.daemon: Daemon | None = None
        self.oracle = Oracle(
            self.scenario.settings,
            stage=self.stage,
            find_slab=self.find_slab,
            find_process=self.families.get,
        )
        self.audit = Audit(self.oracle, list(self.gpus.values()), self.clients)
        self.keepers = [self._new_keeper(gpus) for gpus in self.scenario.keepers]
        self.admins = Admins(
            self.scenario.settings.gpus, stage=self.stage, find_daemon=lambda: self.daemon
        )
        self._make_broker = make_broker
        self._next_pid = 100
        self.start_daemon()
        for _ in range(self.scenario.clients):
            self.start_client()
        self._report()

    def find_slab(self, lease_id: LeaseId) -> Slab | None:
        """The slab as it is in a keeper's hands, if it is."""
        for gpu in self.gpus.values():
            slab = gpu.slabs.get(lease_id)
            if slab is not None:
                return slab
        return None

    # --- the daemon --------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """A new daemon, with empty books."""
        if self.daemon is not None:
            return
        self.oracle.daemon_started()
        broker = self._make_broker(self.scenario.settings, self.stage.now, self.admins.kept)
        self.oracle.grants.reserved_bytes = lambda: (
            broker.snapshot(self.stage.now).host_reserved_bytes
        )
        self.daemon = Daemon(
            broker,
            stage=self.stage,
            witness=self.oracle,
            families=self.families,
        )
        self.stage.tell("a daemon starts")
        for keeper in self.keepers:
            self.daemon.link_to(keeper)

    def kill_daemon(self) -> None:
        """The daemon dies, and starts again after a while."""
        if self.daemon is not None:
            self.stage.count("daemon restarts")
            self.stage.tell("the daemon is killed")
            self.daemon.stop()
            self.daemon = None
            self.stage.agenda.after(self.stage.chance.between(0.05, 2.0), self.start_daemon)

    # --- keepers -----------------------------------------------------------------------------

    def kill_keeper(self, number: int) -> None:
        """A keeper dies with all its slabs; another takes its place."""
        keeper = self.keepers[number]
        self.stage.count("keeper losses")
        self.stage.tell("the keeper of {} dies", keeper.uuids)
        keeper.end()
        self.keepers[number] = self._new_keeper(keeper.uuids)
        if self.daemon is not None:
            tell = partial(self._tell_of_keeper, self.daemon, number)
            self.stage.agenda.after(self.stage.chance.latency(), tell)

    def report_soon(self, gpu: GpuUuid) -> None:
        """The use of a GPU has changed: its keeper will see it."""
        delay = self.stage.chance.between(0.0, 0.3)
        self.stage.agenda.after(delay, partial(self._report_gpu, gpu))

    # --- clients -----------------------------------------------------------------------------

    def start_client(self, tenant: TenantName | None = None) -> Client:
        """A new process of some tenant; its pid may be one that was used before."""
        chance, scenario = self.stage.chance, self.scenario
        tenant = tenant or chance.pick(scenario.tenants)
        gone = [c.process for c in self.clients if not c.process.family_lives]
        pid = chance.pick(gone).identity.pid if gone and chance.happens(0.3) else self.new_pid()
        ticks = self.new_pid()
        uid = int(owner_of(tenant).removeprefix("uid-"))
        identity = ProcessIdentity(pid=pid, start_ticks=ticks, uid=uid)
        client = Client(
            Process(identity, tenant),
            home_gpu=chance.pick(scenario.homes),
            term_seconds=scenario.settings.term_seconds,
            stage=self.stage,
            judge=self.oracle,
            find_daemon=lambda: self.daemon,
            find_slab=self.find_slab,
        )
        self.clients.append(client)
        return client

    def new_pid(self) -> int:
        """A number that was not used before."""
        self._next_pid += 1
        return self._next_pid

    def kill_client(self, client: Client) -> None:
        """The process dies, whatever it was doing; children live on."""
        self.stage.tell("process {} dies", client.process.identity.pid)
        client.process.end()
        for gpu in self.gpus.values():
            if gpu.owners.pop(client.process.identity.pid, None):
                self.report_soon(gpu.uuid)
        self._family_changed(client)

    def end_child(self, client: Client, child: Process) -> None:
        """A forked child ends."""
        child.end()
        self._family_changed(client)

    def living(self) -> list[Client]:
        """The clients whose process lives."""
        return [client for client in self.clients if client.process.is_alive]

    def _family_changed(self, client: Client) -> None:
        client.hang_up_if_dead()
        if self.daemon is not None:
            self.daemon.look_at_process(client.process)

    def _new_keeper(self, gpus: tuple[GpuUuid, ...]) -> Keeper:
        kept = [self.gpus[gpu] for gpu in gpus]
        return Keeper(
            kept,
            chance=self.stage.chance,
            on_free=self.oracle.freed,
            on_failure=partial(self.stage.count, "allocations failed"),
        )

    def _tell_of_keeper(self, daemon: Daemon, number: int) -> None:
        if daemon.is_up:
            daemon.links[number].replace(self.keepers[number])

    def _report(self) -> None:
        for gpu in self.gpus:
            self._report_gpu(gpu)
        self.stage.agenda.after(_REPORT_SECONDS, self._report)

    def _report_gpu(self, gpu: GpuUuid) -> None:
        for link in self.daemon.links if self.daemon else ():
            if gpu in link.keeper.uuids:
                link.report(gpu)
