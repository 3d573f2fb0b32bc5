"""Measurements of links on their way through the keepers.

Story of a link between two keepers: the source's makes memory and says how it is reached; the
target's opens that on its own device, copies, closes it, and answers. Each has one end of a socket
pair. The target lets go of its end when it has closed the memory, or by its own end: the source frees
it then, and never before, whatever became of this daemon.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

from aqua_daemon.adapters.keeper_connection import KeeperConnection
from aqua_daemon.adapters.probe_messages import MeasureLink, OfferProbe, ProbeHandle
from aqua_daemon.core.events import Event, LinkProbed
from aqua_daemon.core.instructions import ProbeLink
from aqua_daemon.core.link_figures import HOST, LinkOutcome, LinkSample
from aqua_daemon.core.model import GpuUuid


class Link(Protocol):
    """What this needs of the link to a keeper."""

    connection: KeeperConnection | None


class LinkProbes:
    """Those that have no answer yet."""

    def __init__(self, *, submit: Callable[[Event], None]) -> None:
        self._submit = submit
        self._link_of: dict[GpuUuid, Link] = {}
        self._ends: dict[ProbeLink, socket.socket] = {}  # for the target's keeper

    def connect(self, link_of: dict[GpuUuid, Link]) -> None:
        """Say whose keeper is reached by which link."""
        self._link_of = link_of

    def start(self, order: ProbeLink) -> None:
        """Ends in LinkProbed, unless a keeper hangs."""
        source, target = order.pair.source, order.pair.target
        links = {id(self._link_of[end]) for end in (source, target) if end != HOST}
        if len(links) == 1:
            asked = MeasureLink(probe=order)
            self._ask(target if source == HOST else source, order, lambda to: to.measure(asked))
            return
        try:
            ours, end = socket.socketpair()
        except OSError as error:
            self.failed(order, f"no descriptor is left in the daemon: {error.strerror}")
            return
        self._ends[order] = ours
        with end:
            offer = OfferProbe(probe=order)
            self._ask(source, order, lambda to: to.offer(offer, end.fileno()))

    def offered(self, order: OfferProbe, handle: ProbeHandle) -> None:
        """The source's keeper has made the memory; takes the handle's descriptor over."""
        end = self._ends.pop(order.probe, None)
        descriptors = () if handle.descriptor is None else (handle.descriptor,)
        if end is not None:
            with end:
                asked, gone_with = MeasureLink(probe=order.probe), (end.fileno(), *descriptors)
                self._ask(
                    order.probe.pair.target,
                    order.probe,
                    lambda to: to.measure(asked, handle, gone_with),
                )
        for descriptor in descriptors:
            os.close(descriptor)

    def measured(self, order: MeasureLink, samples: tuple[LinkSample, ...]) -> None:
        """The target's keeper has copied."""
        self._tell(order.probe, LinkOutcome(pair=order.probe.pair, samples=samples))

    def failed(self, order: ProbeLink, message: str) -> None:
        """A keeper refused, or is gone."""
        end = self._ends.pop(order, None)
        if end is not None:
            end.close()
        self._tell(order, LinkOutcome(pair=order.pair, problem=message))

    def close(self) -> None:
        """Let go of all that waits. May be called twice."""
        for end in self._ends.values():
            end.close()
        self._ends.clear()

    def _ask(self, gpu: GpuUuid, order: ProbeLink, ask: Callable[[KeeperConnection], None]) -> None:
        connection = self._link_of[gpu].connection
        if connection is None or not connection.is_attached:
            self.failed(order, f"the keeper of {gpu} can't be reached")
        elif not connection.measures_links:
            self.failed(order, f"the keeper of {gpu} is of a release that measures no links")
        else:
            try:
                ask(connection)
            except OSError as error:
                self.failed(order, f"the keeper of {gpu} can't be asked: {error.strerror}")

    def _tell(self, order: ProbeLink, outcome: LinkOutcome) -> None:
        self._submit(LinkProbed(request_id=order.request_id, outcome=outcome))
