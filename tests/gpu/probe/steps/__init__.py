"""The steps, in the order they are run: what a wrong design would cost most comes first."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

if TYPE_CHECKING:  # the process that runs the steps must not load a driver
    from tests.gpu.probe.findings import Findings
    from tests.gpu.probe.plan import Plan
    from tests.gpu.probe.stage import Devices

    Answer: TypeAlias = Callable[[Plan, Devices, Findings], None]

LONGEST_SECONDS = 470.0  # none may take 8 minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One question and how long its answer may take."""

    name: str
    question: str
    seconds: float = 120.0

    def load(self) -> Answer:
        """The function that asks."""
        module = importlib.import_module(f"tests.gpu.probe.steps.{self.name}")
        return cast("Answer", module.answer)


STEPS = tuple(
    Step(name=name, question=question, seconds=seconds)
    for name, seconds, question in (
        ("machine", 60.0, "what is this machine, and what does its driver offer?"),
        ("exporter_death", 180.0, "what becomes of a mapping whose exporter is killed?"),
        ("free_while_mapped", 180.0, "what does a free do while somebody has the memory open?"),
        ("handle_identity", 120.0, "can a handle come to mean other memory?"),
        ("kept_handle", 180.0, "what can an ex-tenant do with a handle that it kept?"),
        ("opening", 120.0, "who may open a handle, how often, and close it?"),
        ("client_death", 240.0, "when do the bytes of a killed client come back?"),
        ("contexts", 180.0, "what do keepers and clients cost on a GPU?"),
        ("pointers", 120.0, "what does CUDA say of a mapping, and does torch take it?"),
        ("other_uids", 120.0, "do handles work between users?"),
        ("namespaces", 180.0, "do handles work between namespaces?"),
        ("costs", 300.0, "what does each step in a slab's life cost, by its size?"),
        ("opening_many", 300.0, "what does opening cost, by how many and how large?"),
        ("scrub", 180.0, "how fast is a scrub, and is it needed?"),
        ("bandwidth", 300.0, "how fast are plain copies, by size?"),
        ("scattered", 300.0, "how to copy many scattered blocks?"),
        ("stalls", 300.0, "what stalls a user's launches?"),
        ("capture", 120.0, "what breaks a graph capture from another thread?"),
        ("nvml_answers", 60.0, "what does NVML tell here?"),
    )
)
