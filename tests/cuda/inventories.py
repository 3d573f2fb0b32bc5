"""Recorded nodes, read by NVML in this process."""

from __future__ import annotations

from pathlib import Path

from aqua_daemon.keeper.inventory import Identity, Reading
from aqua_daemon.keeper.nvml import Nvml
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.description import NodeDescription

ANSWER_SECONDS = 20.0


def node_like(directory: Path, description: NodeDescription) -> FakeCudaNode:
    return fake_cuda_node(directory, topology=description)


def identities(node: FakeCudaNode) -> list[Identity]:
    with node.in_process(), Nvml() as nvml:
        return [nvml.identity(uuid) for uuid in nvml.uuids()]


def reading(node: FakeCudaNode, index: int = 0) -> Reading:
    with node.in_process(), Nvml() as nvml:
        return nvml.reading(node.uuids[index])
