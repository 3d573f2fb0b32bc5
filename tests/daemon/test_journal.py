"""The log's lines and the last events in words."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from typing import get_args

import pytest

from aqua_daemon.adapters import json_lines
from aqua_daemon.adapters.journal import FanOut, LogJournal, in_words
from aqua_daemon.adapters.json_lines import JsonLines, Line, LoggedLines
from aqua_daemon.core.errors import QuotaExceeded
from aqua_daemon.core.events import (
    Event,
    KeepaliveReceived,
    LossTold,
    ProcessEnded,
    SessionOpened,
    SlabFreed,
    Ticked,
)
from aqua_daemon.core.instructions import Instruction, NoteBrokenInvariant
from aqua_daemon.core.model import LeaseState
from tests.daemon.samples import (
    EVENTS,
    GPU,
    INSTRUCTIONS,
    LEASE_ID,
    REQUESTED,
    SESSION_ID,
    TENANT,
    move,
)


class Log:
    """A logger of the test's own, and what was written to it."""

    def __init__(self, level: int) -> None:
        self._stream = io.StringIO()
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(JsonLines())
        self.logger = logging.getLogger(f"aqua.test.{id(self)}")
        self.logger.setLevel(level)
        self.logger.propagate = False
        self.logger.addHandler(handler)

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def log() -> Log:
    return Log(logging.DEBUG)


@pytest.fixture
def journal(log: Log) -> LogJournal:
    return LogJournal(clock=lambda: 7.0, logger=log.logger)


def test_samples_hold_one_of_every_record() -> None:
    """Whatever is added to events or instructions must be added to the samples."""
    assert {type(event) for event in EVENTS} == set(get_args(Event))
    assert {type(instruction) for instruction in INSTRUCTIONS} == set(get_args(Instruction))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_is_one_line(event: Event, log: Log, journal: LogJournal) -> None:
    """One JSON object that names the event, and no exception whatever the fields are."""
    journal.event(event)
    journal.refused(event, QuotaExceeded("64 MiB of 64 MiB used"))
    happened, refused = log.lines()
    assert happened["event"] == refused["refused"] == type(event).__name__
    assert refused["error"] == {
        "type": "QuotaExceeded",
        "reason": "quota",
        "message": "64 MiB of 64 MiB used",
    }


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda one: type(one).__name__)
def test_every_instruction_is_one_line(
    instruction: Instruction, log: Log, journal: LogJournal
) -> None:
    """So is every instruction."""
    journal.instructed(instruction)
    (line,) = log.lines()
    assert line["instruction"] == type(instruction).__name__


def test_ids_are_fields_of_the_line(log: Log, journal: LogJournal) -> None:
    """The story of one lease is found by its id, with states and sizes as plain values."""
    journal.event(REQUESTED)
    journal.instructed(move(LeaseState.ALLOCATING, LeaseState.LEASED))
    asked, moved = log.lines()
    assert (asked["lease_id"], asked["session_id"]) == (LEASE_ID, SESSION_ID)
    assert asked["safety_class"] == "store"
    assert (moved["before"], moved["after"]) == ("allocating", "leased")
    lease = moved["lease"]
    assert isinstance(lease, dict)
    assert (lease["lease_id"], lease["tenant"], lease["nbytes"]) == (LEASE_ID, TENANT, 4 * 2**20)


def test_routine_is_silent_at_the_usual_level() -> None:
    """Ticks and keepalives would drown the rest; refused ones are said all the same."""
    log = Log(logging.INFO)
    journal = LogJournal(clock=lambda: 7.0, logger=log.logger)
    journal.event(Ticked())
    keepalive = next(event for event in EVENTS if isinstance(event, KeepaliveReceived))
    journal.event(keepalive)
    journal.instructed()
    assert log.lines() == []
    journal.refused(keepalive, QuotaExceeded("no"))
    assert [line["refused"] for line in log.lines()] == ["KeepaliveReceived"]


def test_an_observers_coming_and_going_is_silent_at_the_usual_level() -> None:
    """Whoever looks each second does not fill the log; at debug it is all there."""
    opened = next(one for one in EVENTS if isinstance(one, SessionOpened))
    watching = replace(opened, is_observer=True)
    for level, expected in ((logging.INFO, []), (logging.DEBUG, ["SessionOpened", "ProcessEnded"])):
        log = Log(level)
        journal = LogJournal(clock=lambda: 7.0, logger=log.logger)
        journal.event(watching)
        journal.event(ProcessEnded(session_id=SESSION_ID))
        journal.instructed()
        assert [line["event"] for line in log.lines()] == expected


def test_recent_is_in_words_with_the_clocks_time(journal: LogJournal) -> None:
    """A person reads what moved and why, oldest first."""
    journal.event(Ticked())
    journal.event(LossTold(lease_ids=(LEASE_ID,)))
    journal.instructed(move(LeaseState.ALLOCATING, LeaseState.LEASED))
    journal.instructed(move(LeaseState.RETURNED, LeaseState.FREEING))
    journal.instructed(move(LeaseState.FREEING, None))
    journal.refused(REQUESTED, QuotaExceeded("all used"))
    journal.refused(REQUESTED, ZeroDivisionError("oops"))
    assert [(line.at, line.text) for line in journal.happenings.after(0)] == [
        (7.0, "lease 1a1a1a1a of uid-1000 on SHM-1: allocating -> leased (a test)"),
        (7.0, "lease 1a1a1a1a of uid-1000 on SHM-1: freeing -> gone (a test)"),
        (7.0, "refused LeaseRequested (quota): all used"),
        (7.0, "refused LeaseRequested (fault): oops"),
    ]


def test_what_has_words_is_remembered(log: Log) -> None:
    """Of every kind, and nothing of those that have none."""
    for event in EVENTS:
        journal = LogJournal(clock=lambda: 7.0, logger=log.logger)
        journal.event(event)
        assert [line.text for line in journal.happenings.after(0)] == _words_of(event)
    for instruction in INSTRUCTIONS:
        journal = LogJournal(clock=lambda: 7.0, logger=log.logger)
        journal.instructed(instruction)
        assert [line.text for line in journal.happenings.after(0)] == _words_of(instruction)


def _words_of(record: Event | Instruction) -> list[str]:
    return [words] if (words := in_words(record)) else []


def test_other_log_records_are_lines_too(log: Log) -> None:
    """What any module logs comes out as JSON, with its traceback inside the line."""
    log.logger.info("hello %s", "node")
    try:
        int("inner")
    except ValueError:
        log.logger.exception("failed")
    hello, failed = log.lines()
    assert (hello["message"], hello["level"]) == ("hello node", "info")
    assert failed["message"] == "failed"
    assert "ValueError: invalid literal" in str(failed["exception"])


def test_lines_say_the_same_without_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare checkout on a machine's own Python has only what that has."""
    logs = [Log(logging.DEBUG), Log(logging.DEBUG)]
    for log in logs:
        journal = LogJournal(clock=lambda: 7.0, logger=log.logger)
        for event in EVENTS:
            journal.event(event)
            journal.refused(event, QuotaExceeded("no"))
        for instruction in INSTRUCTIONS:
            journal.instructed(instruction)
        monkeypatch.setattr(json_lines, "HAS_ORJSON", False)
    with_orjson, without = [
        [line | {"time": "", "logger": ""} for line in log.lines()] for log in logs
    ]
    assert with_orjson == without


def test_a_line_holds_what_orjson_refuses() -> None:
    """The bytes of a file's name that is no text, and a number that no machine word holds."""
    freed = SlabFreed(lease_id=LEASE_ID, scrubbed_bytes=2**70)
    message = "half a character: \udc80"
    said = logging.makeLogRecord({"msg": message})  # not logged: pytest's own handlers choke on it
    told = LoggedLines("aqua", [Line(logging.INFO, "event", freed, None)])
    said_line, told_line = (json.loads(JsonLines().format(one)) for one in (said, told))
    assert said_line["message"] == message
    assert told_line["scrubbed_bytes"] == 2**70


def test_a_fan_out_tells_every_journal_the_same(log: Log) -> None:
    """Each journal behind it hears every event, instruction and refusal once."""
    logs = [log, Log(logging.DEBUG)]
    fan_out = FanOut(*(LogJournal(clock=lambda: 1.0, logger=one.logger) for one in logs))
    fan_out.event(REQUESTED)
    fan_out.instructed(INSTRUCTIONS[0])
    fan_out.refused(REQUESTED, QuotaExceeded("no"))
    kinds = [[list(line)[3] for line in one.lines()] for one in logs]
    assert kinds == [["event", "instruction", "refused"]] * 2


def test_a_broken_invariant_is_an_error_under_the_word_that_status_tells_to_look_for(
    log: Log, journal: LogJournal
) -> None:
    """`aquactl status` says `journalctl -g invariant`: that finds the rule, the GPU and the lease."""
    note = NoteBrokenInvariant(rule="sums", message="off by one", gpu=GPU, lease_id=LEASE_ID)
    journal.instructed(note)
    [line] = log.lines()
    assert line["level"] == "error"
    assert "invariant" in str(line["instruction"]).lower()
    assert (line["rule"], line["gpu"], line["lease_id"]) == ("sums", GPU, LEASE_ID)
