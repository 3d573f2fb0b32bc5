"""What every test runs under: a time limit, a leak check, and honesty about what did not run.

Covers the limit per test (`@pytest.mark.limit(seconds)`), descriptors left open by end-to-end
tests, tests that need a tool, a file, a GPU or minutes, and the list of those not run at the end.
Does not cover starting nodes: that is tests/nodes.py.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

import pytest

LIMIT_SECONDS = 60.0  # a hang, not a slow machine, is what this should catch
TEARDOWN_SECONDS = 60.0  # past the limit by this much nothing can be saved: dump and end
LEAK_SECONDS = 5.0  # threads that close their sockets at the end of a test get this long
NOT_RUN_HERE = "not run here: "
# gRPC keeps its pollers for the life of the process; they hold nothing of a node.
POLLERS = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")

# Fakes serve gRPC in the process of a test, and tests fork: gRPC would stop its threads and wait for
# them without an end, and in a child what it left as garbage can't be destroyed, without an end either.
# Programs that tests start have it as it comes.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.register_at_fork(after_in_child=gc.freeze)

_stderr = pytest.StashKey[int]()


def require_tool(name: str) -> str:
    """The path of a program that the test needs; without it the test is not run, or fails in CI."""
    path = shutil.which(name)
    if path is None:
        _not_run(name)
    return path


def require_module(name: str, package: str) -> ModuleType:
    """A module of *package* that the test needs; without it the test is not run, or fails in CI."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        _not_run(package)


def require_path(path: Path, check: str) -> Path:
    """A file that *check* needs; without it the test is not run, or fails in CI."""
    if not path.exists():
        _not_run(f"{path} (for {check})")
    return path


def require_root() -> None:
    """What other users may do is seen by root alone; without it the test is not run, or fails in CI."""
    if os.geteuid() != 0:
        _not_run("root")


def _not_run(missing: str) -> NoReturn:
    message = f"{NOT_RUN_HERE}{missing} is missing"
    if os.environ.get("AQUA_REQUIRE_ALL") == "1":
        pytest.fail(f"{message}, and AQUA_REQUIRE_ALL=1 makes that a failure", pytrace=False)
    pytest.skip(message)


@pytest.fixture
def root() -> None:
    """For tests that need root: `@pytest.mark.usefixtures("root")`."""
    require_root()


@pytest.fixture(scope="session")
def cuda_device() -> int:
    """The ordinal of a CUDA device; tests that ask for it are `gpu` tests."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip(f"{NOT_RUN_HERE}a CUDA device is missing")
    return torch.cuda.current_device()


@pytest.fixture(autouse=True)
def no_descriptor_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """An end-to-end test closes every descriptor that it opened."""
    if "end_to_end" not in request.path.parts:
        yield
        return
    before = _descriptors()
    yield
    deadline = time.monotonic() + LEAK_SECONDS
    while leaked := {item for item in _descriptors() - before if item[1] not in POLLERS}:
        if time.monotonic() > deadline:
            pytest.fail(f"descriptors left open: {sorted(leaked)}")
        gc.collect()
        time.sleep(0.02)


def _descriptors() -> set[tuple[int, str]]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add((int(entry.name), str(entry.readlink())))
        except FileNotFoundError:  # the directory that is being read
            continue
    return found


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # capturing has not begun: this is the terminal
    # In the background of a script SIGINT comes ignored, and every program under test would inherit
    # that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long_too = os.environ.get("AQUA_LONG") == "1"
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        if "cuda_device" in getattr(item, "fixturenames", ()):
            item.add_marker("gpu")
        is_long = item.get_closest_marker("long") is not None
        (dropped if is_long and not long_too else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    backstop = _limit_of(item) + TEARDOWN_SECONDS
    faulthandler.dump_traceback_later(backstop, exit=True, file=item.config.stash[_stderr])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    seconds = _limit_of(item)

    def too_slow(_signal: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback(file=item.config.stash[_stderr])
        pytest.fail(f"over its limit of {seconds:g} s (@pytest.mark.limit)")

    before = signal.signal(signal.SIGALRM, too_slow)
    # Again each second: a callback's exception is swallowed by an event loop, the next is not.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _limit_of(item: pytest.Item) -> float:
    marker = item.get_closest_marker("limit")
    return float(marker.args[0]) if marker else LIMIT_SECONDS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each check that was not run here, and count the GPU tests among them."""
    skipped = terminalreporter.getreports("skipped")
    not_run = [(report, _reason(report)) for report in skipped]
    not_run = [(report, reason) for report, reason in not_run if reason.startswith(NOT_RUN_HERE)]
    gpu = [report for report, _ in not_run if "gpu" in report.keywords]
    if not_run:
        terminalreporter.section("not run here")
        for report, reason in not_run:
            terminalreporter.line(f"{report.nodeid}: {reason.removeprefix(NOT_RUN_HERE)}")
        terminalreporter.line(f"{len(not_run)} checks not run here, {len(gpu)} of them GPU tests")


def _reason(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")
