"""A lender: a process that uses its GPU as its pattern says, and lends the rest."""

from __future__ import annotations

from aqua_daemon.core.sizes import MIB
from tests.simulation.clients import Client
from tests.simulation.elastic.patterns import Pattern, Steady
from tests.simulation.node import Node
from tests.simulation.owners import Owners
from tests.simulation.truth import Gpu


class Lender:
    """Drives what one process uses of one GPU, and makes its calls as a producer."""

    def __init__(self, node: Node, gpu: Gpu, client: Client, pattern: Pattern) -> None:
        self.gpu = gpu
        self.client = client
        self.pattern = pattern
        self._node = node
        self._owners = Owners(node.stage, node.oracle)
        self._use(min(pattern.bytes_at(node.stage.now), gpu.free_bytes))

    def hold(self) -> None:
        """Use the same from now on."""
        self.pattern = Steady(self.pattern.bytes_at(self._node.stage.now))

    def offer_all(self) -> None:
        """Take back every limit that was set by an offer or a reclaim."""
        if self.client.is_ready:
            self._owners.offer(self.client, self.gpu.uuid, self.gpu.total_bytes)

    def look(self) -> None:
        """Grow into what the driver has, or shrink."""
        if not self.client.is_ready:
            return
        pid = self.client.process.identity.pid
        used, wanted = self.gpu.owners.get(pid, 0), self.pattern.bytes_at(self._node.stage.now)
        if wanted < used:
            self._use(max(1, wanted))
            if self._node.stage.chance.happens(0.3):
                self.offer_all()
        elif wanted > used:
            more = wanted - used
            chance = self._node.stage.chance
            if 2 * more > self.gpu.free_bytes and chance.happens(0.4):
                self._owners.reclaim(self.client, self.gpu, more)
            self._use(used + min(more, self.gpu.free_bytes))

    def _use(self, nbytes: int) -> None:
        pid = self.client.process.identity.pid
        if self.gpu.owners.get(pid, 0) == nbytes or nbytes <= 0:
            return
        self.gpu.owners[pid] = nbytes
        self._node.stage.count("owners changed")
        self._node.stage.tell("owner {} uses {} MiB of {}", pid, nbytes / MIB, self.gpu.uuid)
        self._node.report_soon(self.gpu.uuid)
