"""What a Hello must hold, and who says it: from a frame and a connection to an event of the core.

Does not cover what follows a greeting (presence) nor how the kernel is asked (processes).
"""

from __future__ import annotations

import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterable

from aqua_protos.agreement import NoCommonProtocol, agreed_protocol

from aqua_daemon import __version__
from aqua_daemon.adapters.admins import Admins
from aqua_daemon.adapters.processes import Peer, PeerGone, tenant_of
from aqua_daemon.adapters.statuses import TooMany, UnknownProtocol
from aqua_daemon.adapters.wire import frames
from aqua_daemon.core.errors import InvalidRequest, RefusedForNow
from aqua_daemon.core.events import SessionOpened, SessionReattached
from aqua_daemon.core.model import GpuUuid, ProcessIdentity, RequestId, SessionId

Identify = Callable[[socket.socket], Peer]
_ID_BYTES, _TOKEN_BYTES = 16, 32
_MOST_VERSIONS = 16  # a version is a client's own word: nobody fills everybody's screen with them

REAL_GPU_PREFIX = "GPU-"  # of the UUIDs that NVIDIA's driver gives


class Roll:
    """Whose each session is, so that no process has too many.

    One that drops its connections without a goodbye keeps every session until it ends.
    """

    def __init__(self, *, most_sessions: int) -> None:
        """So many for one process."""
        self._most_sessions = most_sessions
        self._process_of: dict[SessionId, ProcessIdentity] = {}
        self._version_of: dict[SessionId, str] = {}
        self._sessions: Counter[ProcessIdentity] = Counter()

    def check_room(self, process: ProcessIdentity, session_id: SessionId) -> None:
        """Refuse another session of a process that has too many; those that it has may come back.

        Raises:
            TooMany: says how many.
        """
        if self._process_of.get(session_id) == process:
            return
        has = self._sessions[process]
        if has >= self._most_sessions:
            msg = (
                f"process {process.pid} has {has} sessions, the most it may have: say goodbye in "
                "those that are over, or re-attach with their ids"
            )
            raise TooMany(msg)

    def enter(self, session_id: SessionId, process: ProcessIdentity, hello: frames.Hello) -> None:
        """A session is there, for the first time or again."""
        self.strike(session_id)
        self._process_of[session_id] = process
        if not hello.is_observer:
            self._version_of[session_id] = hello.version
        self._sessions[process] += 1

    def strike(self, session_id: SessionId) -> None:
        """It is over. Idempotent."""
        self._version_of.pop(session_id, None)
        process = self._process_of.pop(session_id, None)
        if process is not None:
            self._sessions[process] -= 1
            if not self._sessions[process]:
                del self._sessions[process]

    def versions(self) -> dict[str, int]:
        """How many sessions there are of each version of the client library, the commonest ones."""
        return dict(Counter(self._version_of.values()).most_common(_MOST_VERSIONS))


def check_hello(hello: frames.Hello, *, gpus: Iterable[GpuUuid]) -> int:
    """Refuse a client that this daemon can't serve; the protocol that is spoken with others.

    Raises:
        UnknownProtocol: the client is more than one release apart.
        InvalidRequest: a home GPU that the node does not have. One that is not kept by this daemon
            may yet be there: the client names the one that it computes on.
    """
    they, we = f"the client (version {hello.version})", f"this daemon (version {__version__})"
    try:
        protocol = agreed_protocol(hello.protocols, they=they, we=we)
    except NoCommonProtocol as error:
        raise UnknownProtocol(str(error)) from error
    known = tuple(gpus)
    is_elsewhere = hello.home_gpu is not None and hello.home_gpu not in known
    if is_elsewhere and not str(hello.home_gpu).startswith(REAL_GPU_PREFIX):
        msg = (
            f"home_gpu {hello.home_gpu} is not a GPU of this node, which has {', '.join(known)}: "
            "name one of these, or none (AQUA_HOME_GPU)"
        )
        raise InvalidRequest(msg)
    return protocol


def identified(connection: socket.socket, identify: Identify) -> Peer:
    """Who says hello; the caller owns the pidfd.

    Raises:
        RefusedForNow: the process has ended.
        NotPermitted: the daemon can't see the process.
    """
    try:
        return identify(connection)
    except PeerGone as error:
        raise RefusedForNow(f"{error}: connect again from a living process") from error


def introduction(
    hello: frames.Hello, peer: Peer, session_id: SessionId, *, admins: Admins
) -> SessionOpened | SessionReattached:
    """What the broker is told: a new session, or one that is back.

    Whether that is the same process as before is for the broker to compare.

    Raises:
        InvalidRequest: the sub-tenant's name is not one.
    """
    process = peer.process
    tenant = tenant_of(uid=process.uid, cgroup=peer.cgroup, sub_tenant=hello.sub_tenant)
    if hello.session_id is None:
        return SessionOpened(
            session_id=session_id,
            tenant=tenant,
            process=process,
            home_gpu=hello.home_gpu,
            is_admin=admins.include(peer),
            is_observer=hello.is_observer,
        )
    return SessionReattached(
        session_id=session_id,
        request_id=new_request_id(),
        tenant=tenant,
        process=process,
        home_gpu=hello.home_gpu,
        is_admin=admins.include(peer),
        uses=hello.uses,
        host_room=hello.host_room,
    )


def new_session_id() -> SessionId:
    """Never used before, and not to be guessed."""
    return SessionId(secrets.token_hex(_ID_BYTES))


def new_token() -> bytes:
    """What a session's calls carry."""
    return secrets.token_bytes(_TOKEN_BYTES)


def new_request_id() -> RequestId:
    """For what the daemon asks in a client's name."""
    return RequestId(secrets.token_hex(_ID_BYTES))


def new_sentinel() -> tuple[socket.socket, socket.socket]:
    """The two ends of a sentinel: the daemon's, then the client's.

    Raises:
        RefusedForNow: the daemon is out of descriptors.
    """
    try:
        return socket.socketpair()
    except OSError as error:
        msg = f"the daemon can't open a sentinel ({error.strerror}): raise its LimitNOFILE"
        raise RefusedForNow(msg) from error
