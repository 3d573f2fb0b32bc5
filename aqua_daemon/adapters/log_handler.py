"""Writes log lines a moment later, many at once, so that no call waits for its own story.

A grant is six lines, and putting one into words and writing it cost as much as deciding it. What is
a warning or worse is written at once, with all that came before it; so is whatever is logged where
no event loop runs. Lines of the last moment are lost if the process is killed, and written if it
ends in any other way.

Where they go may take its time (a disk that is slow, a pipe that nobody reads): that costs a moment
once, and then lines, which are counted and told of when there is room again; never the node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aqua_daemon.adapters.log_writer import LogWriter

WRITE_SECONDS = 0.02
URGENT_SECONDS = 0.05  # that who logs waits for what is to be written at once
LAST_SECONDS = 0.5  # that the end of the process does
_MOST_WAITING = 512  # a few milliseconds of writing


class UnhurriedHandler(logging.Handler):
    """A handler that waits for a quiet moment."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """*write* is called on a thread of the handler's own."""
        super().__init__()
        self._writer = LogWriter(write)
        self._waiting: list[logging.LogRecord] = []
        self._is_to_come = False
        self._lost_lines = 0  # since the last that could be handed over

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record for a moment; called under the handler's lock."""
        self._waiting.append(record)
        loop = _running_loop()
        if record.levelno >= logging.WARNING or loop is None:
            self._hand_over()
            self._writer.wait(URGENT_SECONDS)
        elif len(self._waiting) >= _MOST_WAITING:
            self._hand_over()
        elif not self._is_to_come:
            self._is_to_come = True
            loop.call_later(WRITE_SECONDS, self._write_now)

    def flush(self) -> None:
        """Write what waits."""
        self._hand_over()
        self._writer.wait(LAST_SECONDS)

    def _write_now(self) -> None:
        self._is_to_come = False
        self._hand_over()

    def _hand_over(self) -> None:
        self.acquire()
        try:
            waiting, self._waiting = self._waiting, []
            if waiting:
                self._write(waiting)
        finally:
            self.release()

    def _write(self, records: list[logging.LogRecord]) -> None:
        lines = []
        for record in records:
            try:
                lines.append(self.format(record) + "\n")
            except Exception:  # noqa: BLE001 - as every handler does: logging never raises
                self.handleError(record)
        text = "".join(lines)
        told = self._told_of_lost() if self._lost_lines else ""
        if self._writer.put(told + text):
            self._lost_lines = 0
        else:
            self._lost_lines += text.count("\n")

    def _told_of_lost(self) -> str:
        words = f"{self._lost_lines} lines of the log were lost: nobody took them in time"
        fields = {"name": "aqua.log", "levelno": logging.WARNING, "levelname": "WARNING"}
        return self.format(logging.makeLogRecord({**fields, "msg": words})) + "\n"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
