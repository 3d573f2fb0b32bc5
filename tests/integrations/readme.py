"""The README's Python, block by block, as somebody would copy it."""

from __future__ import annotations

import re

from tests.nodes import REPOSITORY


def python_blocks(word: str) -> list[str]:
    """Those in which *word* occurs."""
    text = (REPOSITORY / "README.md").read_text()
    blocks: list[str] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block for block in blocks if word in block]
