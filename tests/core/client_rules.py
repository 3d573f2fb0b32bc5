"""What clients may do in any history: come, ask, give back, be silent, die with or without heirs."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from aqua_daemon.core.errors import BrokerBug, BrokerError, RefusedForNow
from aqua_daemon.core.events import (
    ExchangeOffered,
    KeepaliveReceived,
    LeaseRequested,
    LeasesReleased,
    PresenceEnded,
    ProcessEnded,
    RevokeAcknowledged,
    SentinelEnded,
    SessionClosed,
    SessionReattached,
)
from aqua_daemon.core.model import GpuUuid, LeaseId, LeaseState, SafetyClass, TenantName
from aqua_daemon.core.sizes import MIB
from tests.core.bench import room, use
from tests.core.outside import GPUS, TENANTS, Outside

MOST_CLIENTS = 5
PICK = st.integers(0, 10_000)  # which of what there is


class ClientRules(Outside):
    """Whatever a client does, it does by what it has mapped."""

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
