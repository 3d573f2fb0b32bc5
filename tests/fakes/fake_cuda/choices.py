"""How a fake node's driver behaves where it may behave in more than one way."""

from __future__ import annotations

from typing import TypedDict

from tests.fakes.fake_cuda.description import ExporterDeath, FreedHandle


class Choices(TypedDict, total=False):
    """What a test may choose of a `NodeDescription`."""

    cuda_order: tuple[int, ...]
    driver_version: str
    cuda_version: int
    context_bytes: int
    first_use_bytes: int
    system_bytes: int
    freed_handle: FreedHandle
    exporter_death: ExporterDeath
    leftovers: bool
    mps: bool
    fabric_state: int
    stream_delay_seconds: float
