"""What a step has found so far: each row leaves the process at once, so a crash loses no other.

A row is for the table (short texts); figures are for the record (whatever JSON holds).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import IO

Json = object  # whatever json.dumps takes


class Findings:
    """Writes one JSON line for each row or set of figures."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    def row(self, question: str, answer: str) -> None:
        """An answer that does not depend on the kind of handle."""
        self._say({"row": {"question": question, "answer": answer}})

    def both(self, question: str, answers: Mapping[str, str]) -> None:
        """An answer for each kind of handle."""
        self._say({"row": {"question": question, **answers}})

    def figures(self, name: str, figures: Json) -> None:
        self._say({"figures": {name: figures}})

    def _say(self, document: dict[str, Json]) -> None:
        self._stream.write(json.dumps(document) + "\n")
        self._stream.flush()


def milliseconds(seconds: float) -> str:
    """Three digits that mean something."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def mebibytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB"
