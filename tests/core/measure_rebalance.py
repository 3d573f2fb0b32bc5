"""How long one rebalance takes on a full node: printed, never asserted.

The tick in which some tenants lack their share and all others are asked for what is above theirs.
"""

from __future__ import annotations

import gc
import time
from dataclasses import replace

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import (
    KeepaliveReceived,
    KeeperAttached,
    LeaseRequested,
    SessionOpened,
    SlabAllocated,
    Ticked,
)
from aqua_daemon.core.instructions import NoteRebalance, SendRevoke
from aqua_daemon.core.model import (
    GpuReport,
    GpuUuid,
    LeaseId,
    RequestId,
    SafetyClass,
    SessionId,
    TenantName,
)
from aqua_daemon.core.sizes import GIB, MIB, REST_SECONDS
from tests.core.bench import SETTINGS, process, room, use

GPUS = tuple(GpuUuid(f"SHM-{number}") for number in range(8))
SESSIONS = 200
TENANTS = 20
POOR = 20  # sessions that come late
LEASES = 10_000
SLAB_BYTES = 32 * MIB
PERIOD_SECONDS = 5.0
TRIES = 3


class FullNode:
    """A broker that has lent all there is to sessions of most tenants, a while ago."""

    def __init__(self) -> None:
        self.now = 0.0
        most = len(GPUS) * 64 * GIB
        settings = replace(
            SETTINGS,
            gpus=GPUS,
            host_pool_bytes=most,
            tenant_host_bytes=most,
            tenant_quota_bytes=most,
            rebalance_seconds=PERIOD_SECONDS,
            lend_to_own_gpu=True,
        )
        self.broker = Broker(settings, now=self.now)
        # What the slabs take, and a reserve and a half beside them.
        total = int((LEASES * SLAB_BYTES / len(GPUS) + SLAB_BYTES / 2) / 0.85)
        reports = tuple(
            GpuReport(gpu=gpu, total_bytes=total, slab_bytes={}, owner_bytes={}) for gpu in GPUS
        )
        self.broker.handle(KeeperAttached(reports=reports, slabs=()), now=self.now)
        self.leases: dict[SessionId, list[LeaseId]] = {}
        for number in range(SESSIONS):
            self._open(number)
        rich = list(self.leases)[POOR:]
        for number in range(LEASES):
            # Some take more than others: shares are not what anybody has.
            self._grant(rich[(number * number) % len(rich)], number)

    def rebalance(self) -> tuple[float, int]:
        """Seconds that the tick took in which the poor are given their share; leases asked back."""
        self.now += REST_SECONDS - 1.0
        self._keep_alive()
        self.now += 2.0
        self.broker.handle(Ticked(), now=self.now)  # the terms of all leases are looked at here
        self._keep_alive()
        self.now += PERIOD_SECONDS
        for number, session_id in enumerate(list(self.leases)[:POOR]):
            self._lack(session_id, number)
        gc.collect()  # what it took to make the node is not looked through during the tick
        started = time.process_time()
        told = self.broker.handle(Ticked(), now=self.now)
        seconds = time.process_time() - started
        assert any(isinstance(one, NoteRebalance) for one in told)
        return seconds, sum(len(one.lease_ids) for one in told if isinstance(one, SendRevoke))

    def _open(self, number: int) -> None:
        session_id = SessionId(f"session-{number}")
        self.leases[session_id] = []
        opened = SessionOpened(
            session_id=session_id,
            tenant=TenantName(f"uid-{number % TENANTS if number >= POOR else TENANTS}"),
            process=process(number),
            home_gpu=GPUS[number % len(GPUS)],
            is_admin=False,
        )
        self.broker.handle(opened, now=self.now)

    def _grant(self, session_id: SessionId, number: int) -> None:
        lease_id = LeaseId(f"lease-{number}")
        self.broker.handle(_asked(session_id, lease_id), now=self.now)
        self.broker.handle(SlabAllocated(lease_id=lease_id), now=self.now)
        self.leases[session_id].append(lease_id)

    def _lack(self, session_id: SessionId, number: int) -> None:
        wanted = _asked(session_id, LeaseId(f"lacked-{number}"), wanted_bytes=16 * GIB)
        try:
            self.broker.handle(wanted, now=self.now)
        except InsufficientMemory:
            return
        msg = "the node was not full"
        raise AssertionError(msg)

    def _keep_alive(self) -> None:
        for session_id, lease_ids in self.leases.items():
            alive = KeepaliveReceived(
                session_id=session_id,
                request_id=RequestId(f"alive-{session_id}"),
                uses=tuple(use(lease_id) for lease_id in lease_ids),
                host_room=room(1, 0),
            )
            self.broker.handle(alive, now=self.now)


def main() -> None:
    """Print the figure."""
    seconds, asked_back = min(FullNode().rebalance() for _ in range(TRIES))
    print(
        f"one rebalance of {len(GPUS)} GPUs, {SESSIONS} sessions and {LEASES:,} leases: "
        f"{seconds * 1e3:.1f} ms, {asked_back:,} leases asked back"
    )


def _asked(session_id: SessionId, lease_id: LeaseId, wanted_bytes: int = 0) -> LeaseRequested:
    return LeaseRequested(
        session_id=session_id,
        request_id=RequestId(f"request-{lease_id}"),
        lease_id=lease_id,
        nbytes=SLAB_BYTES,
        safety_class=SafetyClass.CACHE,
        wanted_bytes=wanted_bytes,
    )


if __name__ == "__main__":
    main()
