"""A GPU's owner with a square-wave load: it takes its memory back, uses it, lets it go, and so on.

    aqua-daemon load ... -- python -m tests.end_to_end.wave SOCKET GPU BYTES SECONDS

BYTES are what it uses between waves, as `load` has registered them. After so many seconds it prints
one line of JSON, what each reclaim came to, and ends.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from aqua_client.producing import producer
from aqua_client.settings import ClientSettings
from aqua_daemon.keeper.owner import _KeeperCall

HIGH_SECONDS = 0.7
LOW_SECONDS = 1.3
DEADLINE_SECONDS = 2.0
ALL_BYTES = 2**40  # as much as there is


def main() -> None:
    socket, gpu, low_bytes, seconds = *sys.argv[1:3], int(sys.argv[3]), float(sys.argv[4])
    settings = ClientSettings(socket_path=socket, connect_seconds=10.0, call_seconds=10.0)
    waves: list[dict[str, float]] = []
    pause = threading.Event()
    with (
        producer(gpu, settings=settings) as mine,
        closing(_KeeperCall(Path(f"{socket}.keeper-shm"))) as keeper,
    ):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            mine.lend(ALL_BYTES)
            pause.wait(LOW_SECONDS)
            start = time.monotonic()
            result = mine.reclaim(ALL_BYTES, deadline=DEADLINE_SECONDS)
            took = time.monotonic() - start
            assert result.error is None, result
            has_bytes = keeper.register(gpu, low_bytes + result.freed_bytes)
            waves.append({**asdict(result), "took": took, "grew": has_bytes - low_bytes})
            pause.wait(HIGH_SECONDS)
            keeper.register(gpu, low_bytes)
    print(json.dumps({"waves": waves}), flush=True)


if __name__ == "__main__":
    main()
