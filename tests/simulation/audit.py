"""Whole states compared: the broker's snapshot with what keepers and clients really hold."""

from __future__ import annotations

from collections.abc import Sequence

from aqua_daemon.core.model import Lease, LeaseState, SessionId
from aqua_daemon.core.node_snapshot import GpuSnapshot, NodeSnapshot
from tests.simulation.clients import Client
from tests.simulation.judge import require
from tests.simulation.oracle import Oracle
from tests.simulation.truth import Gpu

_ON_GPU = (LeaseState.LEASED, LeaseState.REVOKING, LeaseState.QUARANTINED, LeaseState.RETURNED)


class Audit:
    """Looks at everything at once; slow, so not at every event."""

    def __init__(self, oracle: Oracle, gpus: Sequence[Gpu], clients: Sequence[Client]) -> None:
        self._oracle = oracle
        self._gpus = {gpu.uuid: gpu for gpu in gpus}
        self._clients = clients

    def during(self, snapshot: NodeSnapshot) -> None:
        """What must hold at any moment, whatever is in flight."""
        require(snapshot.invariant_violations == 0, "the broker saw a violation")
        self._oracle.drains.shown(snapshot.drained)
        self._leases_follow_the_moves(snapshot)
        self._slabs_are_in_the_books(snapshot)
        for gpu in snapshot.gpus:
            self._free_bytes_are_free(gpu)
        self._host_room_holds(snapshot)

    def after_quiet(self, snapshot: NodeSnapshot) -> None:
        """All faults are over and their terms have passed: everything has healed."""
        self.during(snapshot)
        known = {i: c for c in self._clients if c.process.is_alive for i in c.holdings.slabs}
        slabs = {i: slab for gpu in self._gpus.values() for i, slab in gpu.slabs.items()}
        for lease in snapshot.leases:
            if self._left_before_a_restart(lease):
                slabs.pop(lease.lease_id, None)
                continue
            require(lease.state is LeaseState.LEASED, "not healed: {}", lease)
            require(lease.lease_id in known, "leaked, its client knows it not: {}", lease)
        books = sorted(x.lease_id for x in snapshot.leases if x.lease_id in known)
        require(books == sorted(slabs), "books {} but slabs {}", books, sorted(slabs))
        require(books == sorted(known), "books {} but known {}", books, sorted(known))
        for gpu in snapshot.gpus:
            free = self._gpus[gpu.gpu].free_bytes
            require(gpu.free_bytes == free, "{} but {} are free", gpu, free)
            require(not gpu.trouble, "{} still in trouble", gpu)
        living = {c.process.identity for c in self._clients if c.process.is_alive}
        for session in snapshot.sessions:
            require(session.process in living, "a dead process has {}", session)
        require(not snapshot.restarting, "still restarting")

    def at_end(self, snapshot: NodeSnapshot) -> None:
        """Every client has given back everything and left: nothing is left anywhere."""
        self.during(snapshot)
        require(not snapshot.leases, "leases left: {}", snapshot.leases)
        said = {**snapshot.named_at, **snapshot.uses}
        require(not said, "words of leases that are gone are left: {}", said)
        require(not snapshot.sessions, "sessions left: {}", snapshot.sessions)
        require(not snapshot.tenants, "tenants left: {}", snapshot.tenants)
        left = snapshot.host_reserved_bytes
        require(left == 0, "{} bytes of host room left", left)
        for gpu in snapshot.gpus:
            require(gpu.lend_limit_bytes is None, "a limit is left: {}", gpu)
            require(not self._gpus[gpu.gpu].slabs, "slabs left on {}", gpu)

    def _left_before_a_restart(self, lease: Lease) -> bool:
        """A goodbye that died with its daemon: nobody can answer for it until the process ends."""
        has_left = lease.session_id in self._oracle.left_sessions
        return self._oracle.has_restarted and has_left and lease.state is LeaseState.QUARANTINED

    def _leases_follow_the_moves(self, snapshot: NodeSnapshot) -> None:
        moved = {i: lease.state for i, lease in self._oracle.books.leases.items()}
        books = {lease.lease_id: lease.state for lease in snapshot.leases}
        require(moved == books, "moves say {}, books say {}", moved, books)

    def _slabs_are_in_the_books(self, snapshot: NodeSnapshot) -> None:
        books = {lease.lease_id: lease for lease in snapshot.leases}
        attached = self._oracle.books.attached
        for uuid, gpu in self._gpus.items():
            if uuid not in attached:
                continue
            for lease_id, slab in gpu.slabs.items():
                lease = books.get(lease_id)
                require(lease is not None, "{} holds {}, the books do not", uuid, slab.tag)
                if lease is not None:
                    same = (slab.tag.tenant, slab.tag.nbytes) == (lease.tenant, lease.nbytes)
                    require(same, "{} is not {}", slab.tag, lease)
        for lease_id, lease in books.items():
            if lease.state in _ON_GPU and lease.lender in attached:
                held = self._oracle.books.held
                require(lease_id in held, "{} is in no keeper", lease)

    def _free_bytes_are_free(self, gpu: GpuSnapshot) -> None:
        books = self._oracle.books
        if gpu.gpu not in books.attached:
            require(gpu.lendable_bytes == 0, "{} lends without a keeper", gpu)
            return
        truth = self._gpus[gpu.gpu]
        held = sum(slab.tag.nbytes for slab in truth.slabs.values())
        own = sum(books.reports[gpu.gpu].owner_bytes.values())
        free = truth.total_bytes - own - held
        # Below zero: what its owner had at the last report has ended since, and is lent by now.
        require(gpu.free_bytes <= max(0, free), "{} but {} are free", gpu, free)
        require(gpu.lendable_bytes <= max(0, gpu.free_bytes), "{} lends too much", gpu)
        parts = gpu.used_by_others_bytes + gpu.lent_bytes + gpu.quarantined_bytes
        parts += gpu.returning_bytes + gpu.free_bytes
        whole = parts == gpu.total_bytes or gpu.free_bytes == 0
        require(whole, "{} does not add up", gpu)

    def _host_room_holds(self, snapshot: NodeSnapshot) -> None:
        oracle = self._oracle
        reserved = snapshot.host_reserved_bytes
        if not oracle.has_restarted:
            require(
                reserved <= oracle.settings.host_pool_bytes,
                "{} bytes reserved of the host pool",
                reserved,
            )
            for tenant in snapshot.tenants:
                room = tenant.host_reserved_bytes
                most = oracle.settings.tenant_host_bytes
                require(room <= most, "{} has too much host room", tenant)
        if any(gpu not in oracle.books.reports for gpu in self._gpus):
            return  # room may stand behind slabs of a keeper that has not been heard yet
        if snapshot.now < oracle.moves.lost_at + oracle.settings.term_seconds:
            return  # what was evacuated from a slab before it was lost is stated with a keepalive
        stated = {session.session_id: session.host_room for session in snapshot.sessions}
        used = 0
        for client in self._clients:
            stated_room = stated.get(client.session_id or SessionId(""))
            held = client.holdings.host_bytes
            if stated_room is None or not client.process.is_alive or client.holdings.is_unbacked:
                continue
            is_there = client.session_id is not None and oracle.books.is_present(client.session_id)
            # A new daemon may have granted the room before this holder came back to state it.
            is_short = oracle.has_restarted and stated_room.nbytes < held
            if is_there and not is_short:
                used += held
        require(used <= reserved, "{} bytes are in host memory, {} reserved", used, reserved)
