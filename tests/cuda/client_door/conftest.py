"""A fake node that this process sees too, and a slab of another process on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cuda.client_door.looks import LENDER
from tests.cuda.exporter import KINDS, ExportedSlab, exporting
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.torch_streams import leave_torch_out


@pytest.fixture(autouse=True)
def no_torch_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that torch may have in this process is none of the fake node's."""
    leave_torch_out(monkeypatch)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeCudaNode]:
    """Eight GPUs, which this process sees too."""
    made = fake_cuda_node(tmp_path)
    with made.in_process():
        yield made


@pytest.fixture(params=KINDS)
def slab(request: pytest.FixtureRequest, node: FakeCudaNode) -> Iterator[ExportedSlab]:
    """Of either kind, on the lender."""
    with exporting(node, gpu=node.uuids[LENDER], kind=request.param) as made:
        yield made
