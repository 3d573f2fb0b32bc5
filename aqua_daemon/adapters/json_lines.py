"""Log records as lines of JSON: what each record of the core is on paper.

Covers the form of a line and what its fields hold. Does not cover which lines there are (journal) nor
what a slab's step says (audit).

A grant and its return are thirteen lines, put into words by the loop that grants: so the encoder
walks the values and asks back for what JSON does not have, instead of being handed copies of all.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from typing import NamedTuple, cast

from aqua_daemon.adapters.audit import audited
from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.events import Event
from aqua_daemon.core.instructions import Instruction, NoteMove
from aqua_daemon.core.model import Lease

try:
    import orjson
except ImportError:  # a bare checkout on a machine's own Python: `json` does it, in thrice the time
    HAS_ORJSON = False
else:
    HAS_ORJSON = True
    _OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_NON_STR_KEYS

_LEASE_FIELDS = ("lease_id", "session_id", "tenant", "lender", "nbytes", "safety_class", "state")
_LOGGED_LINES = "lines"

Fields = dict[str, object]


class Line(NamedTuple):
    """What a line is of; put into words when it is written."""

    level: int
    kind: str
    record: Event | Instruction
    error: Exception | None


class LoggedLines(logging.LogRecord):
    """Lines on their way to the handlers, all of them of one moment.

    Made by hand: where in the code they come from is nobody's question, and finding out costs more
    than the lines.
    """

    def __init__(self, name: str, lines: Sequence[Line]) -> None:
        created = time.time()  # noqa: TID251 - for people: when it was
        level = max([line.level for line in lines])
        held = _BLANK.copy()
        held["name"] = name
        held["levelno"], held["levelname"] = level, logging.getLevelName(level)
        held["created"], held["msecs"] = created, created % 1.0 * 1000
        held["msg"] = type(lines[0].record).__name__
        held[_LOGGED_LINES] = lines
        self.__dict__ = held


_BLANK = vars(logging.makeLogRecord({}))  # all that some handler may look for


class JsonLines(logging.Formatter):
    """Every log record as one JSON object on one line."""

    def __init__(self, *, has_priority: bool = False) -> None:
        """*has_priority*: as the systemd journal wants it, which takes the prefix off again."""
        super().__init__()
        self._has_priority = has_priority
        self._second = (0, "")  # the last one, in words

    def format(self, record: logging.LogRecord) -> str:
        """The lines that a journal gave it, if one did, else its message."""
        time_in_words = self._time(record.created)
        lines = record.__dict__.get(_LOGGED_LINES)
        if lines is not None:
            written = [
                self._written(line.level, _fields_of(line, time_in_words, record.name))
                for line in cast("Sequence[Line]", lines)
            ]
            return "\n".join(written)
        found: Fields = {
            "time": time_in_words,
            "level": _level_name(record.levelno),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return self._written(record.levelno, found)

    def _written(self, level: int, fields: Fields) -> str:
        line = _encoded(fields)
        return f"<{_priority(level)}>{line}" if self._has_priority else line

    def _time(self, created: float) -> str:
        # Thousands of lines a second begin alike.
        second = int(created)
        if second != self._second[0]:
            words = time.strftime(self.default_time_format, self.converter(created))
            self._second = (second, words)
        return f"{self._second[1]},{int((created - second) * 1000):03d}"


def _encoded(line: Fields) -> str:
    if not HAS_ORJSON:
        return json.dumps(line, default=_plain)
    try:
        return orjson.dumps(line, _plain, _OPTIONS).decode()
    except orjson.JSONEncodeError:  # half a character of a file's name; a number past 64 bits
        return json.dumps(line, default=_plain)


@cache
def _level_name(level: int) -> str:
    return logging.getLevelName(level).lower()


@cache
def _priority(level: int) -> int:
    """The priority of syslog, which is the journal's: the lower, the graver."""
    at_least = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
    return next((priority for least, priority in at_least if level >= least), 7)


def _fields_of(line: Line, time_in_words: str, logger: str) -> Fields:
    """By name: the record's own, what is audited of a move, and why it was refused."""
    level, kind, record, error = line
    found: Fields = {
        "time": time_in_words,
        "level": _level_name(level),
        "logger": logger,
        kind: type(record).__name__,
    }
    found.update(_named(record))
    if isinstance(record, NoteMove):
        found.update(audited(record))
    if error is not None:
        found["error"] = error
    return found


def _named(record: object) -> Iterable[tuple[str, object]]:
    names, values = _reader(type(record))  # type: ignore[arg-type]  # mypy: of a type it takes its instances' hash
    return zip(names, values(record), strict=True)


@cache
def _reader(kind: type[object]) -> tuple[tuple[str, ...], Callable[[object], tuple[object, ...]]]:
    """The names of a record's fields, and what reads all of them at once."""
    if issubclass(kind, Lease):  # the rest of it is in the lines before
        return _LEASE_FIELDS, attrgetter(*_LEASE_FIELDS)
    names = tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()
    if len(names) > 1:
        return names, attrgetter(*names)
    return names, lambda record: tuple(getattr(record, name) for name in names)


def _plain(value: object) -> object:
    """*value*, which JSON does not have, in what it has, or in what can be asked about again."""
    if is_dataclass(value):
        return dict(_named(value))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseException):
        reason = value.reason if isinstance(value, BrokerError) else "fault"
        return {"type": type(value).__name__, "reason": reason, "message": str(value)}
    if isinstance(value, frozenset):
        return list(cast("frozenset[object]", value))
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    return str(value)
