"""What status says of real GPUs beside their bytes: models, troubles, warnings, short names."""

from __future__ import annotations

import io
import json

import pytest
from aqua_protos import broker_pb2
from rich.console import Console

from aqua_daemon.ctl.documents import status_document
from aqua_daemon.ctl.status_screen import status_screen
from aqua_daemon.ctl.verdict import verdict
from tests.ctl.states import gpu, node

FIRST = "GPU-b4b6aefe-c140-5927-b146-0eb66bdff6dd"
SECOND = "GPU-4757bb48-7913-54ac-b9b5-3d64f5a21a9b"


def real(name: str, *, warnings: tuple[str, ...] = (), trouble: str = "") -> broker_pb2.GpuState:
    found = gpu(name, model="NVIDIA H100 80GB HBM3", trouble=trouble)
    found.warnings.extend(warnings)
    return found


def lines_of(state: broker_pb2.GetStateReply, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(status_screen(state, columns=width, rows=30))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("width", "names"), [(80, (FIRST[:12], SECOND[:12])), (120, (FIRST, SECOND))]
)
def test_a_gpu_is_named_short_where_there_is_no_room(width: int, names: tuple[str, ...]) -> None:
    """Eight digits tell those of a node apart, and leave room for the figures."""
    lines = lines_of(node(real(FIRST), real(SECOND)), width)
    assert tuple(line.split()[0] for line in lines if line.startswith("GPU-")) == names


def test_models_are_counted() -> None:
    """One line says what the GPUs are; stand-ins are of none."""
    assert "2 x NVIDIA H100 80GB HBM3" in lines_of(node(real(FIRST), real(SECOND)))
    assert " x " not in "\n".join(lines_of(node()))


def test_troubles_and_warnings_are_told_worst_first() -> None:
    """The worst with its GPU's whole name and what to type, the rest on a line each above it."""
    lines = lines_of(node(real(FIRST, trouble="MIG is enabled"), real(SECOND, warnings=("ECC",))))
    assert f"warn  {SECOND[:12]} lends, but ECC  -> aquactl leases --gpu {SECOND}" in lines
    assert lines[-2:] == [
        f"FAIL  {FIRST} lends nothing: MIG is enabled",
        "next  journalctl -u 'aqua-keeper@*' -n 50",
    ]
    assert any(line.startswith(f"{FIRST[:12]} !") for line in lines)


def test_a_warning_is_judged_and_a_trouble_outranks_it() -> None:
    """The operator hears of the worst first."""
    warned = real(SECOND, warnings=("ECC is off",))
    judged = verdict(node(warned))
    assert (judged.level, judged.sentence) == ("warn", f"{SECOND} lends, but ECC is off")
    assert verdict(node(warned, real(FIRST, trouble="MIG is enabled"))).level == "fail"


def test_machines_get_the_warnings_as_a_list() -> None:
    """And everything else of a GPU under its own name."""
    document = json.loads(json.dumps(status_document(node(real(FIRST, warnings=("a", "b"))))))
    (found,) = document["gpus"]
    assert (found["gpu"], found["warnings"]) == (FIRST, ["a", "b"])
    assert found["model"] == "NVIDIA H100 80GB HBM3"
