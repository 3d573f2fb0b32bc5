"""The core stays pure: it may import only what is on this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "aqua_daemon" / "core"
ALLOWED = {
    "__future__",
    "aqua_daemon",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "typing",
}


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    return modules


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.name)
def test_core_imports_only_the_allowed(path: Path) -> None:
    """No clock, no input or output, no technology can come in unnoticed."""
    assert {module.split(".")[0] for module in imported_modules(path)} <= ALLOWED


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.name)
def test_core_imports_nothing_of_the_daemon_but_itself(path: Path) -> None:
    """Imports point inwards: the core is the innermost part."""
    modules = {name for name in imported_modules(path) if name.startswith("aqua_daemon")}
    assert all(name.startswith("aqua_daemon.core") for name in modules)
