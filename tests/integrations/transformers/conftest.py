"""A node to borrow from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import aqua_client
from tests.nodes import MIB, Node, running_node


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """Three stand-in GPUs, two of which lend."""
    with running_node(gpus=3, gpu_bytes=64 * MIB) as made:
        yield made


@pytest.fixture
def client(node: Node) -> Iterator[aqua_client.Client]:
    """A client of the test's own."""
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as made:
        yield made
