"""The two releases, unpacked once a run."""

from __future__ import annotations

import pytest

from aqua_daemon import __version__
from tests.compat.releases import Release, release_before, this_release


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release_before(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def new() -> Release:
    return this_release(__version__)
