"""What of the books a caller may see: admins all, others what is their tenant's, and every sum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from aqua_daemon.adapters.happenings import Happening
from aqua_daemon.core.model import Session, owner_of
from aqua_daemon.core.node_snapshot import NodeSnapshot


def visible_to(viewer: Session, snapshot: NodeSnapshot) -> NodeSnapshot:
    """The snapshot without other tenants' leases, sessions and shares."""
    if viewer.is_admin:
        return snapshot
    leases = tuple(lease for lease in snapshot.leases if lease.tenant == viewer.tenant)
    lease_ids = {lease.lease_id for lease in leases}
    return replace(
        snapshot,
        leases=leases,
        named_at={one: at for one, at in snapshot.named_at.items() if one in lease_ids},
        uses={one: use for one, use in snapshot.uses.items() if one in lease_ids},
        sessions=tuple(one for one in snapshot.sessions if one.tenant == viewer.tenant),
        tenants=tuple(one for one in snapshot.tenants if one.tenant == viewer.tenant),
        # A sub-tenant may see what it divides.
        quotas=tuple(
            one for one in snapshot.quotas if one.tenant in {viewer.tenant, owner_of(viewer.tenant)}
        ),
    )


def happenings_for(viewer: Session, lines: Iterable[Happening]) -> tuple[Happening, ...]:
    """The lines about the viewer's tenant; those about the node and about others are for admins."""
    return tuple(line for line in lines if viewer.is_admin or line.tenant == viewer.tenant)
