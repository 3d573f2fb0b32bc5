"""Ends a keeper whose driver does not come back from a GPU that is lost.

A GPU that falls off the bus can hold a call for ever, and with it the only thread that could say so:
the daemon would believe in slabs that are gone for as long as the process is there. So a thread of
its own ends it. A GPU that is only slow ends nothing, nor does an NVML that hangs as well: there the
slabs may still be whole.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

LOST_SECONDS = 5.0  # a look is due each second, and takes milliseconds
_LOOK_SECONDS = 0.5

_log = logging.getLogger("aqua.keeper")


def end_if_stuck(
    *,
    is_lost: Callable[[], bool],
    looked_at: Callable[[], float],
    end: Callable[[], None] = lambda: os._exit(1),
    seconds: float = LOST_SECONDS,
) -> threading.Event:
    """Watch until the event that is returned is set.

    Args:
        is_lost: whether NVML calls the GPU lost.
        looked_at: when the keeper's own thread was last heard of, by the monotonic clock.
        end: how the process is ended: at once, as nothing else can be relied on.
        seconds: how long it may be silent on a GPU that is lost.
    """
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(min(_LOOK_SECONDS, seconds)):
            silent_seconds = time.monotonic() - looked_at()
            if is_lost() and silent_seconds > seconds:
                _log.error("the driver has held a call for %.0f s on a lost GPU", silent_seconds)
                end()
                return

    threading.Thread(target=watch, name="stuck", daemon=True).start()
    return is_over
