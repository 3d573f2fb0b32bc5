"""Lines that stand in columns, fit a width, and say what was left out.

For screens whose lines must be counted before they are drawn, which tables that wrap do not allow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.text import Text

GAP = "  "
_UUID = re.compile(r"\b(GPU-[0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")


def aligned(rows: Sequence[Sequence[Text | str]], *, left: int = 1) -> list[Text]:
    """One line for each row; the first *left* columns begin at the left, figures end at the right."""
    cells = [[Text(cell) if isinstance(cell, str) else cell.copy() for cell in row] for row in rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*cells, strict=True)]
    for row in cells:
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cell.align("left" if number < left else "right", width)
    return [Text(GAP).join(row) for row in cells]


def cut(lines: list[Text], rows: int, command: str) -> list[Text]:
    """At most *rows* lines; the last one says how many there are more, and what shows them."""
    if len(lines) <= rows:
        return lines
    kept = lines[: max(0, rows - 1)]
    return [*kept, more(len(lines) - len(kept), command)]


def more(count: int, command: str) -> Text:
    """What stands for *count* that are left out."""
    return Text(f"... and {count} more ({command})", style="dim")


def counted(count: int, name: str) -> str:
    """`1 lease`, `2 leases`."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def clipped(text: str, columns: int) -> str:
    """*text* in so many characters, with dots for what is left out."""
    return text if len(text) <= columns else text[: max(0, columns - 1)] + "…"


def short_gpus(text: str) -> str:
    """*text* with the beginning of each GPU's UUID, which tells those of a node apart."""
    return _UUID.sub(r"\1", text)
