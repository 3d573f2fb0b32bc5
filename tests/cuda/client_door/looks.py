"""What this process has open, mapped and made on the fake node."""

from __future__ import annotations

import os
from pathlib import Path

from tests.fakes.cuda_node import FakeCudaNode

HOME, LENDER = 2, 5


def home(node: FakeCudaNode) -> str:
    return node.uuids[HOME]


def own_contexts(node: FakeCudaNode) -> list[str]:
    """The GPUs where this process has one."""
    return [one.uuid for one in node.contexts() if one.pid == os.getpid()]


def mapped_by_us(node: FakeCudaNode) -> int:
    """How many of the node's allocations this process maps."""
    return sum(os.getpid() in node.mapped_by(one.number) for one in node.allocations())


def descriptors() -> set[str]:
    """The open ones of this process."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def is_open(descriptor: int | None) -> bool:
    return descriptor is not None and Path(f"/proc/self/fd/{descriptor}").exists()
