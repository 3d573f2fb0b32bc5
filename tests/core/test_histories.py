"""Any history of a node leaves the books balanced, and frees nothing that somebody still maps.

A model of the outside (keepers with orders in flight, clients with what they have mapped, owners)
is driven at random against a strict broker: keepers answer late, fail, lose their link or die,
clients die with or without heirs, go silent, answer late, and the daemon restarts from what the
keepers hold. Slower faults over whole nodes are the simulator's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.errors import BrokerBug, BrokerError, RefusedForNow
from aqua_daemon.core.events import (
    Event,
    GpuReported,
    KeepaliveReceived,
    KeeperAttached,
    KeeperDetached,
    KeeperEnded,
    LeaseRequested,
    LeasesReleased,
    LossTold,
    OfferMade,
    PresenceEnded,
    ProcessEnded,
    ReclaimRequested,
    RevokeAcknowledged,
    SentinelEnded,
    SessionClosed,
    SessionOpened,
    SessionReattached,
    SlabAllocated,
    SlabAllocationFailed,
    SlabFreed,
    Ticked,
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
)
from aqua_daemon.core.sizes import GRANT_RESERVE_FACTOR, MIB
from tests.core.bench import process, room, use

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
MOST_CLIENTS = 5
OWNED = tuple(nbytes * MIB for nbytes in (0, 4, 16, 40, 80))  # by the processes of a GPU
PICK = st.integers(0, 10_000)  # which of what there is


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


class Histories(RuleBasedStateMachine):
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

    # Clients

    @precondition(lambda self: len(self.alive) < MOST_CLIENTS)
    @rule(tenant=st.sampled_from(TENANTS), home=st.sampled_from(GPUS))
    def a_process_comes(self, tenant: TenantName, home: GpuUuid) -> None:
        self.come(tenant, home)

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

    @precondition(lambda self: self.attached)
    @rule(
        pick=PICK,
        nbytes=st.sampled_from((4 * MIB, 16 * MIB, 32 * MIB)),
        safety_class=st.sampled_from(SafetyClass),
        times=st.integers(1, 5),
        answered=st.sampled_from((True, True, False)),
    )
    def a_client_asks(
        self,
        pick: int,
        nbytes: int,
        safety_class: SafetyClass,
        times: int,
        answered: bool,  # noqa: FBT001 - drawn
    ) -> None:
        client = self.pick(self.attached, pick)
        for _ in range(times):
            try:
                self.handle(
                    LeaseRequested(
                        session_id=client.session_id,
                        request_id=self.request_id(),
                        lease_id=LeaseId(self.new("lease")),
                        nbytes=nbytes,
                        safety_class=safety_class,
                    )
                )
            except RefusedForNow:
                continue
            self.check_grant(client)
        if answered:
            for keeper in self.keepers:
                self.answer(keeper, len(keeper.orders), fails=False)

    @precondition(lambda self: self.attached)
    @rule(pick=PICK, lease=PICK)
    def a_client_releases(self, pick: int, lease: int) -> None:
        client = self.pick(self.attached, pick)
        mine = sorted(client.maps)[lease % (len(client.maps) or 1) :][:2]
        foreign = [found for other in self.clients.values() for found in other.maps][:1]
        client.maps.difference_update(mine)
        self.handle(
            LeasesReleased(
                session_id=client.session_id,
                request_id=self.request_id(),
                lease_ids=(*mine, *(found for found in foreign if found not in client.maps)),
                host_room=None,
            )
        )

    @precondition(lambda self: self.attached)
    @rule(pick=PICK, revision=st.integers(0, 50))
    def a_client_acknowledges(self, pick: int, revision: int) -> None:
        client = self.pick(self.attached, pick)
        lease_ids = tuple(sorted(client.asked_back))
        client.maps.difference_update(lease_ids)
        client.asked_back.clear()
        self.handle(
            RevokeAcknowledged(
                session_id=client.session_id,
                request_id=self.request_id(),
                lease_ids=lease_ids,
                host_room=room(revision, revision * MIB),
            )
        )

    @precondition(lambda self: self.attached)
    @rule(pick=PICK, idle=st.floats(0, 100), used=st.integers(0, 2))
    def a_client_is_heard(self, pick: int, idle: float, used: int) -> None:
        client = self.pick(self.attached, pick)
        uses = tuple(use(found, used_bytes=used, idle_seconds=idle) for found in client.maps)
        self.handle(
            KeepaliveReceived(
                session_id=client.session_id,
                request_id=self.request_id(),
                uses=uses,
                host_room=room(0, 0),
            )
        )

    @precondition(lambda self: self.attached)
    @rule(pick=PICK)
    def a_connection_closes(self, pick: int) -> None:
        client = self.pick(self.attached, pick)
        client.is_attached = False
        self.handle(PresenceEnded(session_id=client.session_id))

    @precondition(lambda self: self.detached)
    @rule(pick=PICK)
    def a_client_is_back(self, pick: int) -> None:
        client = self.pick(self.detached, pick)
        try:
            self.handle(
                SessionReattached(
                    session_id=client.session_id,
                    request_id=self.request_id(),
                    tenant=client.tenant,
                    process=client.process,
                    home_gpu=client.home,
                    is_admin=False,
                    uses=tuple(use(found) for found in client.maps),
                    host_room=room(1, 8 * MIB),
                )
            )
        except BrokerBug:
            raise
        except BrokerError:
            return
        client.is_attached = True

    @precondition(lambda self: self.alive)
    @rule(pick=PICK, how=st.sampled_from(("alone", "heir", "heir", "goodbye")))
    def a_process_ends(self, pick: int, how: str) -> None:
        client = self.pick(self.alive, pick)
        if how == "goodbye" and client.is_attached:
            client.maps.clear()
            client.is_alive = client.is_attached = client.has_heir = False
            self.handle(SessionClosed(session_id=client.session_id))
            return
        leaves_heir = how == "heir"
        client.is_alive = client.is_attached = False
        client.has_heir = leaves_heir
        self.handle(ProcessEnded(session_id=client.session_id))
        assert not any(
            lease.session_id == client.session_id and lease.state is LeaseState.LEASED
            for lease in self.broker.snapshot(self.now).leases
        )
        if not leaves_heir:
            self.handle(SentinelEnded(session_id=client.session_id))

    @precondition(lambda self: self.heirs)
    @rule(pick=PICK)
    def an_heir_ends(self, pick: int) -> None:
        client = self.pick(self.heirs, pick)
        client.has_heir = False
        self.handle(SentinelEnded(session_id=client.session_id))

    # Owners

    @rule(gpu=st.sampled_from(GPUS), nbytes=st.sampled_from(OWNED), pick=PICK)
    def an_owner_uses(self, gpu: GpuUuid, nbytes: int, pick: int) -> None:
        pid = self.pick(list(self.clients.values()), pick).process.pid if self.clients else 1
        self.owners[gpu] = {pid: nbytes // 2, 1: nbytes - nbytes // 2}
        self.report(gpu)

    @precondition(lambda self: self.attached)
    @rule(pick=PICK, gpu=st.sampled_from(GPUS), nbytes=st.integers(1, TOTAL), twice=st.booleans())
    def an_owner_reclaims(self, pick: int, gpu: GpuUuid, nbytes: int, twice: bool) -> None:  # noqa: FBT001 - drawn
        client = self.pick(self.attached, pick)
        if not self.keeper_of(gpu).is_linked:
            return
        self.owners[gpu][client.process.pid] = MIB
        self.report(gpu)
        coming_before = self.coming_bytes(gpu)
        for _ in range(1 + twice):
            self.handle(
                ReclaimRequested(
                    session_id=client.session_id,
                    request_id=self.request_id(),
                    gpu=gpu,
                    nbytes=nbytes,
                    deadline_seconds=None,
                )
            )
        more = self.coming_bytes(gpu) - coming_before
        assert more <= max(0, nbytes - coming_before) + SETTINGS.largest_slab_bytes

    @precondition(lambda self: self.attached)
    @rule(pick=PICK, gpu=st.sampled_from(GPUS), nbytes=st.sampled_from((0, 20 * MIB, TOTAL)))
    def an_owner_offers(self, pick: int, gpu: GpuUuid, nbytes: int) -> None:
        client = self.pick(self.attached, pick)
        offer = OfferMade(
            session_id=client.session_id, request_id=self.request_id(), gpu=gpu, nbytes=nbytes
        )
        try:
            self.handle(offer)
        except BrokerBug:
            raise
        except BrokerError:
            return

    # Keepers and the daemon

    @rule(keeper=st.integers(0, 1), fails=st.booleans(), orders=st.integers(1, 6))
    def a_keeper_answers(self, keeper: int, fails: bool, orders: int) -> None:  # noqa: FBT001 - drawn
        self.answer(self.keepers[keeper], orders, fails=fails)

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

    @rule(
        disaster=st.sampled_from(("link", "link", "keeper", "daemon")),
        keeper=st.integers(0, 1),
        carried_out=st.integers(0, 3),
    )
    def a_disaster(self, disaster: str, keeper: int, carried_out: int) -> None:
        there = self.keepers[keeper]
        if disaster == "keeper":
            self.end_keeper(there)
        elif disaster == "daemon":
            self.restart_daemon(carried_out)
        elif there.is_linked:
            there.is_linked = False
            self.handle(KeeperDetached(gpus=there.gpus))
            self.lose_orders(there, carried_out)

    @precondition(lambda self: not all(keeper.is_linked for keeper in self.keepers))
    @rule()
    def links_are_back(self) -> None:
        for keeper in self.keepers:
            if not keeper.is_linked:
                self.attach(keeper)

    def end_keeper(self, there: Keeper) -> None:
        for client in self.clients.values():
            client.maps.difference_update(there.slabs)
        there.slabs.clear()
        there.orders.clear()
        there.is_linked = False
        self.handle(KeeperEnded(gpus=there.gpus))

    def restart_daemon(self, carried_out: int) -> None:
        self.broker = Broker(SETTINGS, now=self.now, strict=True)
        for client in self.clients.values():
            client.is_attached = False
            client.asked_back.clear()
        for keeper in self.keepers:
            keeper.is_linked = False
            self.lose_orders(keeper, carried_out)

    @rule(tenths=st.sampled_from((1, 3, 6, 21, 40, 80)))
    def time_passes(self, tenths: int) -> None:
        for _ in range(tenths):
            self.now += 0.1
            self.handle(Ticked())

    # What must hold

    @invariant()
    def the_books_balance(self) -> None:
        self.broker.check_integrity()
        for gpu in self.broker.snapshot(self.now).gpus:
            parts = (
                gpu.used_by_others_bytes
                + gpu.lent_bytes
                + gpu.quarantined_bytes
                + gpu.returning_bytes
            )
            assert gpu.free_bytes == max(0, gpu.total_bytes - parts)

    @invariant()
    def what_is_mapped_is_held(self) -> None:
        slabs = {lease_id for keeper in self.keepers for lease_id in keeper.slabs}
        for client in self.clients.values():
            assert not client.can_touch or client.maps <= slabs

    # The outside

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
        assert gpu.free_bytes >= GRANT_RESERVE_FACTOR * gpu.reserve_bytes
        assert tenant.leased_bytes <= SETTINGS.tenant_quota_bytes
        assert lease.lender != client.home
        if lease.safety_class is SafetyClass.STORE:
            assert snapshot.host_reserved_bytes <= SETTINGS.host_pool_bytes
            assert tenant.host_reserved_bytes <= SETTINGS.tenant_host_bytes

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


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=300,
    stateful_step_count=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
