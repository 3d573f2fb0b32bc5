"""What a keeper says, as the daemon's own records."""

from __future__ import annotations

import pytest
from aqua_protos import broker_pb2, keeper_pb2

from aqua_daemon.adapters import keeper_messages
from aqua_daemon.adapters.wire import replies
from aqua_daemon.core.node_snapshot import GpuSnapshot
from aqua_daemon.ports import DescriptorKind, SlabHandle
from tests.daemon.samples import LEASE, SNAPSHOT


def handle_of(kind: int) -> SlabHandle:
    answer = keeper_pb2.Allocated(lease_id="a", canary=b"c" * 64)
    answer.descriptor_kind = kind  # type: ignore[assignment]  # also one that has no name
    return keeper_messages.slab_handle(answer, keeper_pid=7, descriptor=3)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (keeper_pb2.DESCRIPTOR_KIND_UNSPECIFIED, DescriptorKind.SHARED_MEMORY),
        (keeper_pb2.DESCRIPTOR_KIND_SHARED_MEMORY, DescriptorKind.SHARED_MEMORY),
        (keeper_pb2.DESCRIPTOR_KIND_CUDA_VMM, DescriptorKind.CUDA_VMM),
    ],
)
def test_the_kind_of_a_descriptor_goes_from_the_keeper_to_the_client(
    said: keeper_pb2.DescriptorKind, kind: DescriptorKind
) -> None:
    """A keeper of the last release says none, and means shared memory."""
    handle = handle_of(said)
    assert (handle.descriptor, handle.descriptor_kind) == (3, kind)
    payload = replies.acquired(LEASE, handle, pid=42, now=LEASE.since)
    reply = broker_pb2.AcquireReply.FromString(payload).handle
    assert reply.WhichOneof("kind") == "descriptor"
    assert broker_pb2.DescriptorKind.Name(reply.descriptor.kind) == f"DESCRIPTOR_KIND_{kind.name}"


def test_a_kind_of_descriptor_that_nobody_knows_is_refused() -> None:
    """A client would map it as something that it is not."""
    with pytest.raises(ValueError, match="lease a has a descriptor of kind 9"):
        handle_of(9)


def test_a_legacy_handle_travels_as_its_64_bytes() -> None:
    """There is no descriptor with it."""
    answer = keeper_pb2.Allocated(lease_id="a", canary=b"c" * 64, cuda_ipc_handle=b"h" * 64)
    handle = keeper_messages.slab_handle(answer, keeper_pid=7, descriptor=None)
    payload = replies.acquired(LEASE, handle, pid=42, now=LEASE.since)
    reply = broker_pb2.AcquireReply.FromString(payload).handle
    assert (reply.cuda_ipc.handle, reply.keeper_pid) == (b"h" * 64, 7)


@pytest.mark.parametrize(
    ("protocol", "version", "warned"),
    [(1, "", "release 0.1.0"), (2, "0.2.0", ""), (2, "0.3.0", "release 0.3.0"), (1, "0.2.0", "")],
)
def test_a_keeper_of_a_neighbouring_release_is_a_warning(
    protocol: int, version: str, warned: str
) -> None:
    """It works, and has to be restarted before the next upgrade; the same release is nothing."""
    attached = keeper_pb2.Attached(protocol=protocol, keeper_version=version)
    warnings = keeper_messages.release_warnings(attached, "0.2.0")
    assert [warned in one for one in warnings] == ([True] if warned else [])
    report = keeper_pb2.GpuReport(gpu="A", warnings=["hot"])
    assert keeper_messages.gpu_report(report, warnings).warnings == ("hot", *warnings)


@pytest.mark.parametrize("protocol", [0, 3, 99])
def test_a_keeper_of_a_far_release_is_not_understood(protocol: int) -> None:
    """Both numbers are in the message."""
    attached = keeper_pb2.Attached(protocol=protocol, keeper_version="9")
    with pytest.raises(ValueError, match=rf"version 9\) speaks protocol {protocol}, .* 1 to 2"):
        keeper_messages.release_warnings(attached, "0.2.0")


def test_a_report_that_does_not_say_what_others_use_says_none() -> None:
    """As a keeper of the last release; 0 is something else."""
    assert keeper_messages.gpu_report(keeper_pb2.GpuReport(gpu="A")).other_bytes is None
    said = keeper_pb2.GpuReport(
        gpu="A",
        total_bytes=9,
        other_bytes=0,
        not_lending="MIG",
        warnings=["ECC is off"],
        model="H200",
    )
    found = keeper_messages.gpu_report(said)
    assert (found.other_bytes, found.not_lending) == (0, "MIG")
    assert (found.warnings, found.model) == (("ECC is off",), "H200")


def test_status_shows_the_model_and_every_warning() -> None:
    """As they were said."""
    gpu = GpuSnapshot(
        gpu=SNAPSHOT.gpus[0].gpu,
        total_bytes=9,
        used_by_others_bytes=0,
        lent_bytes=0,
        quarantined_bytes=0,
        returning_bytes=0,
        free_bytes=9,
        reserve_bytes=1,
        lendable_bytes=0,
        lend_limit_bytes=None,
        trouble="MIG",
        warnings=("ECC is off", "hot"),
        model="H200",
    )
    shown = replies._gpu(gpu)
    assert (shown.model, list(shown.warnings), shown.trouble) == (
        "H200",
        ["ECC is off", "hot"],
        "MIG",
    )
