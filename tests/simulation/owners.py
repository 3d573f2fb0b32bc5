"""Owners: the GPUs' own processes, which grow and shrink as they like, and lend what they offer.

Some are clients too, and so may make the calls of producers.
"""

from __future__ import annotations

from functools import partial

from aqua_daemon.core.errors import BrokerError, NotPermitted
from aqua_daemon.core.events import OfferMade, ReclaimRequested
from aqua_daemon.core.instructions import Answer
from aqua_daemon.core.model import GpuUuid, RequestId
from aqua_daemon.core.sizes import MIB
from tests.simulation.clients import Client
from tests.simulation.judge import Judge
from tests.simulation.stage import Stage
from tests.simulation.truth import Gpu


class Owners:
    """What processes use of the GPUs beside slabs."""

    def __init__(self, stage: Stage, judge: Judge) -> None:
        self._stage = stage
        self._judge = judge

    def change_use(self, gpu: Gpu, pid: int) -> None:
        """A process of a GPU allocates what the driver gives it, or frees some of its own."""
        chance = self._stage.chance
        used = gpu.owners.get(pid, 0)
        if used > 1 and chance.happens(0.5):
            used = max(1, int(used * chance.between(0.0, 0.8)))
            self._stage.count("owners shrank")
        else:
            used += int(min(gpu.free_bytes, chance.between(1, 0.5 * gpu.total_bytes // MIB) * MIB))
            self._stage.count("owners grew")
        if not used:
            return  # the driver had nothing: the process does not show on this GPU
        gpu.owners[pid] = used
        self._stage.tell("process {} uses {} bytes of {}", pid, gpu.owners[pid], gpu.uuid)

    def offer(self, client: Client, gpu: GpuUuid, nbytes: int) -> None:
        """Say how much may be lent."""
        if client.session_id is not None:
            event = OfferMade(
                session_id=client.session_id,
                request_id=RequestId(self._stage.chance.new_id()),
                gpu=gpu,
                nbytes=nbytes,
            )
            client.caller.call(event, _ignore, seconds=2.0)

    def reclaim(
        self, client: Client, gpu: Gpu, nbytes: int, *, seconds: float | None = None
    ) -> None:
        """Ask for bytes back; who is no process of the GPU must be refused.

        Some have time, and then suddenly none.
        """
        if client.session_id is None:
            return
        chance = self._stage.chance
        event = ReclaimRequested(
            session_id=client.session_id,
            request_id=RequestId(chance.new_id()),
            gpu=gpu.uuid,
            nbytes=nbytes,
            deadline_seconds=seconds or chance.pick((None, 0.5, 2.0, 5.0, 20.0)),
        )
        if event.deadline_seconds and event.deadline_seconds > 2.0 and chance.happens(0.5):
            in_need = partial(self.reclaim, client, gpu, nbytes, seconds=chance.pick((0.2, 1.0)))
            self._stage.agenda.after(
                chance.between(0.0, 1.5), partial(client.caller.awake, in_need)
            )
        done = partial(self._reclaimed, client, gpu, event)
        client.caller.call(event, done, seconds=10.0)

    def _reclaimed(
        self, client: Client, gpu: Gpu, event: ReclaimRequested, answer: Answer | BrokerError | None
    ) -> None:
        is_owner = client.process.identity.pid in gpu.owners
        if isinstance(answer, BrokerError):
            has_left = event.session_id != client.session_id
            if not (isinstance(answer, NotPermitted) or has_left):
                self._judge.wrongly_refused(event, answer)
            self._stage.count("reclaims refused")
        elif answer is not None and not is_owner:
            self._stage.count("reclaims of former owners")


def _ignore(answer: Answer | BrokerError | None) -> None:
    """Whether an offer was accepted is seen in what is lent."""
