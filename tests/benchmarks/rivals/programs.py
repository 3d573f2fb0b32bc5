"""Runs the rivals that need packages: in `.bench`, which `make bench` fills.

Covers why one can't be run here, in words. Does not cover what is made of the answers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from tests.nodes import REPOSITORY

PYTHON = REPOSITORY / ".bench" / "bin" / "python"
SECONDS = 120.0
BATCH_ROUNDS = 20
Answer = Mapping[str, Mapping[str, float]]


class NotHere(Exception):
    """A rival can't be run on this machine; the message says why."""


def redis(sizes: Sequence[int], batch: int) -> Answer:
    """The rounds of Redis, one by one and *batch* at a time. Raises NotHere."""
    if shutil.which("redis-server") is None:
        msg = "no `redis-server` here (Debian: apt-get install redis-server)"
        raise NotHere(msg)
    words = [str(one) for one in (BATCH_ROUNDS, batch, *sizes)]
    return _run([str(PYTHON), "-m", "tests.benchmarks.rivals.redis_program", *words])


def ray(small: int, large: int) -> Answer:
    """The rounds of Ray, in a network namespace. Raises NotHere."""
    alone = ["unshare", "--net", "--map-root-user", "--"]
    if shutil.which(alone[0]) is None or subprocess.run([*alone, "true"], check=False).returncode:
        msg = "no network namespace may be made here, and Ray would listen on every address"
        raise NotHere(msg)
    program = [str(PYTHON), "-m", "tests.benchmarks.rivals.ray_program"]
    return _run([*alone, *program, str(small), str(large)])


def _run(words: Sequence[str]) -> Answer:
    if not PYTHON.exists():
        msg = "its environment is not there (`make bench` makes it)"
        raise NotHere(msg)
    try:
        done = subprocess.run(
            words, cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except subprocess.TimeoutExpired as error:
        msg = f"it did not answer in {SECONDS:g} s"
        raise NotHere(msg) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["without a word"])[-1]
        msg = f"it ended with {error.returncode}: {last[:120]}"
        raise NotHere(msg) from error
    found: Answer = json.loads(done.stdout.splitlines()[-1])
    return found
