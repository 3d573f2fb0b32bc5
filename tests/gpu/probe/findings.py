"""What a step has found so far: each row leaves the process at once, so a crash loses no other.

A row is for the table (short texts); figures are for the record (whatever JSON holds). What a call
before has found is known, and not asked again.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import IO

_WORDS = 160  # of what failed

Json = object  # whatever json.dumps takes


class Findings:
    """Writes one JSON line for each row or set of figures."""

    def __init__(self, stream: IO[str] | None = None, *, known: Collection[str] = ()) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._known = known
        self.failed = 0

    def knows(self, question: str) -> bool:
        """Whether there is a row of it already."""
        return question in self._known

    @contextmanager
    def attempt(self, question: str) -> Iterator[None]:
        """What fails in the block is its answer, and the rest goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, others are to be measured
            traceback.print_exc()
            self.failed += 1
            words = " ".join(f"{type(error).__name__}: {error}".split())
            self.row(question, f"failed: {words[:_WORDS]}")

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
