"""The outside of a broker, as a model: keepers with orders in flight, clients, owners.

It carries out what the broker asks for, late or never if it is told so, and knows what each process
has mapped. What happens when is drawn by test_histories.py and its rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.events import (
    Event,
    GpuReported,
    KeeperAttached,
    KeeperEnded,
    LossTold,
    ProcessEnded,
    SentinelEnded,
    SessionOpened,
    SlabAllocated,
    SlabAllocationFailed,
    SlabFreed,
)
from aqua_daemon.core.instructions import (
    AllocateSlab,
    AnswerGranted,
    FreeSlab,
    Instruction,
    SendRevoke,
    TellLost,
)
from aqua_daemon.core.model import (
    BrokerSettings,
    GpuReport,
    GpuUuid,
    LeaseId,
    LeaseState,
    ProcessIdentity,
    RequestId,
    SafetyClass,
    SessionId,
    SlabTag,
    TenantName,
    owner_of,
)
from aqua_daemon.core.sizes import GRANT_RESERVE_FACTOR, MIB
from tests.core.bench import process

GPUS = tuple(GpuUuid(f"SHM-{number}") for number in range(3))
KEEPERS = (GPUS[:2], GPUS[2:])  # the first keeps two GPUs
TENANTS = (TenantName("alice"), TenantName("alice+blue"), TenantName("bob"))
TOTAL = 96 * MIB
SETTINGS = BrokerSettings(
    gpus=GPUS,
    smallest_slab_bytes=4 * MIB,
    largest_slab_bytes=32 * MIB,
    host_pool_bytes=160 * MIB,
    tenant_host_bytes=120 * MIB,
    tenant_quota_bytes=96 * MIB,
)


@dataclass
class Client:
    session_id: SessionId
    tenant: TenantName
    process: ProcessIdentity
    home: GpuUuid
    is_alive: bool = True
    has_heir: bool = True  # the process itself, until it dies alone
    is_attached: bool = True
    maps: set[LeaseId] = field(default_factory=set)
    asked_back: set[LeaseId] = field(default_factory=set)

    @property
    def can_touch(self) -> bool:
        return self.is_alive or self.has_heir


@dataclass
class Keeper:
    gpus: tuple[GpuUuid, ...]
    is_linked: bool = True
    slabs: dict[LeaseId, SlabTag] = field(default_factory=dict)
    orders: list[AllocateSlab | FreeSlab] = field(default_factory=list)


class Outside:
    """A node around a strict broker."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.count = 0
        self.clients: dict[SessionId, Client] = {}
        self.keepers = [Keeper(gpus=gpus) for gpus in KEEPERS]
        self.owners: dict[GpuUuid, dict[int, int]] = {gpu: {} for gpu in GPUS}
        self.broker = Broker(SETTINGS, now=self.now, strict=True)
        for keeper in self.keepers:
            self.attach(keeper)
        for home in GPUS:
            self.come(TENANTS[0], home)

    def come(self, tenant: TenantName, home: GpuUuid) -> None:
        session_id = SessionId(self.new("session"))
        client = Client(
            session_id=session_id, tenant=tenant, process=process(self.count), home=home
        )
        self.clients[session_id] = client
        self.handle(
            SessionOpened(
                session_id=session_id,
                tenant=tenant,
                process=client.process,
                home_gpu=home,
                is_admin=False,
            )
        )

    def answer(self, there: Keeper, orders: int, *, fails: bool) -> None:
        for _ in range(orders):
            if not (there.is_linked and there.orders):
                return
            order = there.orders.pop(0)
            if isinstance(order, AllocateSlab) and fails:
                failed = SlabAllocationFailed(lease_id=order.tag.lease_id, message="full")
                self.handle(failed)
                continue
            self.carry_out_order(there, order)
            if isinstance(order, AllocateSlab):
                self.handle(SlabAllocated(lease_id=order.tag.lease_id))
            else:
                self.handle(SlabFreed(lease_id=order.lease_id))
                self.handle(SlabFreed(lease_id=order.lease_id))  # an answer that comes twice

    def end_keeper(self, there: Keeper) -> None:
        for client in self.clients.values():
            client.maps.difference_update(there.slabs)
        there.slabs.clear()
        there.orders.clear()
        there.is_linked = False
        self.handle(KeeperEnded(gpus=there.gpus))

    def restart_daemon(self, carried_out: int) -> None:
        drained = self.broker.snapshot(self.now).drained
        self.broker = Broker(SETTINGS, now=self.now, strict=True, drained=drained)
        for client in self.clients.values():
            client.is_attached = False
            client.asked_back.clear()
        for keeper in self.keepers:
            keeper.is_linked = False
            self.lose_orders(keeper, carried_out)

    def handle(self, event: Event) -> None:
        for instruction in self.broker.handle(event, now=self.now):
            self.carry_out(instruction)

    def carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case AllocateSlab(tag=tag):
                self.keeper_of(tag.lender).orders.append(instruction)
            case FreeSlab(gpu=gpu):
                self.keeper_of(gpu).orders.append(instruction)
            case AnswerGranted(lease=lease):
                self.clients[lease.session_id].maps.add(lease.lease_id)
            case SendRevoke(session_id=session_id, lease_ids=lease_ids):
                self.clients[session_id].asked_back.update(lease_ids)
            case TellLost(session_id=session_id, lease_ids=lease_ids):
                self.clients[session_id].maps.difference_update(lease_ids)
                self.handle(LossTold(lease_ids=lease_ids))
            case _:
                pass

    def carry_out_order(self, keeper: Keeper, order: AllocateSlab | FreeSlab) -> None:
        if isinstance(order, AllocateSlab):
            keeper.slabs[order.tag.lease_id] = order.tag
            return
        holders = [
            client.session_id
            for client in self.clients.values()
            if client.can_touch and order.lease_id in client.maps
        ]
        assert not holders, f"{order.lease_id} is freed while {holders} have it mapped"
        keeper.slabs.pop(order.lease_id, None)

    def lose_orders(self, keeper: Keeper, carried_out: int) -> None:
        for order in keeper.orders[:carried_out]:
            self.carry_out_order(keeper, order)  # and its answer is lost
        keeper.orders.clear()

    def attach(self, keeper: Keeper) -> None:
        keeper.is_linked = True
        reports = tuple(self.make_report(keeper, gpu) for gpu in keeper.gpus)
        self.handle(KeeperAttached(reports=reports, slabs=tuple(keeper.slabs.values())))
        for tag in tuple(keeper.slabs.values()):  # the proofs that the keeper was given
            client = self.clients[tag.session_id]
            if not client.is_alive:
                self.handle(ProcessEnded(session_id=tag.session_id))
            if not client.can_touch:
                self.handle(SentinelEnded(session_id=tag.session_id))

    def report(self, gpu: GpuUuid) -> None:
        keeper = self.keeper_of(gpu)
        if keeper.is_linked:
            self.handle(GpuReported(report=self.make_report(keeper, gpu)))

    def make_report(self, keeper: Keeper, gpu: GpuUuid) -> GpuReport:
        slabs = {tag.lease_id: tag.nbytes for tag in keeper.slabs.values() if tag.lender == gpu}
        return GpuReport(
            gpu=gpu, total_bytes=TOTAL, slab_bytes=slabs, owner_bytes=dict(self.owners[gpu])
        )

    def check_grant(self, client: Client) -> None:
        """What was just promised broke no reserve, no quota, no pool, and is not its own GPU's."""
        snapshot = self.broker.snapshot(self.now)
        lease = snapshot.leases[-1]
        gpu = next(found for found in snapshot.gpus if found.gpu == lease.lender)
        tenant = next(found for found in snapshot.tenants if found.tenant == client.tenant)
        for quota in snapshot.quotas:
            if quota.tenant in {client.tenant, owner_of(client.tenant)}:
                assert quota.held_bytes <= quota.nbytes
        assert gpu.free_bytes >= GRANT_RESERVE_FACTOR * gpu.reserve_bytes
        assert lease.lender != client.home
        if lease.safety_class is SafetyClass.STORE:
            assert snapshot.host_reserved_bytes <= SETTINGS.host_pool_bytes
            assert tenant.host_reserved_bytes <= SETTINGS.tenant_host_bytes

    def admin(self) -> SessionId:
        """A session of an admin's that holds nothing, opened for one request."""
        session_id = SessionId(self.new("admin"))
        self.handle(
            SessionOpened(
                session_id=session_id,
                tenant=TenantName("root"),
                process=process(self.count),
                home_gpu=None,
                is_admin=True,
            )
        )
        return session_id

    def coming_bytes(self, gpu: GpuUuid) -> int:
        coming = {LeaseState.REVOKING, LeaseState.RETURNED, LeaseState.FREEING}
        return sum(
            lease.nbytes
            for lease in self.broker.snapshot(self.now).leases
            if lease.lender == gpu
            and (
                lease.state in coming or (lease.revocation and lease.state is LeaseState.ALLOCATING)
            )
        )

    def keeper_of(self, gpu: GpuUuid) -> Keeper:
        return next(keeper for keeper in self.keepers if gpu in keeper.gpus)

    @property
    def alive(self) -> list[Client]:
        return [client for client in self.clients.values() if client.is_alive]

    @property
    def attached(self) -> list[Client]:
        return [client for client in self.clients.values() if client.is_attached]

    @property
    def detached(self) -> list[Client]:
        return [client for client in self.alive if not client.is_attached]

    @property
    def heirs(self) -> list[Client]:
        found = self.clients.values()
        return [client for client in found if not client.is_alive and client.has_heir]

    def pick(self, clients: list[Client], pick: int) -> Client:
        return clients[pick % len(clients)]

    def request_id(self) -> RequestId:
        return RequestId(self.new("request"))

    def new(self, kind: str) -> str:
        self.count += 1
        return f"{kind}-{self.count}"
