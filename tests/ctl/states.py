"""States of a node to draw and judge."""

from __future__ import annotations

from aqua_protos import broker_pb2

MIB = 2**20


def gpu(name: str, **figures: object) -> broker_pb2.GpuState:
    """A quiet 256 MiB GPU, with *figures* changed."""
    quiet: dict[str, object] = {
        "total_bytes": 256 * MIB,
        "free_bytes": 256 * MIB,
        "reserve_bytes": 26 * MIB,
        "lendable_bytes": 217 * MIB,
    }
    return broker_pb2.GpuState(gpu=name, **(quiet | figures))  # type: ignore[arg-type]  # the caller names the message's own fields


def node(*gpus: broker_pb2.GpuState, **fields: object) -> broker_pb2.GetStateReply:
    """A node of *gpus*, up for an hour and a bit."""
    usual: dict[str, object] = {
        "version": "0.1.0",
        "uptime_seconds": 3700,
        "gpus": gpus or [gpu("SHM-0"), gpu("SHM-1")],
        "host_pool_bytes": 1024 * MIB,
    }
    return broker_pb2.GetStateReply(**(usual | fields))  # type: ignore[arg-type]  # as above


def lease(number: int, **fields: object) -> broker_pb2.Lease:
    """A 32 MiB lease of SHM-1 to SHM-0, half used."""
    values: dict[str, object] = {
        "lease_id": f"{number:032x}",
        "tenant": "uid-1000",
        "lender_gpu": "SHM-1",
        "borrower_gpu": "SHM-0",
        "nbytes": 32 * MIB,
        "used_bytes": 16 * MIB,
        "safety_class": broker_pb2.SAFETY_CLASS_STORE,
        "state": broker_pb2.LEASE_STATE_LEASED,
        "state_seconds": 5.0,
        "pid": 4242,
    }
    return broker_pb2.Lease(**(values | fields))  # type: ignore[arg-type]  # as above
