"""What the README and the docstrings show of these integrations runs as it stands there."""

from __future__ import annotations

import re
import textwrap
from importlib import import_module

import pytest
import torch

import aqua_client
from aqua_client.integrations.adapters import AdapterPool
from tests.integrations.readme import python_blocks

NAMES = ("aqua_client.park(", "offload_activations(", "AdapterPool(")
MODULES = ("activations", "adapters", "modules")


pytestmark = pytest.mark.usefixtures("nobody")


def docstring_example(name: str) -> str:
    text = import_module(f"aqua_client.integrations.{name}").__doc__ or ""
    return "\n".join(
        textwrap.dedent(one) for one in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    )


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_the_readmes_examples_run() -> None:
    """Each by itself."""
    blocks = [block for name in NAMES for block in python_blocks(name)]
    assert len(blocks) == len(set(blocks)) == len(NAMES)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102 - ours


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_the_docstrings_examples_run(name: str) -> None:
    """As somebody would type them who has imported torch and aqua_client."""
    example = docstring_example(name)
    assert example
    names = {"torch": torch, "aqua_client": aqua_client, "AdapterPool": AdapterPool}
    exec(compile(example, name, "exec"), names)  # noqa: S102 - ours
