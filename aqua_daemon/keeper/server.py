"""A keeper's socket: answers requests in order, reports, and knows when to end.

Covers connections, the daemon's place, and timers. What a request does is `node`'s, its form is
`requests`'s. One thread, one loop; nothing here waits for a peer.

1. A peer that sends what is no frame of the protocol loses its connection and nothing else.
2. The newest connection that says Attach is the daemon's; the one before is closed, and the frees
   that it waits for are forgotten: those slabs stay as they are, and the new daemon decides.
3. A Free of a slab that somebody maps waits, and is tried again by a timer. Requests after it are
   answered meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import assert_never

from aqua_protos.frame_link import BadFrame, FrameLink
from aqua_protos.keeper_pb2 import (
    Allocate,
    Attach,
    Free,
    KeeperRequest,
    LinkSample,
    MeasureLink,
    OfferProbe,
    RegisterOwner,
)
from google.protobuf.message import DecodeError

from aqua_daemon.keeper import answers, requests
from aqua_daemon.keeper.accepting import Acceptor
from aqua_daemon.keeper.gpu import Slab
from aqua_daemon.keeper.lifetime import Lifetime
from aqua_daemon.keeper.node import KeptGpus
from aqua_daemon.keeper.owners import Owners
from aqua_daemon.keeper.peers import Peer, peer_pidfd
from aqua_daemon.keeper.probing import Probes, descriptors_of
from aqua_daemon.keeper.refusal import Refused, exhausted, invalid

REPORT_SECONDS = 1.0
# A waiting free is tried again this soon, then each time half as soon: looking may take a look at
# every process.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.02, 0.5
_PROOF_DESCRIPTORS = 2

_log = logging.getLogger("aqua.keeper")


class KeeperServer:
    """Serves one listener until `finished` is set. Made on a running loop."""

    def __init__(
        self, node: KeptGpus, *, listener: socket.socket, linger_seconds: float | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._node = node
        self._peers: dict[FrameLink, tuple[socket.socket, Peer]] = {}
        self._daemon: FrameLink | None = None
        self._waiting_frees: list[tuple[int, Free]] = []
        self._retry_timer: asyncio.TimerHandle | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._owners = Owners(self._owner_ended)
        self._probes = Probes(node, self._report)
        self._acceptor = Acceptor(listener, self._accepted, lambda: len(self._peers))
        self._lifetime = Lifetime(linger_seconds=linger_seconds)
        self.finished = asyncio.Event()
        self._tick_timer = self._loop.call_later(REPORT_SECONDS, self._tick)

    def stop(self) -> None:
        """End once no living process may hold a slab; called again: end."""
        self._lifetime.ask_to_end()
        self._end_if_over()
        if not self.finished.is_set():
            _log.warning("living processes hold slabs: staying until they end (or told again)")

    def close(self) -> None:
        """Close every connection. May be called twice."""
        self._tick_timer.cancel()
        self._forget_daemon()
        self._acceptor.close()
        self._owners.close()
        self._probes.close()
        for link in list(self._peers):
            self._drop(link)

    def _accepted(self, connection: socket.socket, peer: Peer) -> None:
        link: FrameLink = FrameLink(
            connection,
            on_frame=lambda payload: self._receive(link, payload),
            on_end=lambda reason: self._ended(link, reason),
        )
        self._peers[link] = (connection, peer)

    def _ended(self, link: FrameLink, reason: str) -> None:
        _socket, peer = self._peers[link]
        _log.info("process %d: %s", peer.pid, reason)
        self._drop(link)

    def _drop(self, link: FrameLink) -> None:
        link.close()
        self._peers.pop(link, None)
        if link is self._daemon:
            self._forget_daemon()

    def _receive(self, link: FrameLink, payload: bytes) -> None:
        try:
            request = KeeperRequest.FromString(payload)
        except DecodeError as error:
            msg = f"a frame of {len(payload)} bytes is no request: {error}"
            raise BadFrame(msg) from error
        try:
            self._answer(link, request)
        except Refused as refusal:
            link.send(answers.failed(request.request_id, refusal))

    def _answer(self, link: FrameLink, request: KeeperRequest) -> None:
        kind = request.WhichOneof("kind")
        match kind:
            case "allocate":
                self._allocate(link, request.request_id, request.allocate)
            case "free":
                self._free(link, request.request_id, request.free)
            case "attach":
                self._attach(link, request.request_id, request.attach)
            case "register_owner":
                self._register_owner(link, request.request_id, request.register_owner)
            case "offer_probe":
                self._offer_probe(link, request.request_id, request.offer_probe)
            case "measure_link":
                self._measure_link(link, request.request_id, request.measure_link)
            case None:
                msg = "a request of a kind that this keeper does not know"
                raise BadFrame(msg)
            case _:
                assert_never(kind)

    def _attach(self, link: FrameLink, request_id: int, request: Attach) -> None:
        _check_request_id(request_id)
        protocol = requests.agreed_protocol_with(request)
        if self._daemon is not None and self._daemon is not link:
            _log.info("another daemon takes the place of the one that was attached")
            self._drop(self._daemon)
        self._daemon = link
        proofs = self._node.proofs()
        attached = answers.attached(request_id, self._node, holders=len(proofs), protocol=protocol)
        link.send(attached)
        try:
            for proof in proofs:
                descriptors = (proof.pidfd, proof.sentinel)
                link.send(answers.holder_proof(request_id, proof.session_id), descriptors)
        except OSError as error:
            # A daemon without every proof would take living holders for unknown ones.
            msg = f"a holder's proof can't be handed over: {error}"
            raise BadFrame(msg) from error
        _log.info("daemon %r attached, process %d", request.daemon_version, self._pid_of(link))
        self._report()

    def _allocate(self, link: FrameLink, request_id: int, request: Allocate) -> None:
        pidfd, sentinel = self._taken(
            link, request_id, _PROOF_DESCRIPTORS, self._check_may_allocate
        )
        slab = self._node.allocate(request, pidfd=pidfd, sentinel=sentinel)
        try:
            self._hand_over(link, request_id, slab)
        except Refused:
            self._node.free(Free(gpu=request.gpu, lease_id=request.tag.lease_id))
            raise

    def _hand_over(self, link: FrameLink, request_id: int, slab: Slab) -> None:
        with contextlib.closing(slab.memory.handle_for_holder()) as handle:
            descriptors = () if handle.descriptor is None else (handle.descriptor,)
            try:
                link.send_soon(answers.allocated(request_id, slab, handle), descriptors)
            except OSError as error:
                raise exhausted(f"the slab's descriptor can't be sent: {error}") from error

    def _free(self, link: FrameLink, request_id: int, request: Free) -> None:
        _check_request_id(request_id)
        self._check_daemon(link)
        if not self._try_free(link, request_id, request):
            self._waiting_frees.append((request_id, request))
            self._retry_seconds = FIRST_RETRY_SECONDS
            self._retry_soon()

    def _try_free(self, link: FrameLink, request_id: int, request: Free) -> bool:
        freed = self._node.free(request)
        if freed is None:
            return False
        link.send_soon(answers.freed(request_id, request.lease_id, freed))
        return True

    def _retry_soon(self) -> None:
        if self._retry_timer is None and self._waiting_frees:
            self._retry_timer = self._loop.call_later(self._retry_seconds, self._retry_frees)
            self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)

    def _retry_frees(self) -> None:
        self._retry_timer = None
        daemon = self._daemon
        if daemon is not None:
            self._waiting_frees = [
                waiting for waiting in self._waiting_frees if not self._retry(daemon, *waiting)
            ]
            self._retry_soon()

    def _retry(self, daemon: FrameLink, request_id: int, request: Free) -> bool:
        try:
            return self._try_free(daemon, request_id, request)
        except Refused as refusal:
            daemon.send(answers.failed(request_id, refusal))
            return True

    def _register_owner(self, link: FrameLink, request_id: int, request: RegisterOwner) -> None:
        _check_request_id(request_id)
        connection, peer = self._peers[link]
        try:
            pidfd = peer_pidfd(connection)
        except OSError as error:
            message = f"process {peer.pid} can't be watched: {error.strerror}; connect from a living process of this PID namespace"
            raise Refused("FAILED_PRECONDITION", message) from error
        self._owners.watch(peer.pid, pidfd)
        try:
            nbytes = self._node.set_owner(request, pid=peer.pid)
        finally:
            if not self._node.has_owner(peer.pid):
                self._owners.forget(peer.pid)
        link.send(answers.owner_registered(request_id, request.gpu, nbytes))
        self._report()

    def _offer_probe(self, link: FrameLink, request_id: int, request: OfferProbe) -> None:
        (end,) = self._taken(link, request_id, 1)
        with contextlib.closing(self._probes.offer(request, end)) as handle:
            descriptors = () if handle.descriptor is None else (handle.descriptor,)
            try:
                link.send(answers.probe_offered(request_id, handle), descriptors)
            except OSError as error:  # whoever asked lets go of the other end then
                raise exhausted(f"the memory's descriptor can't be sent: {error}") from error

    def _measure_link(self, link: FrameLink, request_id: int, request: MeasureLink) -> None:
        def done(found: Sequence[LinkSample] | Refused) -> None:
            if isinstance(found, Refused):
                link.send(answers.failed(request_id, found))
            else:
                link.send(answers.link_measured(request_id, found))

        descriptors = self._taken(link, request_id, descriptors_of(request))
        self._probes.measure(request, descriptors, done)

    def _taken(
        self,
        link: FrameLink,
        request_id: int,
        count: int,
        check: Callable[[list[int]], None] = lambda _descriptors: None,
    ) -> list[int]:
        """What came with a request of the daemon's; all of it is closed where that is refused."""
        descriptors = link.take_descriptors(min(link.waiting_descriptors, count))
        try:
            _check_request_id(request_id)
            self._check_daemon(link)
            check(descriptors)
            if len(descriptors) < count:
                raise invalid(f"{count} descriptors belong to it, {len(descriptors)} came")
        except Refused:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return descriptors

    def _owner_ended(self, pid: int) -> None:
        self._node.end_owner(pid)
        self._report()

    def _report(self) -> None:
        if self._daemon is not None:
            for report in self._node.reports():
                self._daemon.send(answers.report(report))

    def _tick(self) -> None:
        self._tick_timer = self._loop.call_later(REPORT_SECONDS, self._tick)
        self._node.look()
        self._report()
        self._end_if_over()
        if self._node.failure:
            _log.error("no slab can be made here any more: %s", self._node.failure)
            self.finished.set()

    def _end_if_over(self) -> None:
        if self._lifetime.is_over(
            self._loop.time(),
            has_daemon=self._daemon is not None,
            has_owners=self._node.has_owner(),
            has_living_holders=self._node.has_living_holders(),
        ):
            self.finished.set()

    def _check_daemon(self, link: FrameLink) -> None:
        if link is not self._daemon:
            message = "only the daemon that attached last may ask this: send Attach first"
            raise Refused("FAILED_PRECONDITION", message)

    def _check_may_allocate(self, descriptors: list[int]) -> None:
        if self._lifetime.is_ending:
            raise Refused("UNAVAILABLE", "the keeper was told to end: ask the next one")
        _check_proof_came(descriptors)

    def _forget_daemon(self) -> None:
        self._daemon = None
        self._waiting_frees.clear()
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None

    def _pid_of(self, link: FrameLink) -> int:
        return self._peers[link][1].pid


def _check_request_id(request_id: int) -> None:
    if not request_id:
        raise invalid("request_id is 0, which marks what the keeper says unasked: give 1 or more")


def _check_proof_came(descriptors: list[int]) -> None:
    if len(descriptors) < _PROOF_DESCRIPTORS:
        raise invalid(
            f"Allocate carries {_PROOF_DESCRIPTORS} descriptors, the holder's pidfd and sentinel; "
            f"{len(descriptors)} came (the kernel drops them where a keeper may have no more)"
        )
