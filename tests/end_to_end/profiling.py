"""An engine that measures its GPU as it starts, and takes what others do meanwhile for its own.

    python -m tests.end_to_end.profiling KEEPER_SOCKET GPU STEPS

It does what vLLM does: it notes what is free, and grows in so many steps, 0.1 s each. A line on
stdin begins that, and the next one ends it; lines of JSON say when it has grown, and what it saw.
"""

from __future__ import annotations

import json
import select
import sys

from tests.end_to_end.owning import Pool
from tests.nodes import MIB

CONTEXT_BYTES = 2 * MIB
STEP_BYTES = 2 * MIB
LOOK_SECONDS = 0.01
LOOKS_PER_STEP = 10


def main() -> None:
    keeper_socket, gpu, steps = sys.argv[1:]
    with Pool(keeper_socket, gpu) as pool:
        pool.allocate(CONTEXT_BYTES)
        say(event="up")
        sys.stdin.readline()
        first_bytes = pool.free_bytes()
        say(event="measuring")
        totals, looks = {first_bytes + pool.nbytes}, 0
        while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
            totals.add(pool.free_bytes() + pool.nbytes)
            looks += 1
            step = looks / LOOKS_PER_STEP
            if step.is_integer() and step <= int(steps):
                pool.allocate(STEP_BYTES)
                if step == int(steps):
                    say(event="grown")
        sys.stdin.readline()
        say(first=first_bytes, last=pool.free_bytes(), totals=sorted(totals), looks=looks)
        sys.stdin.readline()


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
