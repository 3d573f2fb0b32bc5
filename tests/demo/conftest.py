"""What the demo's tests share: one small model, and the answers of a run that never parks."""

from __future__ import annotations

import pytest

from aqua_client.demo.model import Model
from aqua_client.demo.serving import Served, Server
from tests.demo.stores import TINY


@pytest.fixture(scope="session")
def model() -> Model:
    """Of two layers."""
    return Model(TINY.shape, threads=1)


@pytest.fixture(scope="session")
def reference(model: Model) -> Served:
    """The tiny plan, never parked."""
    return Server(model, TINY, tell=lambda _: None).serve_all()
