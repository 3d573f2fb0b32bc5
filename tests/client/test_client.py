"""The module itself: cheap to import, a client by itself, clear in forked children, quick to end."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch

import aqua_client
from aqua_client import awaiting
from aqua_client import client as client_module
from aqua_client.settings import ClientSettings
from tests.nodes import environment, short_directory


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A socket path where no daemon listens, which the environment names."""
    with short_directory() as directory:
        path = str(directory / "aqua.sock")
        monkeypatch.setenv("AQUA_SOCKET", path)
        yield path
        if client_module._default.client is not None:
            client_module._default.client.close()


def run(program: str, path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python program of its own."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment(AQUA_SOCKET=path, **variables),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_importing_costs_no_torch_and_no_grpc() -> None:
    """A program that never offloads pays nothing."""
    found = run(
        "import sys, aqua_client; dir(aqua_client); "
        "print([name for name in ('torch', 'grpc', 'numpy') if name in sys.modules])",
        "/nowhere",
    )
    assert found.stdout == "[]\n", found.stderr


def test_every_public_name_exists() -> None:
    """And `dir` shows it."""
    for name in aqua_client.__all__:
        assert getattr(aqua_client, name) is not None
    assert set(aqua_client.__all__) <= set(dir(aqua_client))
    assert aqua_client.errors.LeaseLost is aqua_client.LeaseLost
    with pytest.raises(AttributeError, match="nonsense"):
        _ = aqua_client.nonsense


def test_offloading_needs_no_set_up(nobody: str) -> None:
    """Without a daemon it is host memory, and a warning that names the socket."""
    tensor = torch.arange(10)
    with pytest.warns(aqua_client.AquaWarning, match=nobody):
        handle = aqua_client.offload(tensor)
    assert torch.equal(handle.fetch(), tensor)
    assert (handle.tier, handle.reason) == ("host", "no_daemon")
    assert aqua_client.stats()["fallbacks"] == {"no_daemon": 1}
    assert aqua_client.stats()["attached"] is False


def test_connect_makes_the_client_that_the_module_uses(nobody: str) -> None:
    """Until it is closed; then the next use makes a new one."""
    with aqua_client.connect(socket=nobody, home_gpu="SHM-0", fallback="error") as client:
        with pytest.raises(aqua_client.BrokerUnreachable):
            aqua_client.offload(torch.ones(2))
        assert client_module._default.client is client
    assert client.is_closed
    client.close()
    with pytest.warns(aqua_client.AquaWarning):
        aqua_client.offload(torch.ones(2))


def test_handles_of_a_client_that_connect_replaced_live_on(nobody: str) -> None:
    """A program that connects after its first offload loses nothing."""
    with pytest.warns(aqua_client.AquaWarning):
        early = aqua_client.offload(torch.ones(10))
    first = client_module._default.client
    assert first is not None
    with aqua_client.connect(socket=nobody), first:
        assert torch.equal(early.fetch(), torch.ones(10))


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    "wrong", [{"fallback": "maybe"}, {"home_gpu": "not a name"}, {"socket": "x" * 200}]
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, str]) -> None:
    """Before anything is connected."""
    with pytest.raises(aqua_client.InvalidSetting):
        aqua_client.connect(**wrong)


def test_a_client_that_is_forgotten_is_a_resource_warning(nobody: str) -> None:
    """Its handles may live on, so it is not closed behind anybody's back."""
    client = aqua_client.Client(ClientSettings(socket_path=nobody))
    pager = client._pager
    with pytest.warns(ResourceWarning, match="never closed"):
        del client
    client_module._open_pagers.discard(pager)
    pager.close()


FORKING = """
import os, warnings, torch, aqua_client
warnings.simplefilter("ignore")
handle = aqua_client.offload(torch.ones(1000))
child = os.fork()
if child == 0:
    told = []
    for use in (lambda: aqua_client.offload(torch.ones(2)), handle.fetch, handle.release,
                aqua_client.stats):
        try:
            use()
        except aqua_client.ForkedChild:
            told.append(True)
    repr(handle)
    del handle
    with aqua_client.connect() as anew:
        again = aqua_client.offload(torch.ones(3)).fetch()
    raise SystemExit(0 if told == [True] * 4 and again.sum() == 3 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert handle.fetch().sum() == 1000
print("ok")
"""


def test_a_forked_child_is_told_to_connect_anew(nobody: str) -> None:
    """Every call says so, until it does; the parent goes on."""
    found = run(FORKING, nobody)
    assert found.stdout == "ok\n", found.stderr


LOCKED = """
import os, threading, warnings, torch, aqua_client
warnings.simplefilter("ignore")
client = aqua_client.connect()
client.offload(torch.ones(10))
with client._pager._tiers.lock:
    child = os.fork()
    if child == 0:
        try:
            client.offload(torch.ones(10))
        except aqua_client.ForkedChild:
            with aqua_client.connect() as anew:
                os._exit(0 if anew.offload(torch.ones(10)).fetch().sum() == 10 else 2)
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("ok")
"""


def test_a_fork_while_a_lock_is_held_leaves_the_child_free(nobody: str) -> None:
    """Whoever held it does not exist in the child."""
    found = run(LOCKED, nobody)
    assert found.stdout == "ok\n", found.stderr


ENDING = """
import sys, time, warnings, torch, aqua_client
warnings.simplefilter("ignore")
handle = aqua_client.offload(torch.ones(1000))
import atexit
atexit.register(lambda: print("ending", flush=True))
"""


def test_the_end_of_a_process_waits_for_copies_in_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that is still in torch then would abort it."""
    monkeypatch.setattr(client_module, "_END_SECONDS", 10.0)
    monkeypatch.setattr(client_module, "_default", client_module._Default())
    may_end, has_ended = threading.Event(), threading.Event()

    def copy() -> None:
        may_end.wait(10.0)
        has_ended.set()

    awaiting.in_background(copy, device=torch.device("cpu"))
    threading.Timer(0.05, may_end.set).start()
    client_module._close_all()
    assert has_ended.is_set()


def test_a_process_that_never_closed_ends_by_itself(nobody: str) -> None:
    """No thread keeps it, nothing is printed, its status is 0."""
    found = run(ENDING, nobody)
    assert (found.returncode, found.stdout, found.stderr) == (0, "ending\n", "")


@pytest.mark.usefixtures("nobody")
def test_warnings_name_the_line_of_the_program() -> None:
    """Not a line of the library."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        aqua_client.offload(torch.ones(2))
    assert [one.filename for one in told] == [__file__]


def test_without_torch_the_remedy_is_named() -> None:
    """On a node that has the daemon alone: what a producer needs works, and tensors say why not."""
    program = """
import sys
sys.modules["torch"] = None
import aqua_client
aqua_client.Producer
aqua_client.offload
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        'tensors need PyTorch: pip install "aqua-broker[client]"'
    )


@pytest.mark.usefixtures("nobody")
@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_a_pool_needs_no_set_up_either() -> None:
    """It is the process's own client's."""
    cache = torch.randn(8, 3)
    pool = aqua_client.pool((3,), cache.dtype)
    slots = pool.store(cache, [7, 2])
    pool.load(slots, cache, [0, 1])
    assert torch.equal(cache[[0, 1]], cache[[7, 2]])
    with pytest.raises(aqua_client.InvalidRequest, match="keep"):
        aqua_client.pool((3,), cache.dtype, keep="forever")


@pytest.mark.usefixtures("nobody")
@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_batches_need_no_set_up_either() -> None:
    """They are the process's own client's."""
    tensors = [torch.ones(3), torch.zeros(2)]
    again = aqua_client.fetch_many(aqua_client.offload_many(tensors))
    assert all(torch.equal(one, other) for one, other in zip(tensors, again, strict=True))


@pytest.mark.usefixtures("nobody")
@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_what_never_changes_is_copied_once() -> None:
    """The same handle is given again; without the promise there are two."""
    weights = torch.randn(10)
    parked = aqua_client.offload(weights, immutable=True)
    assert aqua_client.offload(parked.fetch(), immutable=True) is parked
    assert aqua_client.offload(weights) is not parked
