"""Host memory for `store` data, as one ledger of the node.

A session reserves what its `store` slabs would need if they were all evacuated, and what it holds
in host memory already. What a session *asks* for must fit the pool and its tenant's share, or is
refused; what it *states* with a return or a keepalive takes effect as far as its returned slabs
covered it or there is room, because an acknowledgement is never turned away for its figures.
"""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.core.errors import InsufficientHostRoom, InvalidRequest
from aqua_daemon.core.model import BrokerSettings, HostRoom, Session, TenantName, owner_of
from aqua_daemon.core.sizes import MIB
from aqua_daemon.core.turn import Turn


def check_room(turn: Turn, tenant: TenantName, nbytes: int) -> None:
    """Refuse *nbytes* more for *tenant* unless pool and share have them.

    Raises:
        InsufficientHostRoom: they have not.
    """
    settings = turn.books.settings
    if nbytes <= _pool_room(turn, settings) and nbytes <= _share_room(turn, settings, tenant):
        return
    tenant_bytes = turn.ledger.owner(tenant).host_bytes
    msg = (
        f"{nbytes / MIB:g} MiB of host room for `store` data do not fit: the node has reserved "
        f"{turn.ledger.host_bytes / MIB:g} of {settings.host_pool_bytes / MIB:g} MiB, "
        f"{owner_of(tenant)} {tenant_bytes / MIB:g} of {settings.tenant_host_bytes / MIB:g} MiB. "
        "Release `store` data, use `cache`, or raise host_pool_bytes"
    )
    raise InsufficientHostRoom(msg)


def check_statement(room: HostRoom | None) -> None:
    """Refuse what can't be a statement of host room.

    Raises:
        InvalidRequest: it is negative.
    """
    if room is not None and (room.nbytes < 0 or room.revision < 0):
        msg = f"host room of {room.nbytes} bytes, revision {room.revision}: neither may be below 0"
        raise InvalidRequest(msg)


def set_room(turn: Turn, session: Session, room: HostRoom) -> Session:
    """Put *room* in force."""
    changed = replace(session, host_room=room)
    turn.ledger.replace_session(changed)
    return changed


def take_statement(
    turn: Turn,
    session: Session,
    room: HostRoom | None,
    *,
    covered_bytes: int = 0,
    is_rebuilding: bool = False,
) -> Session:
    """Put in force what a session states that it holds, as far as it fits.

    *covered_bytes* were reserved for slabs that came back with the same message. With
    *is_rebuilding* a new broker learns what an old one had granted: only the tenant's share bounds
    it then, because these bytes exist whatever the pool is now. What did not fit is looked at again
    when it is stated again: a keepalive may come before the return that covers it.
    """
    if room is None or room.revision <= session.host_room.revision:
        return session
    settings = turn.books.settings
    fits = _share_room(turn, settings, session.tenant)
    if not is_rebuilding:
        fits = min(fits, _pool_room(turn, settings))
    most = session.host_room.nbytes + max(0, covered_bytes, fits)
    if room.nbytes > most:  # not this revision yet, so that it is none that came before
        room = HostRoom(revision=room.revision - 1, nbytes=most)
    return set_room(turn, session, room)


def _pool_room(turn: Turn, settings: BrokerSettings) -> int:
    return settings.host_pool_bytes - turn.ledger.host_bytes


def _share_room(turn: Turn, settings: BrokerSettings, tenant: TenantName) -> int:
    return settings.tenant_host_bytes - turn.ledger.owner(tenant).host_bytes
