"""A presence connection between a client and one incarnation of the daemon."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from aqua_daemon.core.instructions import AnswerKeepalive, SendRevoke, TellLost
from aqua_daemon.core.model import SessionId
from tests.simulation.agenda import Stream
from tests.simulation.stage import Stage
from tests.simulation.truth import Process


class Peer(Protocol):
    """The client at the other end of a presence connection."""

    process: Process

    def welcomed(self, connection: Connection, session_id: SessionId) -> None: ...

    def refused(self, connection: Connection) -> None: ...

    def pushed(self, order: SendRevoke | TellLost | AnswerKeepalive) -> None: ...

    def closed(self, connection: Connection) -> None: ...


class Connection:
    """A presence connection: two streams, and the life of the token that every call carries."""

    def __init__(self, peer: Peer, stage: Stage) -> None:
        self.peer = peer
        self.session_id: SessionId | None = None
        self.up = Stream(stage.agenda, stage.chance)
        self.down = Stream(stage.agenda, stage.chance)
        self.is_open = True  # as the daemon sees it

    def close(self) -> None:
        """The daemon closes; the client sees the end of the stream after what was sent."""
        if self.is_open:
            self.is_open = False
            self.up.cut()
            self.down.send(partial(self.peer.closed, self))
