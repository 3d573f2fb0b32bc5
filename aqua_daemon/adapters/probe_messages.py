"""What keepers are told and say of measuring links: records in, bytes out, and the other way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aqua_protos import keeper_pb2

from aqua_daemon.core.instructions import ProbeLink
from aqua_daemon.core.link_figures import LinkSample

COMPANY_SECONDS = 0.3  # long beside the moment between the first's start and the last's


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferProbe:
    """Have the source's keeper make memory that another may read."""

    probe: ProbeLink


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureLink:
    """Have the target's keeper copy, or the only one that there is."""

    probe: ProbeLink


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeHandle:
    """How a keeper reaches what another has offered: one of a legacy handle and a descriptor."""

    cuda_ipc: bytes
    descriptor_kind: keeper_pb2.DescriptorKind
    descriptor: int | None  # the receiver's to close


def offer_request(request_id: int, order: OfferProbe) -> bytes:
    """Goes with one end of a socket pair."""
    probe = order.probe
    offer = keeper_pb2.OfferProbe(gpu=probe.pair.source, nbytes=probe.sizes[-1])
    return keeper_pb2.KeeperRequest(request_id=request_id, offer_probe=offer).SerializeToString()


def measure_request(request_id: int, order: MeasureLink, handle: ProbeHandle | None) -> bytes:
    """With a *handle* it goes with the other end, and behind it the handle's descriptor."""
    probe = order.probe
    measure = keeper_pb2.MeasureLink(
        source=probe.pair.source,
        target=probe.pair.target,
        sizes=probe.sizes,
        seconds=COMPANY_SECONDS if probe.has_company else 0.0,
    )
    if handle is not None:
        measure.cuda_ipc_handle = handle.cuda_ipc
        measure.descriptor_kind = handle.descriptor_kind
    return keeper_pb2.KeeperRequest(request_id=request_id, measure_link=measure).SerializeToString()


def samples_of(answer: keeper_pb2.LinkMeasured, order: MeasureLink) -> tuple[LinkSample, ...]:
    """What was measured.

    Raises:
        ValueError: not each size once, or a copy that took no time.
    """
    samples = tuple(LinkSample(nbytes=one.nbytes, seconds=one.seconds) for one in answer.samples)
    sizes = tuple(one.nbytes for one in samples)
    if sizes != order.probe.sizes or not all(0 < one.seconds < math.inf for one in samples):
        msg = f"link {order.probe.pair} was measured as {samples}"
        raise ValueError(msg)
    return samples
