"""What every message is held to: ids, sizes, numbers, names, lists.

Each check returns the value in its core type, or raises InvalidRequest with what was wrong and
what to do. Nothing here knows a particular message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TypeVar

from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.model import GpuUuid, LeaseId, RequestId, SessionId, TenantName
from aqua_daemon.core.sizes import (
    LARGEST_WEIGHT,
    MOST_PRIORITY,
    SLAB_GRANULE_BYTES,
    SMALLEST_WEIGHT,
)

MOST_LEASES = 10_000  # in one message; a keepalive of so many is 0.7 MiB
MOST_GPUS = 1024  # named in one message
LONGEST_NAME = 128
LARGEST_COUNT = 1_000_000  # of the leases or sessions of a tenant
LARGEST_BYTES = 2**48  # more than any node has; keeps sums far from 64 bits
LONGEST_SECONDS = 10 * 365 * 86_400.0  # an idle time can't be longer than a node runs
LONGEST_RECLAIM_SECONDS = 600.0
_LARGEST_COUNTER = 2**62

_ItemT = TypeVar("_ItemT")
_ID = re.compile(r"[0-9a-f]{32}")
_TENANT = re.compile(r"uid-\d{1,10}(/[!-*,-.0-~]{1,255})?(\+[a-z0-9._-]{1,64})?", re.ASCII)
_GPU = re.compile(r"[A-Za-z0-9-]{1,96}")


def lease_id(value: str) -> LeaseId:
    """A lease's id."""
    return LeaseId(_checked_id("lease id", value))


def session_id(value: str) -> SessionId:
    """A session's id."""
    return SessionId(_checked_id("session_id", value))


def request_id(value: str) -> RequestId:
    """A request's id."""
    return RequestId(_checked_id("request_id", value))


def lease_ids(values: Iterable[str]) -> tuple[LeaseId, ...]:
    """Lease ids, each named once."""
    checked = tuple(lease_id(value) for value in bounded("lease_ids", values, MOST_LEASES))
    no_repeats("lease_ids", checked)
    return checked


def gpu(field: str, value: str) -> GpuUuid:
    """A GPU's name."""
    if _GPU.fullmatch(value) is None:
        msg = f"{field} {shown(value)} names no GPU: use a UUID as `aquactl status` shows it"
        raise InvalidRequest(msg)
    return GpuUuid(value)


def tenant(value: str) -> TenantName:
    """A tenant's name as this daemon makes them: uid, unit or container, sub-tenant."""
    if _TENANT.fullmatch(value) is None:
        msg = f"tenant {shown(value)} names none: use a name as `aquactl quota get` shows it"
        raise InvalidRequest(msg)
    return TenantName(value)


def name(field: str, value: str) -> str:
    """Free text for people: short and printable."""
    if len(value) > LONGEST_NAME or not (value.isprintable() or not value):
        msg = f"{field} {shown(value)} must be at most {LONGEST_NAME} printable characters"
        raise InvalidRequest(msg)
    return value


def slab_bytes(value: int, *, smallest: int, largest: int) -> int:
    """The size of a slab."""
    if not smallest <= value <= largest or value % SLAB_GRANULE_BYTES:
        msg = (
            f"nbytes is {value}: ask for a multiple of {SLAB_GRANULE_BYTES} from {smallest} "
            f"to {largest}, the slab sizes that Welcome names"
        )
        raise InvalidRequest(msg)
    return value


def nbytes(field: str, value: int, *, least: int = 0) -> int:
    """A number of bytes."""
    if not least <= value <= LARGEST_BYTES:
        msg = f"{field} is {value}: it must be from {least} to {LARGEST_BYTES} bytes"
        raise InvalidRequest(msg)
    return value


def count(field: str, value: int) -> int:
    """How many of something."""
    if not 0 <= value <= LARGEST_COUNT:
        msg = f"{field} is {value}: it must be a number from 0 to {LARGEST_COUNT}"
        raise InvalidRequest(msg)
    return value


def counter(field: str, value: int) -> int:
    """A number that only grows."""
    if not 0 <= value <= _LARGEST_COUNTER:
        msg = f"{field} is {value}: it must count up from 0, to at most {_LARGEST_COUNTER}"
        raise InvalidRequest(msg)
    return value


def weight(field: str, value: float) -> float:
    """A tenant's weight."""
    if not math.isfinite(value) or not SMALLEST_WEIGHT <= value <= LARGEST_WEIGHT:
        msg = f"{field} is {value}: it must be from {SMALLEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        raise InvalidRequest(msg)
    return value


def priority(field: str, value: int) -> int:
    """A tenant's priority."""
    if abs(value) > MOST_PRIORITY:
        msg = f"{field} is {value}: it must be from {-MOST_PRIORITY} to {MOST_PRIORITY}"
        raise InvalidRequest(msg)
    return value


def seconds(field: str, value: float, *, most: float) -> float:
    """A length of time."""
    if not math.isfinite(value) or not 0.0 <= value <= most:
        msg = f"{field} is {value}: it must be a finite number of seconds from 0 to {most:g}"
        raise InvalidRequest(msg)
    return value


def bounded(field: str, values: Iterable[_ItemT], most: int) -> list[_ItemT]:
    """A list that is not too long."""
    listed = list(values)
    if len(listed) > most:
        msg = f"{field} has {len(listed)} entries: name at most {most} in one message"
        raise InvalidRequest(msg)
    return listed


def no_repeats(field: str, values: tuple[LeaseId, ...]) -> None:
    """Refuse a list that names a lease twice."""
    if len(set(values)) != len(values):
        msg = f"{field} names a lease twice: name each once"
        raise InvalidRequest(msg)


def shown(value: str) -> str:
    """A value as an error message may show it: never long, never unprintable."""
    longest = 80
    return ascii(value if len(value) <= longest else value[:longest] + "...")


def _checked_id(field: str, value: str) -> str:
    if _ID.fullmatch(value) is None:
        msg = f"{field} {shown(value)} is no id: send 32 lower-case hexadecimal digits"
        raise InvalidRequest(msg)
    return value
