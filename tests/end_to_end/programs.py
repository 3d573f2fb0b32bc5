"""Client programs as processes of their own, which tests stop and kill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.nodes import Node, environment, read_line

START_SECONDS = 40.0  # importing torch on a busy machine

# What every program begins with: it parks noise, says where, and does as it is told, line by line.
PARKING = """
import json, os, signal, sys, warnings
import torch, aqua_client
warnings.simplefilter("ignore", aqua_client.AquaWarning)
torch.set_num_threads(1)  # its pool of threads does not survive a fork

def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2**20,), dtype=torch.uint8, generator=generator)

def say(**what):
    print(json.dumps(what), flush=True)

def intact():
    return all(torch.equal(handle.fetch(), noise(seed)) for seed, handle in enumerate(handles))

def state():
    leases = aqua_client.stats()["leases"]
    return {"tiers": sorted({h.tier for h in handles}), "gpus": sorted(leases), "pid": os.getpid(),
            "reasons": sorted({h.reason for h in handles})}

handles = [aqua_client.offload(noise(seed)) for seed in range(int(sys.argv[1]))]
"""
OBEYING = """
say(**state())
for line in sys.stdin:
    say(intact=intact(), **state())
"""


class Program:
    """A running client program that answers each line with one of JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.first = self._answer()

    def ask(self, what: str = "look") -> dict[str, object]:
        """Have it look at its tensors, or do what else it knows."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, object]:
        assert self.process.stdout is not None
        line = read_line(self.process.stdout, seconds=START_SECONDS)
        assert line, f"the program has ended: {self.process.poll()}"
        found: dict[str, object] = json.loads(line)
        return found


@contextmanager
def running_program(
    node: Node,
    *,
    tensors: int = 6,
    source: str = PARKING + OBEYING,
    home_gpu: str = "SHM-0",
    variables: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """A program that has parked so many MiB; killed at the end of the block."""
    usual = {"AQUA_SOCKET": node.socket, "AQUA_HOME_GPU": home_gpu, "AQUA_CONNECT_SECONDS": "10"}
    process = subprocess.Popen(
        [sys.executable, "-c", source, str(tensors)],
        cwd=node.directory,
        env=environment(**usual, **(variables or {})),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Program(process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
