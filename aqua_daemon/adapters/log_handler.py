"""Writes log lines a moment later, many at once, so that no call waits for its own story.

A grant is six lines, and putting one into words and writing it cost as much as deciding it. What is
a warning or worse is written at once, with all that came before it; so is whatever is logged where
no event loop runs. Lines of the last moment are lost if the process is killed, and written if it
ends in any other way.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TextIO

WRITE_SECONDS = 0.02
_MOST_WAITING = 512  # a few milliseconds of writing


class UnhurriedHandler(logging.Handler):
    """A stream handler that waits for a quiet moment."""

    def __init__(self, stream: TextIO) -> None:
        """*stream* stays the caller's."""
        super().__init__()
        self._stream = stream
        self._waiting: list[logging.LogRecord] = []
        self._is_to_come = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record for a moment; called under the handler's lock."""
        self._waiting.append(record)
        is_urgent = record.levelno >= logging.WARNING or len(self._waiting) >= _MOST_WAITING
        loop = _running_loop()
        if is_urgent or loop is None:
            self.flush()
        elif not self._is_to_come:
            self._is_to_come = True
            loop.call_later(WRITE_SECONDS, self._write_now)

    def flush(self) -> None:
        """Write what waits."""
        self.acquire()
        try:
            waiting, self._waiting = self._waiting, []
            if waiting:
                self._write(waiting)
        finally:
            self.release()

    def _write_now(self) -> None:
        self._is_to_come = False
        self.flush()

    def _write(self, records: list[logging.LogRecord]) -> None:
        lines = []
        for record in records:
            try:
                lines.append(self.format(record) + "\n")
            except Exception:  # noqa: BLE001 - as every handler does: logging never raises
                self.handleError(record)
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            self.handleError(records[-1])


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
