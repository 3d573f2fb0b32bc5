"""What the conversations read: pieces of a text in the public domain, byte by byte.

`text.txt` begins with lines that name the text and its licence; they are not read.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from aqua_client.demo.plan import Plan


def piece(plan: Plan, *, conversation: int, turn: int) -> list[int]:
    """The tokens that a conversation reads at a turn: the text goes on where it stopped before.

    Conversations begin at places spread over the whole text, which goes round at its end.
    """
    text = whole_text()
    start = conversation * (len(text) // plan.conversations)
    if turn == 0:
        length = plan.prompt_bytes
    else:
        start += plan.prompt_bytes + (turn - 1) * plan.piece_bytes
        length = plan.piece_bytes
    return [text[(start + step) % len(text)] for step in range(length)]


@cache
def whole_text() -> bytes:
    """The text without its notice."""
    lines = files("aqua_client.demo").joinpath("text.txt").read_bytes().splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(b"#"))
