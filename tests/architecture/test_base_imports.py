"""What each part may import of other people's code: a node without torch, rich or CUDA must start."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
OURS = {"aqua_client", "aqua_daemon", "aqua_protos"}
BASE = {"google", "grpc", "numpy"}
SCREENS = {"click", "rich", "typer"}
CUDA = {"cuda", "cupy"}  # late, in whoever needs a GPU

# The first directory that holds a file decides.
ALLOWED: dict[str, set[str]] = {
    "aqua_daemon/ctl": BASE | SCREENS | {"pynvml"},
    "aqua_daemon/keeper": BASE | CUDA | {"pynvml"},
    "aqua_daemon": BASE | {"orjson", "prometheus_client", "pynvml"},
    "aqua_client/demo": BASE | SCREENS | {"torch", "transformers"},
    "aqua_client/integrations/adapters": BASE | {"peft", "torch"},
    "aqua_client/integrations/transformers/serving": BASE
    | {"prometheus_client", "starlette", "tokenizers", "torch", "transformers", "uvicorn"},
    "aqua_client/integrations/transformers": BASE | {"click", "torch", "transformers"},
    "aqua_client/integrations": BASE | {"torch", "transformers"},
    "aqua_client": BASE | CUDA | {"torch"},
    "protos": {"google", "grpc"},
}
FILES = [path for part in ALLOWED for path in sorted((REPOSITORY / part).rglob("*.py"))]


def foreign_modules(path: Path) -> set[str]:
    """The top-level names that a file imports, at any depth, less the standard library and ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
    return found - OURS - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    "path", sorted(set(FILES)), ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_only_what_is_on_the_list_is_imported(path: Path) -> None:
    """A new dependency is written down here, and in pyproject.toml, or it does not come in."""
    inside = str(path.relative_to(REPOSITORY))
    part = next(part for part in ALLOWED if inside.startswith(f"{part}/"))
    assert foreign_modules(path) <= ALLOWED[part]
