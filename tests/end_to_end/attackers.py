"""What one user does to a node for a few seconds.

`python -m tests.end_to_end.attackers ASKED`, as `other_users` starts it. Each role counts what came
of it, by the daemon's own words, and says so when its time is over.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping

from aqua_protos import presence_pb2
from aqua_protos.framing import Disconnected, FrameTooLarge, encode_frame, send_frame

from tests.end_to_end.bare_client import BareClient, Refused
from tests.end_to_end.other_users import Asked, Role, run

_THREADS = 8
Counts = Counter[str]


def flood_connections(asked: Asked, until: float) -> Counts:
    """Connects as fast as it can; says nothing, nonsense, or a hello under ever new names."""
    counts: Counts = Counter()
    held: deque[socket.socket] = deque()
    number = 0
    while time.monotonic() < until:
        number += 1
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        try:
            connection.connect(f"{asked.socket}.presence")
            hello = presence_pb2.Hello(protocol=1, sub_tenant=f"name-{number}")
            frame = presence_pb2.ClientFrame(hello=hello).SerializeToString()
            sent = (b"", encode_frame(frame), encode_frame(b"\xff" * 64), b"\xff" * 64)
            connection.sendall(sent[number % len(sent)])
            counts["connected"] += 1
        except OSError as error:
            counts[type(error).__name__] += 1
        held.append(connection)
        if len(held) > 400:
            held.popleft().close()
    return counts


def flood_frames(asked: Asked, until: float) -> Counts:
    """Keepalives as fast as the socket takes them; when it is thrown out it comes again."""
    counts: Counts = Counter()
    keepalive = presence_pb2.ClientFrame(keepalive=presence_pb2.Keepalive(sequence=1))
    payload = keepalive.SerializeToString()
    while time.monotonic() < until:
        try:
            with BareClient(asked.socket) as client:
                while time.monotonic() < until:
                    send_frame(client.connection, payload)
                    counts["frames"] += 1
        except Refused as error:
            counts[error.reason] += 1
        except (Disconnected, FrameTooLarge, OSError):
            counts["thrown out"] += 1
    return counts


def flood_calls(asked: Asked, until: float) -> Counts:
    """Calls from several threads: for leases, for the state, about leases of nobody."""
    counts: Counts = Counter()

    def call_on() -> None:
        while time.monotonic() < until:
            try:
                with BareClient(asked.socket) as client:
                    while time.monotonic() < until:
                        _call_once(client, counts)
            except Refused as error:
                counts[error.reason] += 1
            except (Disconnected, OSError):
                counts["thrown out"] += 1

    threads = [threading.Thread(target=call_on) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def flood_leases(asked: Asked, until: float) -> Counts:
    """Sessions under ever new sub-tenants' names, each of which takes what leases it gets."""
    counts: Counts = Counter()
    held: list[BareClient] = []
    while time.monotonic() < until:
        try:
            client = BareClient(asked.socket, sub_tenant=f"part-{sum(counts.values())}")
            held.append(client)
            counts["sessions"] += 1
            client.acquire()
            counts["leases"] += 1
        except Refused as error:
            counts[error.reason] += 1
        except (Disconnected, OSError):
            counts["thrown out"] += 1
    return counts


ROLES = {one.__name__: one for one in (flood_connections, flood_frames, flood_calls, flood_leases)}


def _warm_up(asked: Asked) -> None:
    with BareClient(asked.socket) as client:
        client.state()
        client.say_goodbye()


def _call_once(client: BareClient, counts: Counts) -> None:
    for call in (client.acquire, client.state, lambda: client.give_back("Release", "ab" * 16)):
        try:
            call()
            counts["ok"] += 1
        except Refused as error:
            counts[error.reason] += 1
            if error.reason == "unauthenticated":
                raise


def _warmed(role: Role) -> Role:
    def warmed(asked: Asked, until: float) -> Mapping[str, object]:
        if not until:
            _warm_up(asked)
        return role(asked, until)

    return warmed


if __name__ == "__main__":
    run({name: _warmed(role) for name, role in ROLES.items()})
