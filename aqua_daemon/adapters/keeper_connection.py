"""One connection to one keeper, from its Attach to its end.

Covers what is asked and answered on it. Does not cover getting connected again, nor what outlives a
connection (frees, handles): that is `keeper_link`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Protocol, assert_never

from aqua_protos.agreement import PROBES
from aqua_protos.frame_link import BadFrame, FrameLink
from aqua_protos.keeper_pb2 import (
    Allocated,
    Attached,
    Failed,
    Freed,
    KeeperReply,
    LinkMeasured,
    ProbeOffered,
)
from google.protobuf.message import DecodeError

from aqua_daemon.adapters import keeper_messages, probe_messages
from aqua_daemon.adapters.probe_messages import MeasureLink, OfferProbe, ProbeHandle
from aqua_daemon.core.instructions import AllocateSlab, FreeSlab
from aqua_daemon.core.link_figures import LinkSample
from aqua_daemon.core.model import GpuReport, SessionId
from aqua_daemon.ports import SlabHandle

# A keeper reports each second; one that says nothing for this long hangs.
SILENCE_SECONDS = 10.0
_PROOF_DESCRIPTORS = 2

Order = AllocateSlab | FreeSlab | OfferProbe | MeasureLink


class Listening(Protocol):
    """What a connection tells its owner, always from the loop."""

    def attached(self, attached: Attached) -> None:
        """The keeper has said all that it holds; every proof was handed on before."""

    def proof(self, session_id: SessionId, *, pidfd: int, sentinel: int) -> None:
        """A holder's proof; the listener owns both descriptors."""

    def reported(self, report: GpuReport) -> None:
        """How one GPU is, after every answer before this."""

    def allocated(self, order: AllocateSlab, handle: SlabHandle) -> None:
        """The listener owns the handle's descriptor."""

    def freed(self, order: FreeSlab, *, scrubbed_bytes: int, unreturned_bytes: int) -> None:
        """The slab is gone."""

    def offered(self, order: OfferProbe, handle: ProbeHandle) -> None:
        """The listener owns the handle's descriptor."""

    def measured(self, order: MeasureLink, samples: tuple[LinkSample, ...]) -> None:
        """A link has been measured."""

    def failed(self, order: Order, message: str) -> None:
        """The keeper refused; nothing has changed there."""

    def ended(self, reason: str, unanswered: Sequence[Order]) -> None:
        """The connection is over; what was asked on it has no answer."""


class KeeperConnection:
    """Sends orders and hands the answers on. Never waits."""

    def __init__(
        self, connection: socket.socket, listener: Listening, *, daemon_version: str
    ) -> None:
        """Takes *connection* over and attaches; `Listening.attached` follows, or `ended`."""
        self.is_attached = False
        self.warnings: tuple[str, ...] = ()  # of the keeper's release
        self._daemon_version = daemon_version
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._attached: Attached | None = None
        self._proofs = 0
        self._orders: dict[int, Order] = {}
        self._asked = 0
        self._link = FrameLink(connection, on_frame=self._receive, on_end=self._ended)
        self._heard_at = self._loop.time()
        self._silence = self._loop.call_later(SILENCE_SECONDS, self._check_heard)
        self._link.send(keeper_messages.attach_request(self._next_id(), daemon_version))

    def allocate(self, order: AllocateSlab, *, pidfd: int, sentinel: int) -> None:
        """Ask; both descriptors stay the caller's.

        Raises:
            OSError: the descriptors can't be sent, or the slab's, which the answer brings, could not
                be taken; nothing was asked.
        """
        # An answer whose descriptor finds no room breaks the link, and with it all that is pending.
        os.close(os.dup(pidfd))
        request_id = self._next_id()
        request = keeper_messages.allocate_request(request_id, order)
        self._send(request, (pidfd, sentinel))
        self._orders[request_id] = order

    def free(self, order: FreeSlab) -> None:
        """Ask. The answer comes when nobody maps the slab any more."""
        request_id = self._next_id()
        self._send(keeper_messages.free_request(request_id, order))
        self._orders[request_id] = order

    @property
    def measures_links(self) -> bool:
        """Whether the keeper has said that it does."""
        return self._attached is not None and PROBES in self._attached.features

    def offer(self, order: OfferProbe, end: int) -> None:
        """Ask; *end* stays the caller's. Raises OSError: nothing was asked."""
        os.close(os.dup(end))  # as above: the answer may bring one
        request_id = self._next_id()
        self._link.send(probe_messages.offer_request(request_id, order), (end,))
        self._orders[request_id] = order

    def measure(
        self,
        order: MeasureLink,
        handle: ProbeHandle | None = None,
        descriptors: tuple[int, ...] = (),
    ) -> None:
        """Ask; *descriptors* stay the caller's. Raises OSError: nothing was asked."""
        request_id = self._next_id()
        request = probe_messages.measure_request(request_id, order, handle)
        self._link.send(request, descriptors)
        self._orders[request_id] = order

    def close(self) -> None:
        """Close it without a word to the listener. May be called twice."""
        self.is_attached = False
        self._silence.cancel()
        self._link.close()

    def abandon(self, reason: str) -> None:
        """End it, as if the other end had."""
        if not self._link.is_closed:
            self._link.close()
            self._ended(reason)

    def _send(self, request: bytes, descriptors: Sequence[int] = ()) -> None:
        """At once to a keeper that has nothing to do; to another with the rest of this turn."""
        if self._orders:
            self._link.send_soon(request, descriptors)
        else:
            self._link.send(request, descriptors)

    def _next_id(self) -> int:
        self._asked += 1
        return self._asked

    def _ended(self, reason: str) -> None:
        self.close()
        unanswered, self._orders = tuple(self._orders.values()), {}
        self._listener.ended(reason, unanswered)

    def _check_heard(self) -> None:
        silent_seconds = self._loop.time() - self._heard_at
        if silent_seconds >= SILENCE_SECONDS:
            self.abandon(f"it has said nothing for {silent_seconds:.1f} s")
        else:
            rest = SILENCE_SECONDS - silent_seconds
            self._silence = self._loop.call_later(rest, self._check_heard)

    def _receive(self, payload: bytes) -> None:
        self._heard_at = self._loop.time()
        try:
            reply = KeeperReply.FromString(payload)
            self._take(reply)
        except (DecodeError, ValueError) as error:
            msg = f"a frame of {len(payload)} bytes can't be understood: {error}"
            raise BadFrame(msg) from error

    def _take(self, reply: KeeperReply) -> None:
        kind = reply.WhichOneof("kind")
        match kind:
            case "gpu_report":
                if self.is_attached:
                    report = keeper_messages.gpu_report(reply.gpu_report, self.warnings)
                    self._listener.reported(report)
            case "allocated":
                self._take_allocated(self._orders.pop(reply.request_id, None), reply.allocated)
            case "freed":
                self._take_freed(self._orders.pop(reply.request_id, None), reply.freed)
            case "failed":
                self._take_failed(self._orders.pop(reply.request_id, None), reply.failed)
            case "probe_offered":
                self._take_offered(self._orders.pop(reply.request_id, None), reply.probe_offered)
            case "link_measured":
                self._take_measured(self._orders.pop(reply.request_id, None), reply.link_measured)
            case "attached":
                self.warnings = keeper_messages.release_warnings(
                    reply.attached, self._daemon_version
                )
                self._attached = reply.attached
                self._finish_attach()
            case "holder_proof":
                self._take_proof(SessionId(reply.holder_proof.session_id))
            case "owner_registered" | None:
                pass  # nothing of ours: a word of a later release
            case _:
                assert_never(kind)

    def _take_proof(self, session_id: SessionId) -> None:
        pidfd, sentinel = self._link.take_descriptors(_PROOF_DESCRIPTORS)
        self._listener.proof(session_id, pidfd=pidfd, sentinel=sentinel)
        self._proofs += 1
        self._finish_attach()

    def _finish_attach(self) -> None:
        attached = self._attached
        if attached is not None and not self.is_attached and self._proofs >= attached.holders:
            self.is_attached = True
            self._listener.attached(attached)

    def _take_allocated(self, order: Order | None, answer: Allocated) -> None:
        descriptors = [] if answer.cuda_ipc_handle else self._link.take_descriptors(1)
        if not isinstance(order, AllocateSlab) or self._attached is None:
            for descriptor in descriptors:
                os.close(descriptor)
            msg = f"a slab was allocated that nobody asked for, lease {answer.lease_id}"
            raise BadFrame(msg)
        try:
            handle = keeper_messages.slab_handle(
                answer,
                keeper_pid=self._attached.keeper_pid,
                descriptor=descriptors[0] if descriptors else None,
            )
        except ValueError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        self._listener.allocated(order, handle)

    def _take_freed(self, order: Order | None, answer: Freed) -> None:
        if isinstance(order, FreeSlab):
            self._listener.freed(
                order,
                scrubbed_bytes=answer.scrubbed_bytes,
                unreturned_bytes=max(0, answer.unreturned_bytes),
            )

    def _take_offered(self, order: Order | None, answer: ProbeOffered) -> None:
        descriptors = [] if answer.cuda_ipc_handle else self._link.take_descriptors(1)
        handle = ProbeHandle(
            cuda_ipc=answer.cuda_ipc_handle,
            descriptor_kind=answer.descriptor_kind,
            descriptor=descriptors[0] if descriptors else None,
        )
        if isinstance(order, OfferProbe):
            self._listener.offered(order, handle)
        elif handle.descriptor is not None:
            os.close(handle.descriptor)

    def _take_measured(self, order: Order | None, answer: LinkMeasured) -> None:
        if isinstance(order, MeasureLink):
            self._listener.measured(order, probe_messages.samples_of(answer, order))

    def _take_failed(self, order: Order | None, answer: Failed) -> None:
        if order is None:  # the only other thing that was asked
            msg = f"it refused to be attached: {answer.code}: {answer.message}"
            raise BadFrame(msg)
        is_for_people = isinstance(order, OfferProbe | MeasureLink)
        code = "" if is_for_people else f"{answer.code}: "
        self._listener.failed(order, f"{code}{answer.message}")
