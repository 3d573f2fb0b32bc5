"""What an operator should think of a node, and type next: a pure function of its state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from aqua_protos import broker_pb2

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One sentence, how bad it is, and the command that helps."""

    level: Literal["ok", "warn", "fail"]
    sentence: str
    next_command: str


def verdict(state: broker_pb2.GetStateReply) -> Verdict:
    """The worst thing that is true of the node; `ok` if none is."""
    return next(_troubles(state), _fine(state))


def _troubles(state: broker_pb2.GetStateReply) -> Iterator[Verdict]:
    """Worst first."""
    if state.invariant_violations:
        yield Verdict(
            level="fail",
            sentence=f"the books broke an invariant {state.invariant_violations} times; "
            "the GPUs concerned lend nothing more",
            next_command="journalctl -u aqua-daemon -g invariant",
        )
    for gpu in state.gpus:
        if gpu.trouble:
            yield Verdict(
                level="fail",
                sentence=f"{gpu.gpu} lends nothing: {gpu.trouble}",
                next_command="journalctl -u 'aqua-keeper@*' -n 50",
            )
    for gpu in state.gpus:
        if gpu.quarantined_bytes:
            yield Verdict(
                level="warn",
                sentence=f"{gpu.quarantined_bytes // MIB} MiB of {gpu.gpu} did not come back "
                "in time; they heal when their holder answers or ends",
                next_command="aquactl leases --state quarantined",
            )
    for gpu in state.gpus:
        if gpu.warnings:
            yield Verdict(
                level="warn",
                sentence=f"{gpu.gpu} lends, but {gpu.warnings[0]}",
                next_command="aquactl status",
            )
    if state.restarting:
        yield Verdict(
            level="warn",
            sentence="the daemon has just started and waits for the holders of adopted leases; "
            "nothing new is granted until then",
            next_command="aquactl status",
        )
    for gpu in state.gpus:
        if gpu.free_bytes < gpu.reserve_bytes:
            yield Verdict(
                level="warn",
                sentence=f"{gpu.gpu} is {(gpu.reserve_bytes - gpu.free_bytes) // MIB} MiB below "
                "its reserve; leases there are being taken back",
                next_command="aquactl leases --state revoking",
            )


def _fine(state: broker_pb2.GetStateReply) -> Verdict:
    lendable = sum(gpu.lendable_bytes for gpu in state.gpus)
    if not lendable:
        return Verdict(
            level="warn",
            sentence="no GPU has memory to lend; new data goes to host memory",
            next_command="aquactl leases",
        )
    return Verdict(
        level="ok",
        sentence=f"{lendable // MIB} MiB can be lent now",
        next_command="aquactl leases",
    )
