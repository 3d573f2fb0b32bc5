"""A client without a daemon: what it parks is in host memory, and is the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import aqua_client
from aqua_client.settings import ClientSettings
from tests.nodes import MIB, short_directory


@contextmanager
def host_client(*, host_limit_bytes: int = 256 * MIB) -> Iterator[aqua_client.Client]:
    """Closed at the end of the block; its one warning is not what these tests are about."""
    with short_directory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        settings = ClientSettings(
            socket_path=str(directory / "aqua.sock"), host_limit_bytes=host_limit_bytes
        )
        with aqua_client.Client(settings) as client:
            yield client
