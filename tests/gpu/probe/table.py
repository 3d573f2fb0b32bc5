"""The answers as a table for a terminal: question, then one answer or one for each kind."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping

from tests.gpu.probe.names import KINDS
from tests.gpu.probe.running import ANSWERED, Record

QUESTION, ANSWER = 46, 34


def lines(records: Mapping[str, Record], questions: Mapping[str, str]) -> Iterator[str]:
    """Every step that has a record, in the order of *questions*."""
    for name, question in questions.items():
        record = records.get(name)
        if record is None:
            continue
        how = "" if record.outcome == ANSWERED else f", {record.outcome}: {record.last_words}"
        quick = ", a rehearsal" if record.quick else ""
        yield ""
        yield f"{name}: {question} ({record.seconds:.0f} s{quick}{how})"
        if any(kind in row for row in record.rows for kind in KINDS):
            yield from _cells([("", QUESTION), *((kind, ANSWER) for kind in KINDS)])
        for row in record.rows:
            yield from _row(row)


def _row(row: Mapping[str, str]) -> Iterator[str]:
    question = (row["question"], QUESTION)
    if "answer" in row:
        yield from _cells([question, (row["answer"], ANSWER * len(KINDS) + 3)])
    else:
        yield from _cells([question, *((row.get(kind, "-"), ANSWER) for kind in KINDS)])


def _cells(cells: Iterable[tuple[str, int]]) -> Iterator[str]:
    columns = [(textwrap.wrap(text, width) or [""], width) for text, width in cells]
    for number in range(max(len(wrapped) for wrapped, _ in columns)):
        parts = [
            (wrapped[number] if number < len(wrapped) else "").ljust(width)
            for wrapped, width in columns
        ]
        yield "  " + " | ".join(parts).rstrip()
