"""What another user tries: to come in, to look, to rule, to touch leases that are not its own.

Each role says what it met. The other's ids come in the environment, as if it had overheard them.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping

from aqua_protos import broker_pb2

from tests.end_to_end.bare_client import BareClient, Refused
from tests.end_to_end.other_users import Asked, run


def knock(asked: Asked, until: float) -> Mapping[str, object]:
    """Connect to each socket of the node, saying nothing."""
    if not until:
        return {}
    met = {}
    for suffix in ("", ".presence", ".keeper-shm"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(asked.socket + suffix)
                met[suffix] = "connected"
            except OSError as error:
                met[suffix] = type(error).__name__
    return met


def look(asked: Asked, until: float) -> Mapping[str, object]:
    """Hold a lease, and tell what of the node can be seen."""
    try:
        client = BareClient(asked.socket)
    except Refused as error:
        return {"refused": str(error)}
    with client:
        client.state()
        if not until:
            client.say_goodbye()
            return {}
        lease_id = client.acquire()
        state = client.state()
        return {
            "tenant": client.tenant,
            "lease": lease_id,
            "leases": [one.lease_id for one in state.leases],
            "tenants": [one.tenant for one in state.tenants],
            "events": sorted({one.tenant for one in state.events}),
        }


def rule(asked: Asked, until: float) -> Mapping[str, object]:
    """Set a quota, as an admin may."""
    with BareClient(asked.socket) as client:
        client.state()
        if not until:
            client.say_goodbye()
            return {}
        request = broker_pb2.SetQuotaRequest(
            request_id=secrets.token_hex(16), tenant="uid-77", leases=3
        )
        try:
            reply = client.call("SetQuota", request, broker_pb2.SetQuotaReply.FromString)
        except Refused as error:
            return {"refused": str(error)}
        return {"leases": reply.quota.leases}


def steal(asked: Asked, until: float) -> Mapping[str, object]:
    """Touch what is another's: its leases, its session, its token."""
    with BareClient(asked.socket) as client:
        client.state()
        if not until:
            client.say_goodbye()
            return {}
        loot = json.loads(os.environ["LOOT"])
        met: dict[str, object] = {"tenant": client.tenant}
        for name in ("Release", "Acknowledge"):
            reply = client.give_back(name, loot["lease"])
            met[name] = [list(reply.returned_lease_ids), list(reply.unknown_lease_ids)]
        try:
            BareClient(asked.socket, session_id=loot["session"]).close()
            met["session"] = "taken"
        except Refused as error:
            met["session"] = error.reason
        client.token = bytes.fromhex(loot["token"])
        try:
            client.state()
            met["with its token"] = "served"
        except Refused as error:
            met["with its token"] = error.reason
        return met


if __name__ == "__main__":
    run({one.__name__: one for one in (knock, look, rule, steal)})
