"""A node to borrow from, and a model to serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tiny model lies, as a server reads it."""
    # Not above: of 5.17 a server's parts import `transformers` anew, and what tests change was another's.
    from tests.integrations.transformers.servers import write_model

    directory = tmp_path_factory.mktemp("tiny")
    write_model(directory)
    return directory
