"""What the README and the docstring show of the cache runs as it stands there."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import pytest

from aqua_client import client as client_module
from aqua_client.integrations.kv_cache import AquaCache
from tests.nodes import REPOSITORY, short_directory

pytestmark = pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a daemon, on the process's own client."""
    with short_directory() as directory:
        monkeypatch.setenv("AQUA_SOCKET", str(directory / "aqua.sock"))
        yield
        if client_module._default.client is not None:
            client_module._default.client.close()


def readme_example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (found,) = (block for block in blocks if "AquaCache" in block)
    return str(found)


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
