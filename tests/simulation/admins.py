"""Admins: they drain GPUs, take them back, leave them alone, let them be lent again, and measure.

What is drained is kept in a file; a quiet is held by a session, and ends with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from aqua_daemon.core.errors import Measuring
from aqua_daemon.core.events import (
    DrainRequested,
    Event,
    LinkProbeRequested,
    PresenceEnded,
    ProcessEnded,
    QuiesceRequested,
    SentinelEnded,
    SessionClosed,
    SessionOpened,
    UndrainRequested,
)
from aqua_daemon.core.link_figures import HOST
from aqua_daemon.core.model import (
    GpuPair,
    GpuUuid,
    ProcessIdentity,
    RequestId,
    SessionId,
    TenantName,
)
from tests.simulation.daemon import Daemon
from tests.simulation.judge import require
from tests.simulation.stage import Stage

_ROOT = TenantName("uid-0")


class Admins:
    """Each act is a session of its own, as with aquactl."""

    def __init__(
        self,
        gpus: Sequence[GpuUuid],
        *,
        stage: Stage,
        find_daemon: Callable[[], Daemon | None],
    ) -> None:
        self.kept: dict[GpuUuid, None] = {}  # what the file says is drained
        self._gpus = gpus
        self._stage = stage
        self._find_daemon = find_daemon

    def drain(self) -> None:
        """One GPU, or all of them; now and then only to hear what it would do."""
        chance = self._stage.chance
        gpus = (chance.pick(self._gpus),) if chance.happens(0.8) else ()
        is_dry_run = chance.happens(0.2)
        if self._asks(
            lambda session_id: DrainRequested(
                session_id=session_id,
                request_id=RequestId(chance.new_id()),
                gpus=gpus,
                deadline_seconds=chance.pick((None, None, 0.3, 8.0)),
                is_dry_run=is_dry_run,
            )
        ):
            drained = () if is_dry_run else gpus or self._gpus
            self.kept.update(dict.fromkeys(drained))

    def undrain(self) -> None:
        """One GPU that is drained, or all."""
        chance = self._stage.chance
        if not self.kept:
            return
        gpus = (chance.pick(list(self.kept)),) if chance.happens(0.5) else ()
        if self._asks(
            lambda session_id: UndrainRequested(
                session_id=session_id, request_id=RequestId(chance.new_id()), gpus=gpus
            )
        ):
            for gpu in gpus or tuple(self.kept):
                del self.kept[gpu]

    def quiesce(self) -> None:
        """A GPU is to be left alone, or taken back first, for a while; it ends in one way or another."""
        daemon, chance = self._find_daemon(), self._stage.chance
        if daemon is None:
            return
        session_id, gpu = SessionId(chance.new_id()), chance.pick(self._gpus)
        self._tell(daemon, self._came(session_id))
        seconds, takes_back = chance.pick((0.5, 2.0, 6.0)), chance.happens(0.5)
        self._quiet(daemon, session_id, gpu, seconds, takes_back=takes_back)
        if chance.happens(0.3):
            more = partial(self._quiet, daemon, session_id, gpu, 1.0, takes_back=False)
            self._stage.agenda.after(chance.between(0.0, 0.4), more)
        end = partial(self._end_quiet, daemon, session_id, gpu)
        self._stage.agenda.after(chance.between(0.5, 7.0), end)

    def measure(self) -> None:
        """One link, or several at the same time; one who asks before it is over is told so."""
        chance = self._stage.chance
        ends = [*self._gpus, HOST]
        pairs = {
            GpuPair(source=source, target=target)
            for source, target in ((chance.pick(ends), chance.pick(ends)) for _ in range(3))
            if source != target
        }
        if pairs:
            self._asks(
                lambda session_id: LinkProbeRequested(
                    session_id=session_id,
                    request_id=RequestId(chance.new_id()),
                    pairs=tuple(sorted(pairs, key=str)),
                )
            )

    def _asks(
        self, make: Callable[[SessionId], DrainRequested | UndrainRequested | LinkProbeRequested]
    ) -> bool:
        """Whether a daemon is there; it must not refuse."""
        daemon, chance = self._find_daemon(), self._stage.chance
        if daemon is None:
            return False
        session_id = SessionId(chance.new_id())
        came, closed = self._came(session_id), SessionClosed(session_id=session_id)
        for event in (came, make(session_id), closed):
            self._tell(daemon, event)
        return True

    def _came(self, session_id: SessionId) -> SessionOpened:
        return SessionOpened(
            session_id=session_id,
            tenant=_ROOT,
            process=ProcessIdentity(pid=1, start_ticks=1, uid=0),
            home_gpu=None,
            is_admin=True,
        )

    def _tell(self, daemon: Daemon, event: Event) -> None:
        error = daemon.handle(event)
        may_wait = isinstance(event, LinkProbeRequested) and isinstance(error, Measuring)
        require(error is None or may_wait, "an admin was refused: {}", error)

    def _quiet(
        self,
        daemon: Daemon,
        session_id: SessionId,
        gpu: GpuUuid,
        seconds: float,
        *,
        takes_back: bool = False,
    ) -> None:
        request_id = RequestId(self._stage.chance.new_id())
        event = QuiesceRequested(
            session_id=session_id,
            request_id=request_id,
            gpu=gpu,
            seconds=seconds,
            takes_back=takes_back,
        )
        self._tell(daemon, event)

    def _end_quiet(self, daemon: Daemon, session_id: SessionId, gpu: GpuUuid) -> None:
        """It is lifted, or its holder leaves, or hangs up or dies."""
        how = self._stage.chance.pick(("lifted", "left", "hung up", "died"))
        self._stage.count(f"quiets {how}")
        if how == "lifted":
            self._quiet(daemon, session_id, gpu, 0.0)
        if how in {"lifted", "left"}:
            self._tell(daemon, SessionClosed(session_id=session_id))
        else:
            if how == "hung up":
                self._tell(daemon, PresenceEnded(session_id=session_id))
            self._tell(daemon, ProcessEnded(session_id=session_id))
            self._tell(daemon, SentinelEnded(session_id=session_id))
