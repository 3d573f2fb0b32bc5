"""Lines are written a moment later, in order, and none is lost but by a kill."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from aqua_daemon.adapters import log_handler
from aqua_daemon.adapters.log_handler import WRITE_SECONDS, UnhurriedHandler
from aqua_daemon.adapters.log_writer import MOST_WAITING_CHARACTERS, to_descriptor


class Stream(io.StringIO):
    """What was written, and in how many pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.written = threading.Event()

    def write(self, text: str) -> int:
        self.writes += 1
        self.written.set()
        return super().write(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def logger(stream: Stream) -> Iterator[logging.Logger]:
    logger = logging.getLogger("aqua.test.unhurried")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = UnhurriedHandler(stream.write)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_many_lines_are_one_write_a_moment_later(logger: logging.Logger, stream: Stream) -> None:
    """Whoever logs does not wait for the stream."""

    async def log_and_wait() -> None:
        for number in range(20):
            logger.info("line %d", number)
        assert stream.getvalue() == ""
        assert await asyncio.to_thread(stream.written.wait, 500 * WRITE_SECONDS)

    asyncio.run(log_and_wait())
    assert stream.getvalue().splitlines() == [f"line {number}" for number in range(20)]
    assert stream.writes == 1


def test_a_warning_is_written_at_once_and_in_its_place(
    logger: logging.Logger, stream: Stream
) -> None:
    """What somebody may have to act on is there before anything worse can happen."""

    async def log() -> list[str]:
        logger.info("before")
        logger.warning("look")
        return stream.getvalue().splitlines()

    assert asyncio.run(log()) == ["before", "look"]


def test_where_no_loop_runs_nothing_waits(logger: logging.Logger, stream: Stream) -> None:
    """Other threads, and the time before and after serving."""
    logger.info("now")
    assert stream.getvalue() == "now\n"


def test_what_still_waits_is_written_by_a_flush(
    logger: logging.Logger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the interpreter does at its end."""
    monkeypatch.setattr(log_handler, "WRITE_SECONDS", 60.0)  # the loop ends sooner, however slowly

    async def log() -> None:
        logger.info("last words")

    asyncio.run(log())
    assert stream.getvalue() == ""
    logger.handlers[0].flush()
    assert stream.getvalue() == "last words\n"


def test_a_stream_that_fails_takes_no_caller_along(
    logger: logging.Logger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that can't be written is no reason to stop serving."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    stream.close()
    logger.warning("lost")


def test_a_pipe_that_nobody_reads_holds_nobody_up(logger: logging.Logger) -> None:
    """A moment once, then nothing; what is lost is counted, and the story goes on where it is read."""
    reading, writing = os.pipe()
    handler = UnhurriedHandler(to_descriptor(writing))
    logger.handlers = [handler]
    line = "x" * 2**16

    async def log_more_than_fits() -> float:
        began = time.monotonic()
        for _ in range(2 * MOST_WAITING_CHARACTERS // len(line)):
            logger.warning(line)
        return time.monotonic() - began

    try:
        assert asyncio.run(log_more_than_fits()) < 5.0
        with open(reading, "rb", closefd=False) as pipe:
            handed = [pipe.readline() for _ in range(MOST_WAITING_CHARACTERS // len(line) - 1)]
            assert {len(one) for one in handed} == {len(line) + 1}
            logger.warning("here again")
            assert b"lines of the log were lost" in pipe.readline()
            assert pipe.readline() == b"here again\n"
    finally:
        os.close(writing)
        os.close(reading)
