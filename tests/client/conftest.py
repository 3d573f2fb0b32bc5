"""A fake daemon and sessions to it, ended in the right order."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aqua_client.counters import Counters
from aqua_client.session import Session
from aqua_client.settings import ClientSettings
from tests.fakes.broker_process import running_fake
from tests.fakes.broker_server import TERM_SECONDS, FakeDaemon
from tests.fakes.listening import Recorder
from tests.nodes import short_directory


class Linked(Session):
    """A session with its listener, settings and counters at hand."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.listener = Recorder()
        self.counters = Counters()
        super().__init__(settings, self.listener, self.counters)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory for sockets."""
    with short_directory() as made:
        yield made


@pytest.fixture
def settings(directory: Path) -> ClientSettings:
    """Settings for a daemon there; generous, since other work shares the machine."""
    return ClientSettings(
        socket_path=str(directory / "aqua.sock"),
        connect_seconds=5.0,
        call_seconds=5.0,
        acquire_seconds=5.0,
        close_seconds=5.0,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What a module with BOTH_WAYS says holds for a daemon of the release before, too."""
    if "way" in metafunc.fixturenames and getattr(metafunc.module, "BOTH_WAYS", False):
        metafunc.parametrize("way", ["frames", "grpc"])


@pytest.fixture
def way() -> str:
    """How the daemon takes calls: by frame, as those of this release do, or by gRPC alone."""
    return "frames"


@pytest.fixture
def daemon(settings: ClientSettings, way: str) -> Iterator[FakeDaemon]:
    """A daemon that grants everything."""
    with FakeDaemon(settings.socket_path, way=way) as made:
        yield made


@pytest.fixture
def process(
    settings: ClientSettings, way: str, request: pytest.FixtureRequest
) -> Iterator[subprocess.Popen[str]]:
    """Such a daemon as a process of its own, to be stopped and killed; its term may be given."""
    term_seconds = getattr(request, "param", TERM_SECONDS)
    with running_fake(settings.socket_path, way=way, term_seconds=term_seconds) as started:
        yield started


@pytest.fixture
def link(settings: ClientSettings) -> Iterator[Callable[..., Linked]]:
    """Makes started sessions: `link()`, or `link(settings)` with others than the fixture's."""
    made: list[Linked] = []

    def make(chosen: ClientSettings = settings) -> Linked:
        session = Linked(chosen)
        made.append(session)
        session.start()
        return session

    yield make
    for session in made:
        session.close(seconds=5.0)
