"""Where the contract must hold: nodes whose memory is of one sort, with tenants as processes.

    with shm_place() as place, place.tenant() as tenant:
        slab = tenant.borrow()

Covers starting them and what can be seen from outside. What tenants do is tenant.py's; what must
hold, the tests'.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.cuda_node import fake_cuda_node
from tests.nodes import (
    MIB,
    PROGRAM,
    REPOSITORY,
    STEADY,
    Node,
    environment,
    flag_words,
    read_line,
    running_node,
    short_directory,
    wait_until,
)

SHM_SETTLE_SECONDS, CUDA_SETTLE_SECONDS = 0.3, 3.0  # a reading and a report, each a second apart
ANSWER_SECONDS = 60.0  # importing torch on a busy machine; many lease cycles in one request


class TenantFailed(AssertionError):
    """A tenant could not do what it was told; its own words."""


class Tenant:
    """A client's process that obeys, line by line."""

    def __init__(self, variables: Mapping[str, str], within: Sequence[str] = ()) -> None:
        """*within* is a command that runs another, such as `unshare --pid --fork`."""
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.contract.tenant"],
            cwd=REPOSITORY,
            env=dict(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, verb: str, **arguments: object) -> dict[str, object]:
        """Have one thing done, and what came of it."""
        self.begin(verb, **arguments)
        return self.answer()

    def number(self, verb: str, **arguments: object) -> int:
        """The same, for what is one number."""
        found = self.ask(verb, **arguments)["number"]
        assert isinstance(found, int)
        return found

    def begin(self, verb: str, **arguments: object) -> None:
        """Let it begin, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb, "arguments": arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self, *, seconds: float = ANSWER_SECONDS) -> dict[str, object]:
        """What came of what was begun."""
        assert self._process.stdout is not None
        line = read_line(self._process.stdout, seconds=seconds)
        if not line:
            raise TenantFailed(f"no answer in {seconds:g} s, status {self._process.poll()}")
        found: dict[str, object] = json.loads(line)
        if "failed" in found:
            raise TenantFailed(str(found["failed"]))
        return found

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """At the end of a block: whatever it does."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@dataclass(frozen=True, kw_only=True)
class Place:
    """A running node, and how its tenants find it."""

    name: str
    node: Node
    home_gpu: str
    lender_gpu: str
    slab_bytes: int  # the smallest that there are
    variables: Mapping[str, str]
    torch_device: str  # where tenants' own tensors are

    @contextmanager
    def tenant(self, within: Sequence[str] = (), **more: str) -> Iterator[Tenant]:
        """A tenant's process, run by the command *within*; killed at the end of the block."""
        tenant = Tenant(
            {
                **environment(**self.variables),
                "AQUA_SOCKET": self.node.socket,
                "AQUA_HOME_GPU": self.home_gpu,
                "AQUA_CONNECT_SECONDS": "20",
                "AQUA_TEST_DEVICE": self.torch_device,
                **more,
            },
            within,
        )
        try:
            tenant.answer()  # it has imported what it needs
            yield tenant
        finally:
            tenant.end()

    def pool_bytes(self, *states: str) -> int:
        """Of the lending GPU, as the daemon sees it."""
        samples = self.node.scrape()
        names = [f'aqua_pool_bytes{{gpu="{self.lender_gpu}",state="{state}"}}' for state in states]
        return int(sum(samples[name] for name in names))

    def keeper_pid(self) -> int:
        """Of the lending GPU; one keeper has all shm GPUs."""
        processes = [words for words in self.node._processes() if "keeper" in words[1]]
        found = [pid for pid, words in processes if {self.lender_gpu, "--shm-gpus"} & {*words}]
        assert len(found) == 1, processes
        return found[0]

    def kill_keeper(self) -> None:
        pid = self.keeper_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), what="the keeper is gone")

    @property
    def settle_seconds(self) -> float:
        """How long after a change the figures may still be without it."""
        return SHM_SETTLE_SECONDS if self.name == "shm" else CUDA_SETTLE_SECONDS

    @property
    def slack_bytes(self) -> int:
        """What else may come and go on a real GPU; never as much as a slab."""
        return self.slab_bytes // 2

    def await_none_lent(self) -> None:
        """Return when no slab is with anybody, nor on its way back."""
        held = ("lent", "returning", "quarantined")
        wait_until(lambda: not self.pool_bytes(*held), seconds=20, what="no slab is held")

    def settled_free_bytes(self) -> int:
        """What is free once the figures, which come with a delay, have stopped to change."""
        seen, since = self.pool_bytes("free"), time.monotonic()
        deadline = since + 20
        while time.monotonic() < min(deadline, since + self.settle_seconds):
            now = self.pool_bytes("free")
            if now != seen:
                seen, since = now, time.monotonic()
        return seen

    def await_all_free(self, free_before: int) -> None:
        """Return when as much is free as before."""
        self.await_none_lent()
        wanted = free_before - self.slack_bytes
        wait_until(lambda: self.pool_bytes("free") >= wanted, seconds=20, what="all is free")


@contextmanager
def shm_place() -> Iterator[Place]:
    """Two stand-in GPUs."""
    with (
        _open_directory() as directory,
        running_node(directory / "node", gpus=2, gpu_bytes=160 * MIB) as node,
    ):
        yield Place(
            name="shm",
            node=node,
            home_gpu="SHM-0",
            lender_gpu="SHM-1",
            slab_bytes=4 * MIB,
            variables={},
            torch_device="cpu",
        )


@contextmanager
def fake_cuda_place(handles: str, *, gpus: int = 2) -> Iterator[Place]:
    """GPUs of a made-up driver, the last one with a real keeper; one alone lends to itself."""
    with _open_directory() as directory, _files_for_every_user():
        made = fake_cuda_node(directory / "cuda", gpus=gpus, memory=4096 * MIB)
        home, lender = made.uuids[0], made.uuids[-1]
        variables = made.environment()
        with _cuda_node(
            directory / "node",
            variables,
            handles=handles,
            gpu=lender,
            lend_to_own_gpu=home == lender,
        ) as node:
            place = Place(
                name=f"fake {handles}",
                node=node,
                home_gpu=home,
                lender_gpu=lender,
                slab_bytes=32 * MIB,
                variables=variables,
                torch_device="cpu",
            )
            _await_lending(place)
            yield place


@contextmanager
def cuda_place(handles: str, ordinal: int) -> Iterator[Place]:
    """One real GPU that lends to itself."""
    import torch

    gpu = f"GPU-{torch.cuda.get_device_properties(ordinal).uuid}"
    with (
        _open_directory() as directory,
        _cuda_node(directory / "node", {}, handles=handles, gpu=gpu, lend_to_own_gpu=True) as node,
    ):
        place = Place(
            name=f"cuda {handles}",
            node=node,
            home_gpu=gpu,
            lender_gpu=gpu,
            slab_bytes=32 * MIB,
            variables={},
            torch_device=f"cuda:{ordinal}",
        )
        _await_lending(place)
        yield place


class _CudaNode(Node):
    """A node that lends the GPUs that NVML shows."""

    def __init__(
        self, directory: Path, variables: Mapping[str, str], flags: Mapping[str, str | bool]
    ) -> None:
        super().__init__(
            directory, gpus=0, gpu_bytes=0, variables=variables, program=PROGRAM, flags=flags
        )
        words = flag_words({"metrics": "127.0.0.1:0", **STEADY, **flags})
        self._flags = ["--socket", self.socket, *words]


@contextmanager
def _cuda_node(
    directory: Path, variables: Mapping[str, str], **flags: str | bool
) -> Iterator[_CudaNode]:
    node = _CudaNode(directory, variables, flags)
    try:
        node.start_daemon()
        yield node
    finally:
        node.end()


@contextmanager
def _open_directory() -> Iterator[Path]:
    """For tenants of other users, too: what they may use in it, the sockets' own modes say."""
    with short_directory() as directory:
        directory.chmod(0o755)
        yield directory


@contextmanager
def _files_for_every_user() -> Iterator[None]:
    """A driver is there for all: the made-up one's files must be, too."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def _await_lending(place: Place) -> None:
    """The first figures of a real GPU take NVML a moment."""
    name = f'aqua_lendable_bytes{{gpu="{place.lender_gpu}"}}'
    wait_until(lambda: place.node.scrape()[name] > 0, seconds=40, what="the GPU is lent")
