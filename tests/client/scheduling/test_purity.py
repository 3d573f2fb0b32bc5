"""Scheduling stays pure: it may import only what is on this list."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.test_core_imports import ALLOWED, imported_modules

SCHEDULING = Path(__file__).parents[3] / "aqua_client" / "scheduling"


@pytest.mark.parametrize("path", sorted(SCHEDULING.glob("*.py")), ids=lambda path: path.name)
def test_scheduling_imports_only_the_allowed(path: Path) -> None:
    """No clock, no chance, no input or output; of the client itself and its errors alone."""
    for module in imported_modules(path):
        if module.startswith("aqua_client"):
            assert module.startswith(("aqua_client.scheduling", "aqua_client.errors"))
        else:
            assert module.split(".")[0] in ALLOWED
