"""Stored tokens on their way into rows, ahead of their use.

A thread of the library's own copies; on CUDA a side stream does, after what the current stream had
been given when it began. What did not begin, or failed, is read by whoever needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import torch

from aqua_client import awaiting
from aqua_client.integrations.kv_cache.rows import Rows
from aqua_client.torch_streams import new_stream

_side_streams: dict[torch.device, torch.cuda.Stream] = {}


class Arrival:
    """Of one layer's tokens."""

    def __init__(self, rows: Rows, read: Callable[[], None], *, only_enqueues: bool) -> None:
        """Begin *read*, which fills *rows*. *only_enqueues*: on CUDA it does not block."""
        self.rows = rows
        self._done: Future[torch.cuda.Event | None] = Future()
        done, device = self._done, rows.device
        copy = _aside(rows, read) if device.type == "cuda" else read

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(copy())
            except BaseException as error:  # noqa: BLE001 - whoever reads meets it again
                done.set_exception(error)

        if device.type == "cuda" and only_enqueues:
            run()
            return
        try:
            awaiting.in_background(run, device=device)
        except RuntimeError:  # the process may have no more threads
            done.cancel()

    def has_come(self) -> bool:
        """Wait for what has begun; whether all of it is there. On CUDA the stream waits."""
        if self._done.cancel() or self._done.exception() is not None:
            return False
        event = self._done.result()
        if event is not None:
            torch.cuda.current_stream(self.rows.device).wait_event(event)
        return True

    def cancel(self) -> None:
        """Nobody needs it. What has begun goes on, into rows that are nobody's."""
        self._done.cancel()


def _aside(rows: Rows, read: Callable[[], None]) -> Callable[[], torch.cuda.Event]:
    device = rows.device
    side = _side_streams.get(device) or _side_streams.setdefault(device, new_stream(device))
    ready = torch.cuda.current_stream(device).record_event()

    def run() -> torch.cuda.Event:
        side.wait_event(ready)  # the rows' memory may have been used until then
        with torch.cuda.stream(side):
            try:
                read()
            finally:
                rows.keys.record_stream(side)
                rows.values.record_stream(side)
            copied: torch.cuda.Event = side.record_event()
            return copied

    return run
