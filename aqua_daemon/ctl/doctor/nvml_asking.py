"""Asks NVML through a child process, and never waits for it longer than said.

A child that hangs in the driver may not even be killable: it is killed, and left. The others of a
node's GPUs are asked by another child, which leaves out the one that hangs.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from aqua_daemon.ctl.doctor.nvidia_facts import Gpu, PeerLink

COMMAND = (sys.executable, "-m", "aqua_daemon.ctl.doctor.nvml_child")
# A driver that nothing keeps awake takes a second or two for each GPU before it says a word.
WAKE_SECONDS = 15.0
_READ_BYTES = 65536
_MOST_CHILDREN = 3


@dataclass(slots=True, kw_only=True)
class NvmlWord:
    """What NVML said in time."""

    library: str = ""
    cuda_version: int = 0
    trouble: str = ""
    gpus: dict[int, Gpu] = field(default_factory=dict)  # by NVML's index
    asking: int | None = None  # whom the child asked last


def ask_nvml(*, seconds: float) -> NvmlWord:
    """Ask; a child that says nothing for *seconds* is left, and followed by two at most.

    Its first word it may take `WAKE_SECONDS` for.
    """
    hanging: dict[int, Gpu] = {}
    for _ in range(_MOST_CHILDREN):
        word = NvmlWord()
        has_hung = _ask(word, hanging, seconds)
        word.gpus.update(hanging)
        if not has_hung:
            return word
        if word.asking is None:  # before any GPU: NVML itself hangs
            word.trouble = f"NVML has not answered within {max(seconds, WAKE_SECONDS):g} s"
            return word
        known = word.gpus.get(word.asking)
        hanging[word.asking] = Gpu(
            uuid=f"number {word.asking}" if known is None else known.uuid,
            trouble=f"NVML has not answered within {seconds:g} s for it",
        )
    word.gpus.update(hanging)
    word.trouble = f"NVML hangs on {len(hanging)} GPUs, and not all others were asked"
    return word


def _ask(word: NvmlWord, left_out: Iterable[int], seconds: float) -> bool:
    """One child's words; whether it had to be left before it was done."""
    command = [*COMMAND, *map(str, left_out)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            for line in _lines(child, seconds):
                _take(word, _said(line))
        except TimeoutError:
            child.kill()
            child.returncode = -1  # not waited for: it may hang where no signal gets through
            return True
        words = child.stderr.read().decode(errors="replace") if child.stderr else ""
    if child.returncode and not word.trouble:
        word.trouble = f"NVML can't be asked: {words.strip().rpartition(chr(10))[2]}"
    return False


def _lines(child: subprocess.Popen[bytes], seconds: float) -> Iterator[bytes]:
    """As they come. Raises TimeoutError: nothing came for so long."""
    patience = max(seconds, WAKE_SECONDS)
    assert child.stdout is not None  # noqa: S101 - it was asked for
    rest = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not waiting.select(patience):
                raise TimeoutError
            patience = seconds
            chunk = os.read(child.stdout.fileno(), _READ_BYTES)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines


def _said(line: bytes) -> dict[str, Any]:
    """A word of the child's; nothing for what else is on its stdout, as libraries print there."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _take(word: NvmlWord, said: dict[str, Any]) -> None:
    if "trouble" in said:
        word.trouble = said["trouble"]
    elif "asking" in said:
        word.asking = said["asking"]
    elif "gpu" in said and word.asking is not None:
        word.gpus[word.asking] = Gpu(**said["gpu"])
    elif "links" in said and word.asking is not None:
        links = tuple(PeerLink(**link) for link in said["links"])
        word.gpus[word.asking] = replace(word.gpus[word.asking], links=links)
    elif "library" in said:
        word.library, word.cuda_version = said["library"], said["cuda_version"]
