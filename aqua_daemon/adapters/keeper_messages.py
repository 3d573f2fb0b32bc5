"""What a keeper is told and what it says: records of the core in, bytes out, and the other way.

A keeper is this daemon's own program, of this release or its neighbour: what it says is checked for
being understood, not for being sent by somebody else.
"""

from __future__ import annotations

from aqua_protos import keeper_pb2
from aqua_protos.agreement import SPOKEN

from aqua_daemon.core.instructions import AllocateSlab, FreeSlab
from aqua_daemon.core.model import (
    GpuLink,
    GpuReport,
    GpuUuid,
    LeaseId,
    ProcessIdentity,
    RequestId,
    SafetyClass,
    SessionId,
    SlabTag,
    TenantName,
)
from aqua_daemon.ports import DescriptorKind, SlabHandle

FIRST_VERSION = "0.1.0"  # of keepers that do not say which they are
_DESCRIPTOR_KINDS = {
    keeper_pb2.DESCRIPTOR_KIND_UNSPECIFIED: DescriptorKind.SHARED_MEMORY,
    keeper_pb2.DESCRIPTOR_KIND_SHARED_MEMORY: DescriptorKind.SHARED_MEMORY,
    keeper_pb2.DESCRIPTOR_KIND_CUDA_VMM: DescriptorKind.CUDA_VMM,
}


def attach_request(request_id: int, daemon_version: str) -> bytes:
    """The first frame of a daemon."""
    attach = keeper_pb2.Attach(
        protocol=SPOKEN.oldest,
        newest_protocol=SPOKEN.newest,
        daemon_version=daemon_version,
    )
    return keeper_pb2.KeeperRequest(request_id=request_id, attach=attach).SerializeToString()


def allocate_request(request_id: int, order: AllocateSlab) -> bytes:
    """Goes with the holder's pidfd and sentinel."""
    tag = order.tag
    allocate = keeper_pb2.Allocate(
        gpu=tag.lender,
        nbytes=tag.nbytes,
        tag=keeper_pb2.SlabTag(
            lease_id=tag.lease_id,
            session_id=tag.session_id,
            tenant=tag.tenant,
            safety_class=tag.safety_class.value,
            borrower_gpu=tag.borrower or "",
            holder_pid=tag.holder.pid,
            holder_start_ticks=tag.holder.start_ticks,
            holder_uid=tag.holder.uid,
            request_id=tag.request_id,
        ),
    )
    return keeper_pb2.KeeperRequest(request_id=request_id, allocate=allocate).SerializeToString()


def free_request(request_id: int, order: FreeSlab) -> bytes:
    """Scrub and free one slab."""
    free = keeper_pb2.Free(gpu=order.gpu, lease_id=order.lease_id)
    return keeper_pb2.KeeperRequest(request_id=request_id, free=free).SerializeToString()


def release_warnings(attached: keeper_pb2.Attached, daemon_version: str) -> tuple[str, ...]:
    """What an operator should know of the keeper's release; it is one that this daemon speaks with.

    Raises:
        ValueError: it speaks a protocol that this daemon does not.
    """
    version = attached.keeper_version or FIRST_VERSION
    if not SPOKEN.oldest <= attached.protocol <= SPOKEN.newest:
        msg = (
            f"the keeper (version {version}) speaks protocol {attached.protocol}, this daemon "
            f"(version {daemon_version}) {SPOKEN}: run releases that are at most one apart"
        )
        raise ValueError(msg)
    if version == daemon_version:
        return ()
    warning = (
        f"its keeper is of release {version}, this daemon of {daemon_version}: restart the keeper "
        "when nothing is lent there, before the next upgrade"
    )
    return (warning,)


def gpu_report(report: keeper_pb2.GpuReport, more_warnings: tuple[str, ...] = ()) -> GpuReport:
    """How one GPU is now; *more_warnings* are of the daemon's side."""
    return GpuReport(
        gpu=GpuUuid(report.gpu),
        total_bytes=report.total_bytes,
        slab_bytes={LeaseId(slab.tag.lease_id): slab.nbytes for slab in report.slabs},
        owner_bytes={owner.pid: owner.nbytes for owner in report.owners},
        other_bytes=report.other_bytes if report.HasField("other_bytes") else None,
        not_lending=report.not_lending,
        warnings=(*report.warnings, *more_warnings),
        model=report.model,
        links=tuple(
            GpuLink(
                peer=GpuUuid(link.peer),
                kind=link.kind,
                count=link.count,
                has_peer_access=link.has_peer_access,
            )
            for link in report.links
        ),
    )


def slab_handle(
    answer: keeper_pb2.Allocated, *, keeper_pid: int, descriptor: int | None
) -> SlabHandle:
    """How the holder reaches what was allocated.

    Raises:
        ValueError: a kind of descriptor that this release does not know.
    """
    if answer.descriptor_kind not in _DESCRIPTOR_KINDS:
        msg = f"lease {answer.lease_id} has a descriptor of kind {answer.descriptor_kind}"
        raise ValueError(msg)
    return SlabHandle(
        keeper_pid=keeper_pid,
        canary=answer.canary,
        cuda_ipc=answer.cuda_ipc_handle,
        descriptor=descriptor,
        descriptor_kind=_DESCRIPTOR_KINDS[answer.descriptor_kind],
    )


def slab_tags(report: keeper_pb2.GpuReport) -> tuple[SlabTag, ...]:
    """What the keeper remembers of each slab on one GPU.

    Raises:
        ValueError: a safety class that this release does not know.
    """
    return tuple(_slab_tag(GpuUuid(report.gpu), slab) for slab in report.slabs)


def _slab_tag(gpu: GpuUuid, slab: keeper_pb2.SlabReport) -> SlabTag:
    tag = slab.tag
    return SlabTag(
        lease_id=LeaseId(tag.lease_id),
        session_id=SessionId(tag.session_id),
        tenant=TenantName(tag.tenant),
        safety_class=SafetyClass(tag.safety_class),
        lender=gpu,
        borrower=GpuUuid(tag.borrower_gpu) if tag.borrower_gpu else None,
        nbytes=slab.nbytes,
        holder=ProcessIdentity(
            pid=tag.holder_pid, start_ticks=tag.holder_start_ticks, uid=tag.holder_uid
        ),
        request_id=RequestId(tag.request_id),
    )
