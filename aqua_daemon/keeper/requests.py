"""Checks what an Attach, an Allocate, a Free or a RegisterOwner says before anything is done for it.

Each check raises `Refused` with what was wrong and what to do. Whether there is room is not a
matter of form: `node` says that.
"""

from __future__ import annotations

import re

from aqua_protos.agreement import SPOKEN, NoCommonProtocol, Protocols, agreed_protocol
from aqua_protos.keeper_pb2 import (
    Allocate,
    Attach,
    MeasureLink,
    OfferProbe,
    RegisterOwner,
    SlabTag,
)

from aqua_daemon import __version__
from aqua_daemon.keeper.refusal import Refused, invalid

HOST = "host"  # stands for host memory at an end of a link
LARGEST_PROBE_BYTES = 256 * 2**20
LONGEST_PROBE_SECONDS = 2.0
SLAB_GRANULE_BYTES = 2 * 2**20  # what CUDA rounds device allocations to
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SAFETY_CLASSES = ("store", "cache")
_LONGEST_NAME = 256


def check_gpu(gpu: str, gpus: tuple[str, ...]) -> None:
    """The GPU is one of this keeper's."""
    if gpu not in gpus:
        raise Refused("NOT_FOUND", f"no GPU {gpu[:64]!r} here; this keeper has {', '.join(gpus)}")


def check_id(field: str, value: str) -> None:
    """An id as every message writes it."""
    if _ID.fullmatch(value) is None:
        raise invalid(f"{field} is {value[:64]!r}: give 32 lower-case hexadecimal digits")


def agreed_protocol_with(request: Attach) -> int:
    """The protocol to speak with this daemon."""
    if not request.protocol:
        raise invalid(f"protocol is 0: say which you speak (this keeper: {SPOKEN})")
    theirs = Protocols.said(request.protocol, request.newest_protocol)
    they = f"the daemon (version {request.daemon_version[:_LONGEST_NAME]})"
    try:
        return agreed_protocol(theirs, they=they, we=f"this keeper (version {__version__})")
    except NoCommonProtocol as error:
        raise Refused("FAILED_PRECONDITION", str(error)) from error


def check_allocate(request: Allocate, *, smallest_bytes: int, largest_bytes: int) -> None:
    """Size and tag are such as a slab may have."""
    nbytes = request.nbytes
    if not smallest_bytes <= nbytes <= largest_bytes or nbytes % SLAB_GRANULE_BYTES:
        raise invalid(
            f"nbytes is {nbytes}: give a multiple of {SLAB_GRANULE_BYTES} from {smallest_bytes} "
            f"to {largest_bytes}"
        )
    _check_tag(request.tag)


def check_owner(request: RegisterOwner) -> None:
    """The size is one that a process can use."""
    if request.nbytes < 0:
        raise invalid(f"nbytes is {request.nbytes}: give 0 (ends the registration) or more")


def check_offer(request: OfferProbe) -> None:
    """The size is one that may be measured with."""
    if not 0 < request.nbytes <= LARGEST_PROBE_BYTES:
        raise invalid(f"nbytes is {request.nbytes}: give 1 to {LARGEST_PROBE_BYTES}")


def check_measure(request: MeasureLink) -> None:
    """The sizes and the time are such as may be measured."""
    sizes = list(request.sizes)
    if not 0 < len(sizes) <= 16 or not all(0 < one <= LARGEST_PROBE_BYTES for one in sizes):
        raise invalid(f"sizes are {sizes[:16]}: give 1 to 16, each of 1 to {LARGEST_PROBE_BYTES}")
    if not 0 <= request.seconds <= LONGEST_PROBE_SECONDS:
        raise invalid(f"seconds is {request.seconds}: give 0 to {LONGEST_PROBE_SECONDS:g}")
    if request.source == request.target:
        raise invalid("source and target are the same: give two ends")


def _check_tag(tag: SlabTag) -> None:
    check_id("tag.lease_id", tag.lease_id)
    check_id("tag.session_id", tag.session_id)
    if tag.safety_class not in _SAFETY_CLASSES:
        raise invalid(f"tag.safety_class is {tag.safety_class[:64]!r}: give 'store' or 'cache'")
    if not tag.tenant:
        raise invalid("tag.tenant is empty: name the tenant that the slab is for")
    if not tag.holder_pid:
        raise invalid("tag.holder_pid is 0: name the process that the slab is for")
    for field in ("tenant", "borrower_gpu", "request_id"):
        if len(getattr(tag, field)) > _LONGEST_NAME:
            raise invalid(f"tag.{field} is longer than {_LONGEST_NAME} characters")
