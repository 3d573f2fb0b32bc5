"""Nobody waits for a whole device: what a server has enqueued there goes on meanwhile.

What is called is looked for in the source; that nothing else gets there, the made-up driver shows
(tests/cuda/test_copy_engine.py). A keeper is a process of its own, with a context of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "aqua_client"
FORBIDDEN = {
    "cuCtxSynchronize",
    "cuMemAlloc",  # these wait for the device, or may
    "cuMemFree",
    "cuMemcpy",
    "cuMemcpyDtoD",
    "cuMemcpyDtoH",
    "cuMemcpyHtoD",
    "cuMemsetD8",
}
# A stream of torch's is one of 32 that a server may capture on, too.
FORBIDDEN_OF_TORCH = ("cuda.synchronize", "cuda.Stream")
DEFAULT_STREAMS = (None, 0, 1, 2)


def device_waits(source: str) -> Iterator[str]:
    """The calls in *source* that wait for a device, or for all that its default stream waits for."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        arguments = [one.value if isinstance(one, ast.Constant) else one for one in node.args]
        waits_for_default = (
            arguments[:1] == ["cuStreamSynchronize"] and arguments[1] in DEFAULT_STREAMS
        )
        if (
            name.endswith(FORBIDDEN_OF_TORCH)
            or waits_for_default
            or (arguments and arguments[0] in FORBIDDEN)
        ):
            yield ast.unparse(node)


@pytest.mark.parametrize(
    "path", sorted(CLIENT.rglob("*.py")), ids=lambda path: str(path.relative_to(CLIENT))
)
def test_the_client_waits_for_no_device(path: Path) -> None:
    """And it takes no stream of torch's, but where there is no driver to make one of its own."""
    found = list(device_waits(path.read_text()))
    assert found == (["torch.cuda.Stream(device.index)"] if path.name == "torch_streams.py" else [])


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.synchronize()",
        "import torch\ntorch.cuda.synchronize(device)",
        "call('cuCtxSynchronize')",
        "call('cuStreamSynchronize', 0)",
        "cuda_driver.call('cuMemcpyDtoH', there, address, 8)",
        "torch.cuda.Stream()",
    ],
)
def test_a_wait_would_be_found(line: str) -> None:
    """Each by itself."""
    assert len(list(device_waits(line))) == 1


def test_waiting_for_a_stream_of_its_own_is_none() -> None:
    """The library's thread does that at the end of a move."""
    assert not list(device_waits("call('cuStreamSynchronize', own)\nstream.synchronize()"))
