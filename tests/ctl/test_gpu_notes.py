"""What status says of real GPUs beside their bytes: models, troubles, warnings, short names."""

from __future__ import annotations

import io
import json

from aqua_protos import broker_pb2
from rich.console import Console

from aqua_daemon.ctl.documents import status_document
from aqua_daemon.ctl.screens import status_screen
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
    console.print(status_screen(state))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_gpu_is_named_short_in_the_table_and_whole_with_its_model() -> None:
    """Eight digits tell those of a node apart, and leave room for the figures."""
    lines = lines_of(node(real(FIRST), real(SECOND)))
    assert [line.split()[0] for line in lines if line.startswith("GPU-")] == [
        FIRST[:12],
        SECOND[:12],
        FIRST,
        SECOND,
    ]
    assert f"{FIRST}  NVIDIA H100 80GB HBM3" in lines


def test_troubles_and_warnings_stand_under_their_gpu() -> None:
    """Each on a line of its own."""
    lines = lines_of(node(real(FIRST, trouble="MIG is enabled"), real(SECOND, warnings=("ECC",))))
    at = lines.index(f"{FIRST}  NVIDIA H100 80GB HBM3")
    assert lines[at + 1 : at + 4] == [
        "  MIG is enabled",
        f"{SECOND}  NVIDIA H100 80GB HBM3",
        "  ECC",
    ]


def test_stand_ins_have_no_notes() -> None:
    """There is nothing to say of them that the table does not."""
    assert "MODELS" not in lines_of(node())


def test_eight_real_gpus_fit_one_screen() -> None:
    """With tenants and events under forty lines."""
    state = node(
        *(real(f"GPU-0000000{number}-0000-0000-0000-000000000000") for number in range(8)),
        tenants=[broker_pb2.TenantState(tenant=f"uid-{uid}", sessions=1) for uid in range(4)],
        events=[broker_pb2.EventLine(seconds_ago=1, text=f"event {n}") for n in range(50)],
    )
    assert len(lines_of(state)) <= 42


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
