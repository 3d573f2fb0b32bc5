"""Every malformed request is refused with a reason, and changes nothing."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import NoReturn

import pytest
from aqua_protos.framing import LARGEST_FRAME_BYTES, encode_frame
from aqua_protos.keeper_pb2 import Allocate, Attach, Free, KeeperRequest, RegisterOwner

from tests.keeper.holders import Holder, holder, lease_id, tag_for
from tests.keeper.keepers import GPU_BYTES, running_keeper
from tests.keeper.peers import MIB, SLAB_BYTES, Peer


def allocation(tenant: Holder, **changes: object) -> KeeperRequest:
    """A good Allocate but for *changes*; those named `tag_...` go to its tag."""
    request = Allocate(gpu="SHM-0", nbytes=SLAB_BYTES, tag=tag_for(tenant, 9))
    for name, value in changes.items():
        target = request.tag if name.startswith("tag_") else request
        setattr(target, name.removeprefix("tag_"), value)
    return KeeperRequest(allocate=request)


ALLOCATIONS: list[tuple[dict[str, object], str, str]] = [
    ({"gpu": ""}, "NOT_FOUND", "no GPU '' here; this keeper has SHM-0, SHM-1"),
    ({"gpu": "GPU-0"}, "NOT_FOUND", "this keeper has SHM-0, SHM-1"),
    ({"gpu": "SHM-2" * 100}, "NOT_FOUND", "this keeper has"),
    ({"nbytes": 0}, "INVALID_ARGUMENT", "nbytes is 0: give a multiple of 2097152 from 4194304"),
    ({"nbytes": -SLAB_BYTES}, "INVALID_ARGUMENT", "nbytes is -4194304"),
    ({"nbytes": 2 * MIB}, "INVALID_ARGUMENT", "from 4194304 to 33554432"),
    ({"nbytes": SLAB_BYTES + 1}, "INVALID_ARGUMENT", "give a multiple of 2097152"),
    ({"nbytes": 2**62}, "INVALID_ARGUMENT", "from 4194304 to 33554432"),
    ({"tag_lease_id": ""}, "INVALID_ARGUMENT", "tag.lease_id is ''"),
    ({"tag_lease_id": "A" * 32}, "INVALID_ARGUMENT", "32 lower-case hexadecimal digits"),
    ({"tag_lease_id": "a" * 33}, "INVALID_ARGUMENT", "32 lower-case hexadecimal digits"),
    ({"tag_lease_id": "../" * 10}, "INVALID_ARGUMENT", "32 lower-case hexadecimal digits"),
    ({"tag_session_id": "x"}, "INVALID_ARGUMENT", "tag.session_id is 'x'"),
    ({"tag_safety_class": ""}, "INVALID_ARGUMENT", "give 'store' or 'cache'"),
    ({"tag_safety_class": "precious"}, "INVALID_ARGUMENT", "'precious': give 'store' or 'cache'"),
    ({"tag_tenant": ""}, "INVALID_ARGUMENT", "tag.tenant is empty"),
    ({"tag_tenant": "t" * 257}, "INVALID_ARGUMENT", "tag.tenant is longer than 256 characters"),
    ({"tag_borrower_gpu": "g" * 257}, "INVALID_ARGUMENT", "tag.borrower_gpu is longer than"),
    ({"tag_request_id": "r" * 257}, "INVALID_ARGUMENT", "tag.request_id is longer than"),
    ({"tag_holder_pid": 0}, "INVALID_ARGUMENT", "tag.holder_pid is 0"),
    ({"tag_lease_id": lease_id(1)}, "ALREADY_EXISTS", "lease ids are never reused"),
    (
        {"gpu": "SHM-1", "tag_lease_id": lease_id(1)},
        "ALREADY_EXISTS",
        "has a slab on SHM-0",
    ),
]

OTHERS: list[tuple[KeeperRequest, str, str]] = [
    (KeeperRequest(attach=Attach()), "INVALID_ARGUMENT", "protocol is 0"),
    (
        KeeperRequest(attach=Attach(protocol=98, newest_protocol=99, daemon_version="9")),
        "FAILED_PRECONDITION",
        "the daemon (version 9) speaks protocol 98 to 99, this keeper",
    ),
    (KeeperRequest(free=Free(gpu="SHM-9", lease_id=lease_id(1))), "NOT_FOUND", "no GPU 'SHM-9'"),
    (KeeperRequest(free=Free(gpu="SHM-0", lease_id="1")), "INVALID_ARGUMENT", "lease_id is '1'"),
    (KeeperRequest(free=Free(gpu="SHM-0")), "INVALID_ARGUMENT", "lease_id is ''"),
    (
        KeeperRequest(free=Free(gpu="SHM-1", lease_id=lease_id(1))),
        "INVALID_ARGUMENT",
        "is on SHM-0, not on SHM-1",
    ),
    (
        KeeperRequest(register_owner=RegisterOwner(gpu="SHM-9", nbytes=1)),
        "NOT_FOUND",
        "no GPU 'SHM-9'",
    ),
    (
        KeeperRequest(register_owner=RegisterOwner(gpu="SHM-0", nbytes=-1)),
        "INVALID_ARGUMENT",
        "nbytes is -1: give 0",
    ),
    (
        KeeperRequest(register_owner=RegisterOwner(gpu="SHM-0", nbytes=2**62)),
        "RESOURCE_EXHAUSTED",
        f"of {GPU_BYTES} bytes free, {2**62} are asked for; slabs hold {SLAB_BYTES}",
    ),
]


def books(daemon: Peer) -> list[tuple[str, list[str], int]]:
    """What the keeper holds, asked anew."""
    return [
        (report.gpu, [slab.tag.lease_id for slab in report.slabs], len(report.owners))
        for report in daemon.attach().gpus
    ]


@pytest.mark.limit(120)
def test_malformed_requests_are_refused_and_change_nothing() -> None:
    """Each is answered with its code and what to do; the books stay as they were."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        daemon.allocate(tenant)
        before, descriptors = books(daemon), keeper.descriptors()
        proof = (tenant.pidfd, tenant.sentinel.fileno())
        table = [
            (allocation(tenant, **changes), code, message) for changes, code, message in ALLOCATIONS
        ]
        for request, code, message in [*table, *OTHERS]:
            sent = proof if request.WhichOneof("kind") == "allocate" else ()
            answer = daemon.answer(daemon.ask(request, sent))
            assert answer.failed.code == code, (request, answer)
            assert message in answer.failed.message, (request, answer)
            assert books(daemon) == before, request
        keeper.wait_for_descriptors(descriptors)


def test_a_request_without_an_id_is_refused() -> None:
    """Id 0 marks what the keeper says unasked, so no request may have it."""
    with running_keeper() as keeper, keeper.peer() as peer:
        request = KeeperRequest(register_owner=RegisterOwner(gpu="SHM-0", nbytes=1))
        peer.connection.sendall(encode_frame(request.SerializeToString()))
        answer = peer.answer(0)
        assert answer.failed.code == "INVALID_ARGUMENT"
        assert "request_id is 0" in answer.failed.message


def test_an_allocation_needs_a_pidfd_and_a_sentinel() -> None:
    """Descriptors that could never prove a death are refused, and closed."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        before = keeper.descriptors()
        sentinel = tenant.sentinel.fileno()
        with open(os.devnull, "rb") as null:  # noqa: PTH123 - its descriptor is what matters
            for sent, message in (
                ((), "carries 2 descriptors, the holder's pidfd and sentinel; 0 came"),
                ((tenant.pidfd,), "1 came"),
                ((null.fileno(), sentinel), "must be the holder's pidfd"),
                ((sentinel, tenant.pidfd), "must be the holder's pidfd"),
                ((tenant.pidfd, null.fileno()), "must be a socket"),
            ):
                answer = daemon.answer(daemon.ask(allocation(tenant), sent))
                assert answer.failed.code == "INVALID_ARGUMENT", sent
                assert message in answer.failed.message
        keeper.wait_for_descriptors(before)


def test_only_the_attached_daemon_allocates_and_frees() -> None:
    """Another connection of the same user may register as an owner and no more."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        with keeper.peer() as stranger:
            asked = stranger.ask_for_slab(tenant, lease=2)
            assert stranger.answer(asked).failed.code == "FAILED_PRECONDITION"
            free = KeeperRequest(free=Free(gpu="SHM-0", lease_id=slab.lease_id))
            answer = stranger.answer(stranger.ask(free))
            assert answer.failed.code == "FAILED_PRECONDITION"
            assert "send Attach first" in answer.failed.message
        assert [entry.tag.lease_id for entry in daemon.report().slabs] == [slab.lease_id]


def _send(content: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(content)


def _send_half(connection: socket.socket) -> None:
    connection.sendall(encode_frame(b"0123456789")[:8])
    connection.shutdown(socket.SHUT_WR)


def _send_descriptors(connection: socket.socket) -> None:
    frame = encode_frame(KeeperRequest(request_id=1, free=Free()).SerializeToString())
    for _ in range(20):
        socket.send_fds(connection, [frame], [0, 0])


BAD_STREAMS = {
    "nothing": _send(b""),
    "half a frame": _send_half,
    "over the size limit": _send(struct.pack("!I", LARGEST_FRAME_BYTES + 1)),
    "the largest length": _send(b"\xff\xff\xff\xff"),
    "no message": _send(encode_frame(b"\xff\xff\xff")),
    "a message cut short": _send(encode_frame(b"\x08")),
    "an empty frame": _send(encode_frame(b"")),
    "a kind that nobody knows": _send(encode_frame(b"\x08\x01\xfa\x01\x00")),
    "descriptors that nothing asks for": _send_descriptors,
}


@pytest.mark.limit(120)
def test_a_bad_stream_ends_only_its_own_connection() -> None:
    """Whatever one peer sends, the daemon's link and the books are as before."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        daemon.answer(daemon.ask_for_slab(tenant))  # by now it has closed its copy of what it sent
        before = keeper.descriptors()
        for name, send in BAD_STREAMS.items():
            with keeper.peer() as bad:
                send(bad.connection)
                if name == "nothing":
                    bad.connection.shutdown(socket.SHUT_WR)
                assert bad.has_ended(), name
            assert daemon.answer(daemon.ask_for_slab(tenant)).failed.code == "ALREADY_EXISTS", name
        assert [entry.tag.lease_id for entry in daemon.report().slabs] == [slab.lease_id]
        keeper.wait_for_descriptors(before)


def test_a_daemon_that_does_not_read_blocks_nobody() -> None:
    """Its answers pile up to a bound; then its connection ends, and the next daemon is served."""
    with running_keeper() as keeper, keeper.peer() as slow:
        slow.attach()
        request = KeeperRequest(request_id=7, attach=Attach(protocol=1))
        frames = encode_frame(request.SerializeToString()) * 1000
        slow.connection.settimeout(20)
        with pytest.raises(ConnectionError):
            send_for_ever(slow.connection, frames)
        with keeper.daemon() as daemon:
            assert daemon.report("SHM-1").total_bytes == GPU_BYTES


def send_for_ever(connection: socket.socket, content: bytes) -> NoReturn:
    while True:
        connection.sendall(content)
