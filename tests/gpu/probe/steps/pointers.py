"""What CUDA says of a mapped pointer, and whether torch takes it without a context elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.gpu.probe import content, dlpack, kinds
from tests.gpu.probe.driver import DriverError, call, enum, use_device
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.kinds import Held
from tests.gpu.probe.launching import torch_has_cuda
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import FIRST, SECOND, Devices, Notes, change, filled_slab, side_by_side
from tests.gpu.probe.stage import started as started_process

ATTRIBUTES = (
    "MEMORY_TYPE", "DEVICE_ORDINAL", "IS_LEGACY_CUDA_IPC_CAPABLE", "ALLOWED_HANDLE_TYPES",
    "IS_MANAGED", "MAPPED", "RANGE_SIZE", "BUFFER_ID", "SYNC_MEMOPS",
)  # fmt: skip


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    use_device(where.borrower)

    def ask(kind: str, notes: Notes) -> None:
        with _opened_here(kind, plan, where) as held:
            told = {name: _attribute(name, held.pointer) for name in ATTRIBUTES}
            findings.figures(f"attributes, {kind}", told)
            own, named = where.borrower, told["DEVICE_ORDINAL"]
            notes["memory type, device (own device, lender)"] = (
                f"{told['MEMORY_TYPE']}, {named} ({own}, {where.lender})"
            )
            notes["handle types, legacy IPC capable"] = (
                f"{told['ALLOWED_HANDLE_TYPES']}, {told['IS_LEGACY_CUDA_IPC_CAPABLE']}"
            )
            _ask_torch(held, where, notes)

    side_by_side(findings, ask)


@contextmanager
def _opened_here(kind: str, plan: Plan, where: Devices) -> Iterator[Held]:
    with started_process(where.lender) as keeper:
        slab = filled_slab(keeper, kind=kind, nbytes=plan.slab_bytes)
        ticket = keeper.export(slab, kind=kind, nbytes=plan.slab_bytes)
        handle = bytes.fromhex(ticket.handle)
        held = kinds.open_exported(
            kind, plan.slab_bytes, handle, ticket.descriptor, where.borrower, {}
        )
        ticket.close()
        try:
            yield held
        finally:
            kinds.close(held, {})


def _attribute(name: str, pointer: int) -> int | str:
    try:
        wanted = enum("CUpointer_attribute", f"CU_POINTER_ATTRIBUTE_{name}")
        return int(call("cuPointerGetAttribute", wanted, pointer))
    except (AttributeError, DriverError, TypeError) as error:
        return str(error)


def _ask_torch(held: Held, where: Devices, notes: Notes) -> None:
    on_host = _attribute("MEMORY_TYPE", held.pointer) == 1
    if not (on_host or torch_has_cuda()):
        notes["torch, by DLPack"] = "not run: torch sees no CUDA device"
        return
    import torch

    kind = dlpack.CPU if on_host else dlpack.CUDA
    ordinal = 0 if on_host else where.borrower

    def by_dlpack() -> torch.Tensor:
        made = dlpack.capsule(held.pointer, held.nbytes, kind=kind, ordinal=ordinal)
        return dlpack.tensor(made)

    def by_interface() -> torch.Tensor:
        return torch.as_tensor(_Interface(held), device=f"cuda:{ordinal}")

    notes["torch, by DLPack"] = _tried(by_dlpack, held, where)
    if not on_host:
        notes["torch, by __cuda_array_interface__"] = _tried(by_interface, held, where)


class _Interface:
    """Memory as Numba describes it."""

    def __init__(self, held: Held) -> None:
        self.__cuda_array_interface__ = {
            "shape": (held.nbytes,),
            "typestr": "|u1",
            "data": (held.pointer, False),
            "version": 3,
        }


def _tried(make: Callable[[], object], held: Held, where: Devices) -> str:
    import torch

    content.fill(held.pointer, held.nbytes, FIRST)
    torch.zeros(1, device=f"cuda:{where.borrower}" if torch_has_cuda() else "cpu")
    before = where.meter.settle()
    try:
        tensor = make()
        assert isinstance(tensor, torch.Tensor)
        right = bool((tensor == FIRST).all())
        tensor.fill_(SECOND)
        call("cuCtxSynchronize")
        right = right and content.count(held.pointer, held.nbytes, SECOND) == held.nbytes
        shares = tensor.data_ptr() == held.pointer
        device = str(tensor.device)
    except (BufferError, DriverError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    told = "exact both ways" if right else "WRONG BYTES"
    after = change(before, where.meter.settle())
    return f"{told}, {'no copy' if shares else 'A COPY'}, {device}, lender's GPU: {after}"
