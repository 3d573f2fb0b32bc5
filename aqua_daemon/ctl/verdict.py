"""What an operator should think of a node, and type next: a pure function of its state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from aqua_protos import broker_pb2

MIB = 2**20
NEARLY_ALL = 0.95  # of the host room, as the alert has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One sentence, how bad it is, and the command that helps."""

    level: Literal["ok", "warn", "fail"]
    sentence: str
    next_command: str


def verdict(state: broker_pb2.GetStateReply) -> Verdict:
    """The worst thing that is true of the node; `ok` if none is."""
    return findings(state)[0]


def findings(state: broker_pb2.GetStateReply) -> tuple[Verdict, ...]:
    """All that is to be said, worst first; what is `ok` behind the first is only to be known."""
    troubles = tuple(_troubles(state))
    told = "" if troubles else _shared_wait(state)
    return (*(troubles or (_fine(state),)), *_notes(state, told=told))


def _troubles(state: broker_pb2.GetStateReply) -> Iterator[Verdict]:
    """Worst first."""
    if state.invariant_violations:
        yield Verdict(
            level="fail",
            sentence=f"the books broke an invariant {state.invariant_violations} times; "
            "the GPUs concerned lend nothing more",
            next_command="journalctl -u aqua-daemon -g invariant",
        )
    for trouble, gpus in _by_word((gpu, (gpu.trouble,)) for gpu in state.gpus):
        yield Verdict(
            level="fail",
            sentence=f"{_named(gpus, 'lends', 'lend')} nothing: {trouble}",
            next_command="journalctl -u 'aqua-keeper@*' -n 50",
        )
    quarantined = [gpu for gpu in state.gpus if gpu.quarantined_bytes]
    if quarantined:
        nbytes = sum(gpu.quarantined_bytes for gpu in quarantined)
        yield Verdict(
            level="warn",
            sentence=f"{nbytes // MIB} MiB of {_named(quarantined)} did not come back in time; "
            "they heal when their holder answers or ends",
            next_command="aquactl leases --state quarantined",
        )
    for warning, gpus in _by_word((gpu, gpu.warnings) for gpu in state.gpus):
        yield Verdict(
            level="warn",
            sentence=f"{_named(gpus, 'lends', 'lend')}, but {warning}",
            next_command=_command_of(warning) or f"aquactl leases --gpu {gpus[0].gpu}",
        )
    yield from _shortages(state)


def _shortages(state: broker_pb2.GetStateReply) -> Iterator[Verdict]:
    if state.restarting:
        yield Verdict(
            level="warn",
            sentence="the daemon has just started and waits for the holders of adopted leases; "
            "nothing new is granted until then",
            next_command="aquactl status",
        )
    short = [gpu for gpu in state.gpus if gpu.free_bytes < gpu.reserve_bytes and not gpu.trouble]
    if short:
        missing = sum(gpu.reserve_bytes - gpu.free_bytes for gpu in short)
        yield Verdict(
            level="warn",
            sentence=f"{_named(short, 'is', 'are')} {missing // MIB} MiB below "
            f"{'its' if len(short) == 1 else 'their'} reserve; leases there are being taken back",
            next_command="aquactl leases --state revoking",
        )
    if state.host_reserved_bytes > NEARLY_ALL * state.host_pool_bytes:
        yield Verdict(
            level="warn",
            sentence=f"{state.host_reserved_bytes // MIB} of {state.host_pool_bytes // MIB} MiB "
            "of host room are reserved; soon no more data of class store can be parked",
            next_command="aqua-daemon --check-config  # host_pool_bytes",
        )


def _fine(state: broker_pb2.GetStateReply) -> Verdict:
    lendable = sum(gpu.lendable_bytes for gpu in state.gpus)
    shared = _shared_wait(state)
    if shared:
        return Verdict(
            level="warn",
            sentence=f"no GPU lends: {shared}; new data goes to host memory",
            next_command=_command_about([*state.gpus]),
        )
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


def _shared_wait(state: broker_pb2.GetStateReply) -> str:
    """What every GPU of the node waits for; empty if one lends, or waits for something else."""
    words = {gpu.waits_for for gpu in state.gpus}
    return words.pop() if len(words) == 1 else ""


def _notes(state: broker_pb2.GetStateReply, *, told: str) -> Iterator[Verdict]:
    """Somebody wanted it so: nothing is wrong, but it explains what is seen and not *told* yet."""
    for gpu in state.gpus:
        if gpu.quiet_seconds:
            yield Verdict(
                level="ok",
                sentence=f"{gpu.gpu} is left alone for {gpu.quiet_seconds:.0f} s at most; "
                "nothing is lent there, or taken back for its reserve",
                next_command="aquactl events",
            )
    waiting = [gpu for gpu in state.gpus if not gpu.quiet_seconds]
    for why, gpus in _by_word((gpu, (gpu.waits_for,)) for gpu in waiting):
        if why != told:
            yield Verdict(
                level="ok",
                sentence=f"{_named(gpus, 'lends', 'lend')} nothing: {why}",
                next_command=_command_about(gpus),
            )


def _command_about(gpus: list[broker_pb2.GpuState]) -> str:
    """What says more of why these lend nothing although nothing is wrong."""
    drained = [gpu.gpu for gpu in gpus if gpu.drained]
    if drained:
        return f"aquactl undrain {drained[0] if len(drained) == 1 else '--all'}"
    has_policy = any(gpu.lending in {"never", "offered"} for gpu in gpus)
    return "aqua-daemon --check-config  # lending" if has_policy else "aquactl events"


def _command_of(warning: str) -> str:
    """The command that a warning names at its end; empty: it names none."""
    found = re.search(r"\((aquactl [a-z ]+)\)$", warning)
    return found[1] if found else ""


def _by_word(
    said: Iterable[tuple[broker_pb2.GpuState, Iterable[str]]],
) -> Iterator[tuple[str, list[broker_pb2.GpuState]]]:
    """What is said of several GPUs is said once: one keeper may serve all of a node."""
    found: dict[str, list[broker_pb2.GpuState]] = {}
    for gpu, words in said:
        for word in filter(None, words):
            found.setdefault(word, []).append(gpu)
    yield from found.items()


def _named(gpus: list[broker_pb2.GpuState], one: str = "", several: str = "") -> str:
    """The first of them, how many more there are, and the verb that goes with it."""
    first, *others = gpus
    name = f"{first.gpu} and {len(others)} more" if others else first.gpu
    return f"{name} {several if others else one}".rstrip()
