"""Any history of a node leaves the books balanced, and frees nothing that somebody still maps.

A model of the outside (keepers with orders in flight, clients with what they have mapped, owners)
is driven at random against a strict broker: keepers answer late, fail, lose their link or die,
clients die with or without heirs, go silent, answer late, and the daemon restarts from what the
keepers hold. Slower faults over whole nodes are the simulator's.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aqua_daemon.core.errors import BrokerBug, BrokerError, RefusedForNow
from aqua_daemon.core.events import (
    DrainRequested,
    ExchangeOffered,
    KeepaliveReceived,
    KeeperDetached,
    LeaseRequested,
    LeasesReleased,
    OfferMade,
    PresenceEnded,
    ProcessEnded,
    QuiesceRequested,
    QuotaSet,
    ReclaimRequested,
    RevokeAcknowledged,
    SentinelEnded,
    SessionClosed,
    SessionReattached,
    Ticked,
    UndrainRequested,
)
from aqua_daemon.core.model import (
    GpuUuid,
    LeaseId,
    LeaseState,
    SafetyClass,
    TenantName,
)
from aqua_daemon.core.sizes import MIB
from tests.core.bench import room, use
from tests.core.outside import GPUS, SETTINGS, TENANTS, TOTAL, Outside

MOST_CLIENTS = 5
OWNED = tuple(nbytes * MIB for nbytes in (0, 4, 16, 40, 80))  # by the processes of a GPU
PICK = st.integers(0, 10_000)  # which of what there is


class Histories(Outside, RuleBasedStateMachine):
    # Clients

    @precondition(lambda self: len(self.alive) < MOST_CLIENTS)
    @rule(tenant=st.sampled_from(TENANTS), home=st.sampled_from(GPUS))
    def a_process_comes(self, tenant: TenantName, home: GpuUuid) -> None:
        self.come(tenant, home)

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

    @rule(gpu=st.sampled_from(GPUS), seconds=st.sampled_from((0.0, 1.0, 30.0)), stays=st.booleans())
    def an_admin_quiesces(self, gpu: GpuUuid, seconds: float, stays: bool) -> None:  # noqa: FBT001 - drawn
        admin = self.admin()
        self.handle(
            QuiesceRequested(
                session_id=admin, request_id=self.request_id(), gpu=gpu, seconds=seconds
            )
        )
        if not stays:
            self.handle(PresenceEnded(session_id=admin))

    @rule(gpu=st.sampled_from(GPUS), seconds=st.sampled_from((None, 0.5, 10.0)))
    def an_admin_drains(self, gpu: GpuUuid, seconds: float | None) -> None:
        self.handle(
            DrainRequested(
                session_id=self.admin(),
                request_id=self.request_id(),
                gpus=(gpu,),
                deadline_seconds=seconds,
            )
        )

    @rule()
    def an_admin_undrains_all(self) -> None:
        request_id = self.request_id()
        self.handle(UndrainRequested(session_id=self.admin(), request_id=request_id, gpus=()))

    @rule(
        tenant=st.sampled_from(TENANTS),
        nbytes=st.sampled_from((None, 0, 16 * MIB, 64 * MIB, 200 * MIB)),
        revision=st.sampled_from((None, None, 1, 5)),
    )
    def an_admin_sets_a_quota(
        self, tenant: TenantName, nbytes: int | None, revision: int | None
    ) -> None:
        self.handle(
            QuotaSet(
                session_id=self.admin(),
                request_id=self.request_id(),
                tenant=tenant,
                nbytes=nbytes,
                revision=revision,
            )
        )

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
    @rule(pick=PICK, gpu=st.sampled_from(GPUS), spares=st.integers(1, 2), offers=st.integers(1, 3))
    def a_client_gives_others(self, pick: int, gpu: GpuUuid, spares: int, offers: int) -> None:
        client = self.pick(self.attached, pick)
        there = [
            lease
            for lease in self.broker.snapshot(self.now).leases
            if lease.session_id == client.session_id and lease.lender == gpu
        ]
        revoked = [lease.lease_id for lease in there if lease.state is LeaseState.REVOKING]
        others = [lease.lease_id for lease in there if lease.state is LeaseState.LEASED]
        coming_before = self.coming_bytes(gpu)
        spared = tuple(revoked[:spares])
        event = ExchangeOffered(
            session_id=client.session_id,
            request_id=self.request_id(),
            spared=spared,
            offered=tuple(others[:offers]),
        )
        try:
            self.handle(event)
        except BrokerBug:
            raise
        except BrokerError:
            return
        client.asked_back.difference_update(spared)
        assert self.coming_bytes(gpu) >= coming_before

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

    @rule(tenths=st.sampled_from((1, 3, 6, 21, 40, 80)))
    def time_passes(self, tenths: int) -> None:
        for _ in range(tenths):
            self.now += 0.1
            self.handle(Ticked())

    # What must hold

    @invariant()
    def the_books_balance(self) -> None:
        self.broker.check_integrity()
        snapshot = self.broker.snapshot(self.now)
        leased = [lease for lease in snapshot.leases if lease.state is LeaseState.LEASED]
        assert not {lease.lender for lease in leased} & set(snapshot.drained)
        for gpu in snapshot.gpus:
            parts = (
                gpu.used_by_others_bytes
                + gpu.lent_bytes
                + gpu.quarantined_bytes
                + gpu.returning_bytes
            )
            assert gpu.free_bytes + gpu.unknown_bytes == max(0, gpu.total_bytes - parts)

    @invariant()
    def what_is_mapped_is_held(self) -> None:
        slabs = {lease_id for keeper in self.keepers for lease_id in keeper.slabs}
        for client in self.clients.values():
            assert not client.can_touch or client.maps <= slabs


TestHistories = pytest.mark.limit(240)(Histories.TestCase)  # a fifth of a minute, on idle cores
TestHistories.settings = settings(
    max_examples=300,
    stateful_step_count=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
