"""The generated code is what its `.proto` files say, and loads under the protobufs we promise.

Both need grpcio-tools 1.71.2 and protobuf 5.29, which can't live in the main environment:
`make check` builds `.gencode/` for them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require_path

REPOSITORY = Path(__file__).parents[2]
PROTOS = REPOSITORY / "protos"
TOOLS_PYTHON = REPOSITORY / ".gencode" / "bin" / "python"
MESSAGES_ONLY = ("presence", "keeper")  # they define no service, so their stubs are empty

LOAD_AND_USE = """
import google.protobuf, grpc
from aqua_protos import broker_pb2, broker_pb2_grpc, health_pb2, health_pb2_grpc, keeper_pb2, presence_pb2
frame = presence_pb2.ClientFrame(hello=presence_pb2.Hello(protocol=1, home_gpu="SHM-0"))
again = presence_pb2.ClientFrame.FromString(frame.SerializeToString())
assert again.WhichOneof("kind") == "hello" and again.hello.home_gpu == "SHM-0"
assert broker_pb2_grpc.BrokerStub and health_pb2_grpc.HealthStub and keeper_pb2.KeeperReply()
print(google.protobuf.__version__)
"""


def load_and_use(python: str) -> str:
    run = subprocess.run(
        [python, "-W", "error", "-c", LOAD_AND_USE],
        env={"PYTHONPATH": str(PROTOS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.limit(120)
def test_checked_in_code_is_what_the_pinned_compiler_writes(tmp_path: Path) -> None:
    """Making the code again gives the same files, byte for byte, and no other."""
    require_path(TOOLS_PYTHON, "generated code against grpcio-tools 1.71.2")
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command = [str(TOOLS_PYTHON), "-m", "grpc_tools.protoc", "-I", ".", *sources]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, *outputs], cwd=PROTOS, check=True, timeout=60)
    for name in MESSAGES_ONLY:
        (tmp_path / "aqua_protos" / f"{name}_pb2_grpc.py").unlink()
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "aqua_protos").iterdir()}
    checked_in = {
        path.name: path.read_bytes() for path in (PROTOS / "aqua_protos").glob("*_pb2*.py*")
    }
    assert sorted(fresh) == sorted(checked_in)
    assert [name for name in fresh if fresh[name] != checked_in[name]] == []


def test_generated_code_loads_under_the_oldest_protobuf() -> None:
    """Protobuf 5.29 reads and writes our messages without a warning."""
    require_path(TOOLS_PYTHON, "generated code under protobuf 5.29")
    assert load_and_use(str(TOOLS_PYTHON)).startswith("5.29.")


def test_generated_code_loads_under_the_newest_protobuf() -> None:
    """So does the protobuf that constraints.txt pins."""
    pinned = {
        line.split("==")[0]: line.split("==")[1].strip()
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert load_and_use(sys.executable) == pinned["protobuf"]
