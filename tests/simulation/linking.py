"""A process and its presence connection: hello, keepalives, breaks, and coming back.

What it holds and borrows is `clients`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

from aqua_daemon.core.events import KeepaliveReceived, SessionOpened, SessionReattached
from aqua_daemon.core.instructions import AnswerKeepalive, SendRevoke, TellLost
from aqua_daemon.core.model import GpuUuid, LeaseId, RequestId, SessionId
from tests.simulation.calls import Caller
from tests.simulation.connection import Connection
from tests.simulation.daemon import Daemon
from tests.simulation.holdings import Holdings
from tests.simulation.judge import Judge
from tests.simulation.stage import Stage
from tests.simulation.truth import Process, Slab


class LinkedProcess(ABC):
    """A process with a session, or on its way to one."""

    def __init__(
        self,
        process: Process,
        *,
        home_gpu: GpuUuid | None,
        term_seconds: float,
        stage: Stage,
        judge: Judge,
        find_daemon: Callable[[], Daemon | None],
        find_slab: Callable[[LeaseId], Slab | None],
    ) -> None:
        self.process = process
        self.home_gpu = home_gpu
        self.holdings = Holdings(process, stage)
        self.session_id: SessionId | None = None
        self.connection: Connection | None = None
        self.stuck: list[tuple[LeaseId, ...]] = []
        self.never_acknowledges = False
        self.closed_leases: dict[LeaseId, None] = {}  # given back or refused: never mapped again
        self._daemon: Daemon | None = None
        self._is_newcomer = True
        self._stage = stage
        self._judge = judge
        self._find_daemon = find_daemon
        self._find_slab = find_slab
        self._beat_seconds = term_seconds / 3
        self.caller = Caller(self, stage)
        self.connect()
        self._beat()

    # --- the process -------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether it runs and may call."""
        process = self.process
        return process.is_alive and not process.is_stopped and self.session is not None

    @property
    def session(self) -> tuple[Daemon, Connection, SessionId] | None:
        """Daemon, connection and session, when it has all three."""
        if self._daemon is None or self.connection is None or self.session_id is None:
            return None
        return self._daemon, self.connection, self.session_id

    def fork(self, pid: int) -> Process:
        """A child that uses nothing of the library but keeps what it inherited."""
        return self.process.fork(pid)

    def go_on(self) -> None:
        """Continue after a stop."""
        if self.process.is_stopped:
            self.process.is_stopped = False
            self._stage.tell("process {} goes on", self.process.identity.pid)
            self.caller.resume()

    def hang_up_if_dead(self) -> None:
        """The kernel closes the connection when the last of the family has ended."""
        if not self.process.family_lives and self.connection and self._daemon:
            self.connection.up.send(partial(self._daemon.hung_up, self.connection))

    # --- the connection ----------------------------------------------------------------------

    def connect(self) -> None:
        """Open a presence connection: anew, or for the session that it has."""
        if self.connection is not None or not self.process.is_alive:
            return
        daemon = self._find_daemon()
        if daemon is None:
            self.connect_after(self._stage.chance.between(0.05, 0.5))
            return
        self._daemon = daemon
        self._is_newcomer = self.session_id is None
        self.connection = Connection(self, self._stage)
        self.connection.up.send(partial(daemon.hello, self.connection, self._hello()))

    def connect_after(self, seconds: float) -> None:
        """Try again after a while."""
        self._stage.agenda.after(seconds, partial(self.caller.awake, self.connect))

    def welcomed(self, connection: Connection, session_id: SessionId) -> None:
        """The daemon has answered the hello."""
        self.caller.awake(partial(self._welcomed, connection, session_id))

    def refused(self, connection: Connection) -> None:
        """The daemon does not take the hello."""
        self.caller.awake(partial(self._refused, connection))

    def closed(self, connection: Connection) -> None:
        """The daemon has closed the connection, or died."""
        self.caller.awake(partial(self._closed, connection))

    def break_presence(self, away_seconds: float) -> None:
        """Lose the connection and come back on another one."""
        if self.session is None:
            return
        daemon, connection, _ = self.session
        connection.up.send(partial(daemon.hung_up, connection))
        connection.down.cut()
        self.connection = None
        self.connect_after(away_seconds)

    @abstractmethod
    def pushed(self, order: SendRevoke | TellLost | AnswerKeepalive) -> None:
        """The daemon said something over the presence connection."""

    @abstractmethod
    def _lose(self, lease_ids: tuple[LeaseId, ...], how: str) -> None: ...

    def _hello(self) -> SessionOpened | SessionReattached:
        if self.session_id is None:
            return SessionOpened(
                session_id=SessionId(self._stage.chance.new_id()),
                tenant=self.process.tenant,
                process=self.process.identity,
                home_gpu=self.home_gpu,
                is_admin=False,
            )
        return SessionReattached(
            session_id=self.session_id,
            request_id=RequestId(self._stage.chance.new_id()),
            tenant=self.process.tenant,
            process=self.process.identity,
            home_gpu=self.home_gpu,
            is_admin=False,
            uses=self.holdings.uses(),
            host_room=self.holdings.host_room(),
        )

    def _welcomed(self, connection: Connection, session_id: SessionId) -> None:
        if connection is self.connection:
            self.session_id = session_id

    def _refused(self, connection: Connection) -> None:
        if connection is not self.connection or self.session_id is None:
            return
        if self._is_newcomer:  # its tenant has as many sessions as it may
            self.session_id = None
            return
        self._lose(tuple(self.holdings.slabs), "with their session")
        self.session_id = None  # what it has in host memory it keeps, and states anew
        self.holdings.is_unbacked = True
        self.stuck.clear()

    def _closed(self, connection: Connection) -> None:
        if connection is self.connection:
            self.connection = None
            self.connect_after(self._stage.chance.between(0.02, 1.0))

    def _beat(self) -> None:
        if not self.process.is_alive:
            return
        self._stage.agenda.after(self._beat_seconds, self._beat)
        if self.session is None or self.process.is_stopped:
            return
        daemon, connection, session_id = self.session
        event = KeepaliveReceived(
            session_id=session_id,
            request_id=RequestId(self._stage.chance.new_id()),
            uses=self.holdings.uses(),
            host_room=self.holdings.host_room(),
        )
        connection.up.send(partial(daemon.frame, connection, event))
