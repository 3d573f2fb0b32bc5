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

from aqua_daemon.core.errors import BrokerBug, BrokerError
from aqua_daemon.core.events import (
    KeeperDetached,
    OfferMade,
    ReclaimRequested,
    Ticked,
)
from aqua_daemon.core.model import GpuUuid, LeaseState
from aqua_daemon.core.sizes import MIB
from tests.core.admin_rules import AdminRules
from tests.core.client_rules import PICK, ClientRules
from tests.core.outside import GPUS, SETTINGS, TOTAL

OWNED = tuple(nbytes * MIB for nbytes in (0, 4, 16, 40, 80))  # by the processes of a GPU


class Histories(ClientRules, AdminRules, RuleBasedStateMachine):
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
