"""What examples run with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aqua_client import client as client_module
from tests.nodes import short_directory


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a daemon, on the process's own client."""
    with short_directory() as directory:
        monkeypatch.setenv("AQUA_SOCKET", str(directory / "aqua.sock"))
        yield
        if client_module._default.client is not None:
            client_module._default.client.close()
