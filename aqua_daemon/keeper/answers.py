"""What a keeper sends, as bytes: one function for each kind of `KeeperReply`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from aqua_protos.agreement import KEEPER_FEATURES
from aqua_protos.keeper_pb2 import (
    Allocated,
    Attached,
    Failed,
    Freed,
    GpuReport,
    HolderProof,
    KeeperReply,
    LinkMeasured,
    LinkSample,
    OwnerRegistered,
    ProbeOffered,
)

from aqua_daemon import __version__
from aqua_daemon.keeper.gpu import Handle, Slab
from aqua_daemon.keeper.node import FreedSlab, KeptGpus
from aqua_daemon.keeper.refusal import Refused


def attached(request_id: int, node: KeptGpus, *, holders: int, protocol: int) -> bytes:
    """All that the keeper holds, in the *protocol* agreed on; *holders* proofs follow."""
    answer = Attached(
        protocol=protocol,
        keeper_pid=os.getpid(),
        gpus=node.reports(),
        holders=holders,
        smallest_slab_bytes=node.smallest_slab_bytes,
        largest_slab_bytes=node.largest_slab_bytes,
        keeper_version=__version__,
        features=KEEPER_FEATURES,
    )
    return KeeperReply(request_id=request_id, attached=answer).SerializeToString()


def holder_proof(request_id: int, session_id: str) -> bytes:
    """Goes with the pidfd and the sentinel of that session."""
    proof = HolderProof(session_id=session_id)
    return KeeperReply(request_id=request_id, holder_proof=proof).SerializeToString()


def allocated(request_id: int, slab: Slab, handle: Handle) -> bytes:
    """Goes with the handle's descriptor, if it has one."""
    answer = Allocated(
        lease_id=slab.tag.lease_id,
        canary=slab.memory.canary,
        cuda_ipc_handle=handle.cuda_ipc,
        descriptor_kind=handle.descriptor_kind,
    )
    return KeeperReply(request_id=request_id, allocated=answer).SerializeToString()


def freed(request_id: int, lease_id: str, slab: FreedSlab) -> bytes:
    """The driver has the bytes."""
    answer = Freed(
        lease_id=lease_id,
        scrubbed_bytes=slab.scrubbed_bytes,
        freed_while_mapped=slab.while_mapped,
        unreturned_bytes=slab.unreturned_bytes,
    )
    return KeeperReply(request_id=request_id, freed=answer).SerializeToString()


def owner_registered(request_id: int, gpu: str, nbytes: int) -> bytes:
    """What the process has there now."""
    answer = OwnerRegistered(gpu=gpu, nbytes=nbytes)
    return KeeperReply(request_id=request_id, owner_registered=answer).SerializeToString()


def probe_offered(request_id: int, handle: Handle) -> bytes:
    """Goes with the handle's descriptor, if it has one."""
    answer = ProbeOffered(cuda_ipc_handle=handle.cuda_ipc, descriptor_kind=handle.descriptor_kind)
    return KeeperReply(request_id=request_id, probe_offered=answer).SerializeToString()


def link_measured(request_id: int, samples: Sequence[LinkSample]) -> bytes:
    """What copies took."""
    answer = LinkMeasured(samples=samples)
    return KeeperReply(request_id=request_id, link_measured=answer).SerializeToString()


def report(gpu_report: GpuReport) -> bytes:
    """Said unasked."""
    return KeeperReply(gpu_report=gpu_report).SerializeToString()


def failed(request_id: int, refusal: Refused) -> bytes:
    """The request has had no effect."""
    answer = Failed(code=refusal.code, message=str(refusal))
    return KeeperReply(request_id=request_id, failed=answer).SerializeToString()
