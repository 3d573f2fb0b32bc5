"""Drained GPUs: who is hit, what is left there, and what did not come back; asked, followed, told.

Does not cover the commands' options and questions: those are in `drain_commands`.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aqua_protos import broker_pb2
from rich.text import Text

from aqua_daemon.ctl.aligning import aligned, counted, cut
from aqua_daemon.ctl.link import Link, Unreachable, opened

MIB = 2**20
SCHEMA = 1
LOOK_SECONDS = 0.2
MOST_ROWS = 20  # of a plan on a terminal
HEADS = ("GPU", "TENANT", "PID", "LEASES", "MIB", "TO COPY", "LATE")
Wait = Callable[[float], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is still lent of some GPUs, and what there is late."""

    lent_bytes: int = 0
    returning_bytes: int = 0  # that will be freed by itself
    kept_bytes: int = 0  # returned, and freed when the GPU is left alone no more, or lost
    late: tuple[broker_pb2.Lease, ...] = ()
    strange_bytes: int = 0  # quarantined, and held by nobody knows whom
    is_known: bool = True  # a daemon that has just started has yet to hear of some
    remark: str = ""  # empty: there is nothing else to say

    @property
    def is_over(self) -> bool:
        """Whether nothing comes back any more by itself, within its deadline."""
        return self.is_known and not (self.lent_bytes or self.returning_bytes)

    @property
    def is_clean(self) -> bool:
        """Whether all has come back."""
        return self.is_over and not (self.late or self.strange_bytes)

    def __str__(self) -> str:
        """For people, as it goes on."""
        late_bytes = sum(lease.nbytes for lease in self.late) + self.strange_bytes
        parts = (
            (self.lent_bytes, "still lent"),
            (self.returning_bytes, "being freed"),
            (self.kept_bytes, "given back, to be freed later"),
            (late_bytes, "late"),
        )
        if not self.is_known:
            return "the daemon has just started, and waits for keepers and holders"
        said = ", ".join(f"{nbytes // MIB} MiB {what}" for nbytes, what in parts if nbytes)
        return said or "nothing is lent there any more"


def drain(
    link: Link, gpus: Sequence[str], *, deadline_seconds: float | None, is_dry_run: bool
) -> broker_pb2.DrainReply:
    """Drain *gpus*, none named: all, or only say what it would do; raises as `Link.call` does."""
    request = broker_pb2.DrainRequest(
        request_id=secrets.token_hex(16),
        gpus=gpus,
        all_gpus=not gpus,
        deadline_seconds=deadline_seconds or 0.0,
        dry_run=is_dry_run,
    )
    return link.call("Drain", request, broker_pb2.DrainReply)


def undrain(link: Link, gpus: Sequence[str]) -> list[str]:
    """Let *gpus* be lent again, none named: all; those that were drained."""
    request = broker_pb2.UndrainRequest(
        request_id=secrets.token_hex(16), gpus=gpus, all_gpus=not gpus
    )
    return [*link.call("Undrain", request, broker_pb2.UndrainReply).gpus]


def plan(reply: broker_pb2.DrainReply, *, rows: int = MOST_ROWS) -> Text:
    """Who is hit, and how long it takes."""
    lines = [
        (
            hit.gpu,
            hit.tenant,
            str(hit.pid),
            str(hit.leases),
            str(hit.nbytes // MIB),
            str(hit.copy_bytes // MIB),
            str(hit.quarantined_bytes // MIB),
        )
        for hit in reply.hits
    ]
    table = aligned([HEADS, *lines], left=2) if lines else []
    shown = cut(table, rows, "aquactl drain --dry-run --json")
    return Text("\n").join([*shown, Text(summary(reply))])


def summary(reply: broker_pb2.DrainReply) -> str:
    """One sentence of figures."""
    if not reply.hits:
        return f"{', '.join(reply.gpus)}: nothing is lent there"
    leases = sum(hit.leases for hit in reply.hits)
    nbytes = sum(hit.nbytes for hit in reply.hits)
    copied = sum(hit.copy_bytes for hit in reply.hits)
    tenants = len({hit.tenant for hit in reply.hits})
    sessions = len({hit.session_id for hit in reply.hits})
    return (
        f"{', '.join(reply.gpus)}: {counted(leases, 'lease')}, {nbytes // MIB} MiB, of "
        f"{counted(sessions, 'session')} of {counted(tenants, 'tenant')}; to copy {copied // MIB} MiB takes {reply.copy_seconds:.1f} s, "
        f"and what is not back after {reply.deadline_seconds:.1f} s is quarantined"
    )


def left_on(state: broker_pb2.GetStateReply, gpus: Sequence[str]) -> Left:
    """What is left on *gpus* of the node as it is now."""
    there = [gpu for gpu in state.gpus if gpu.gpu in gpus]
    # Nothing is freed on a quiet GPU, nor where no keeper answers: there is no point in waiting.
    goes_on = {gpu.gpu for gpu in there if not (gpu.quiet_seconds or gpu.trouble)}
    late = tuple(
        lease
        for lease in state.leases
        if lease.lender_gpu in gpus and lease.state == broker_pb2.LEASE_STATE_QUARANTINED
    )
    quarantined_bytes = sum(gpu.quarantined_bytes for gpu in there)
    return Left(
        lent_bytes=sum(gpu.lent_bytes for gpu in there),
        returning_bytes=sum(gpu.returning_bytes for gpu in there if gpu.gpu in goes_on),
        kept_bytes=sum(gpu.returning_bytes for gpu in there if gpu.gpu not in goes_on),
        late=late,
        is_known=not state.restarting,
        strange_bytes=max(0, quarantined_bytes - sum(lease.nbytes for lease in late)),
    )


def followed(
    path: Path, gpus: Sequence[str], *, seconds: float, wait: Wait | None = None
) -> Iterator[Left]:
    """What is left, each time that it has changed, until nothing comes back any more.

    A drain outlives its daemon: while there is none, it waits for the next one.

    Raises:
        Refused: a daemon will not talk to this caller.
    """
    wait = wait or threading.Event().wait
    before: Left | None = None
    is_gone = False
    while before is None or not before.is_over:
        try:
            with opened(path, seconds=seconds) as link:
                while before is None or not before.is_over:
                    is_gone = False
                    left = left_on(_state(link), gpus)
                    if left != before:
                        before = left
                        yield left
                    elif not left.is_over:
                        wait(LOOK_SECONDS)
        except Unreachable:
            if not is_gone:
                is_gone = True
                yield Left(is_known=False, remark="the daemon is gone; waiting for it")
            wait(LOOK_SECONDS)


def late_lines(left: Left) -> list[str]:
    """Who did not give back what, and what becomes of it."""
    held: dict[tuple[str, str, int], list[int]] = {}
    for lease in left.late:
        held.setdefault((lease.lender_gpu, lease.tenant, lease.pid), []).append(lease.nbytes)
    lines = [
        f"quarantined on {gpu}: {sum(sizes)} bytes in {counted(len(sizes), 'lease')} of {tenant}, "
        f"process {pid}"
        for (gpu, tenant, pid), sizes in held.items()
    ]
    if left.strange_bytes:
        lines.append(f"quarantined: {left.strange_bytes} bytes that nobody is known to hold")
    return lines


def plan_document(reply: broker_pb2.DrainReply, left: Left | None) -> dict[str, object]:
    """Every figure under its own name; *left* None: it was not waited for."""
    return {
        "schema": SCHEMA,
        "dry_run": reply.dry_run,
        "gpus": [*reply.gpus],
        "deadline_seconds": reply.deadline_seconds,
        "copy_seconds": reply.copy_seconds,
        "hits": [_fields(hit) for hit in reply.hits],
        "quarantined": None if left is None else [_fields(lease) for lease in left.late],
        "unknown_quarantined_bytes": None if left is None else left.strange_bytes,
    }


def _state(link: Link) -> broker_pb2.GetStateReply:
    return link.call("GetState", broker_pb2.GetStateRequest(), broker_pb2.GetStateReply)


def _fields(message: broker_pb2.DrainHit | broker_pb2.Lease) -> dict[str, object]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
