"""What tests of the presence socket share: a session's state, a revoke to push, descriptors."""

from __future__ import annotations

from pathlib import Path

from aqua_daemon.core.instructions import SendRevoke
from aqua_daemon.core.model import GpuUuid, LeaseId, RevokeReason, SessionId, SessionState
from tests.daemon.in_process import MIB, Node, new_id


def state_of(node: Node, session_id: SessionId) -> SessionState | None:
    sessions = {one.session_id: one for one in node.service.snapshot().sessions}
    return sessions[session_id].state if session_id in sessions else None


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def revoke_for(session_id: SessionId, *, leases: int = 1) -> SendRevoke:
    return SendRevoke(
        session_id=session_id,
        gpu=GpuUuid("SHM-1"),
        nbytes=4 * MIB,
        reason=RevokeReason.RECLAIM,
        deadline=2.0,
        lease_ids=tuple(LeaseId(new_id()) for _ in range(leases)),
    )
