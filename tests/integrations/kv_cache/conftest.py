"""One thread computes, so that equal work gives equal bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.threads import one_thread


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield
