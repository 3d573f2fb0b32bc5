"""What most steps need: the devices, a keeper with a slab, a client that has it open.

On a machine with one GPU, lender and borrower share it, and every step's record says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.gpu.probe.actors import Actor, Ended, Refused, Silent, Ticket
from tests.gpu.probe.driver import call, device_count
from tests.gpu.probe.findings import Findings, mebibytes
from tests.gpu.probe.meter import Meter
from tests.gpu.probe.names import KINDS

FIRST, SECOND, THIRD = 0xA5, 0xB6, 0xC7  # what tenants write, one after another

Notes = dict[str, str]  # question: answer, in the order asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Where memory comes from and where it is used; CUDA's numbers in every process here."""

    lender: int
    borrower: int
    meter: Meter  # of the lender

    @property
    def shared(self) -> bool:
        """Lender and borrower are one GPU."""
        return self.lender == self.borrower

    @property
    def words(self) -> str:
        return "one GPU, shared by lender and borrower" if self.shared else "two GPUs"


def devices() -> Devices:
    """The first GPU lends; another that can reach it borrows, if there is one."""
    for other in range(1, device_count()):
        if call("cuDeviceCanAccessPeer", call("cuDeviceGet", other), call("cuDeviceGet", 0)):
            return Devices(lender=0, borrower=other, meter=Meter(0))
    return Devices(lender=0, borrower=0, meter=Meter(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """A slab full of FIRST, and a client that has it open."""

    kind: str
    nbytes: int
    keeper: Actor
    client: Actor
    slab: int  # the keeper's number for it
    opened: int  # the client's
    ticket: Ticket


@contextmanager
def started(ordinal: int, **how: object) -> Iterator[Actor]:
    """A process with a context on a device."""
    with Actor(**how) as actor:  # type: ignore[arg-type]  # the caller's words are Actor's own
        actor.ask("context", number=ordinal)
        yield actor


def filled_slab(keeper: Actor, *, kind: str, nbytes: int, value: int = FIRST) -> int:
    """A new slab of the keeper's, full of *value*."""
    slab = keeper.ask("allocate", kind=kind, nbytes=nbytes).number
    keeper.ask("fill", number=slab, value=value)
    return slab


@contextmanager
def lent_slab(where: Devices, *, kind: str, nbytes: int) -> Iterator[Lent]:
    """A keeper and a client with a slab between them; both are killed at the end."""
    with started(where.lender) as keeper, started(where.borrower) as client:
        slab = filled_slab(keeper, kind=kind, nbytes=nbytes)
        ticket = keeper.export(slab, kind=kind, nbytes=nbytes)
        try:
            opened = client.open(ticket).number
            yield Lent(
                kind=kind,
                nbytes=nbytes,
                keeper=keeper,
                client=client,
                slab=slab,
                opened=opened,
                ticket=ticket,
            )
        finally:
            ticket.close()


def whose_bytes(actor: Actor, number: int, *, nbytes: int) -> str:
    """What an actor reads in its memory: whose bytes, or why it can't."""
    names = {FIRST: "the first tenant's", SECOND: "the second's", THIRD: "the third's", 0: "zeros"}
    found = []
    try:
        for value, name in names.items():
            count = actor.ask("count", number=number, value=value).number
            if count == nbytes:
                return f"reads {name} bytes" if value else "reads zeros"
            if count > nbytes // 100:
                found.append(f"{name} {100 * count // nbytes} %")
    except (Refused, Silent, Ended) as error:
        return str(error)
    return f"reads a mixture: {', '.join(found)}" if found else "reads something else"


def side_by_side(findings: Findings, ask: Callable[[str, Notes], None]) -> None:
    """Ask the same of both kinds of handle; what stops one of them is an answer."""
    answers: dict[str, dict[str, str]] = {}
    for kind in KINDS:
        notes: Notes = {}
        try:
            ask(kind, notes)
        except (Refused, Silent, Ended) as error:
            notes["what ended the questions"] = str(error)
        for question, answer in notes.items():
            answers.setdefault(question, {})[kind] = answer
    for question, by_kind in answers.items():
        findings.both(question, by_kind)


def change(before: int, after: int) -> str:
    """How NVML's figure moved, in words."""
    if after == before:
        return "no change"
    return f"{'+' if after > before else '-'}{mebibytes(abs(after - before))}"
