"""What the README and the docstring show of the cache runs as it stands there."""

from __future__ import annotations

import re
import textwrap

import pytest

from aqua_client.integrations.kv_cache import AquaCache
from tests.integrations.readme import python_blocks

pytestmark = [
    pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning"),
    pytest.mark.usefixtures("nobody"),
]


def readme_example() -> str:
    (found,) = python_blocks("AquaCache")
    return found


def docstring_example() -> str:
    (found,) = re.findall(r"(?:^ {8}.*\n|^\n)+", AquaCache.__doc__ or "", re.MULTILINE)[-1:]
    return textwrap.dedent(str(found))


@pytest.mark.parametrize("example", [readme_example(), docstring_example()], ids=["readme", "doc"])
def test_the_example_runs(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As somebody would type it: what is parked is not on the device."""
    exec(compile(example, "example", "exec"), {"__name__": "example"})  # noqa: S102 - ours
    resident, stored = map(int, capsys.readouterr().out.split())
    assert resident == 0
    assert stored > 0
