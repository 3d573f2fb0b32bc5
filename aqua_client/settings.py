"""The client's settings: read once from the environment, checked, frozen.

The only module of the client that reads the environment. How much host memory there is stands in
`host_memory`.

| key | default | what |
|---|---|---|
| AQUA_SOCKET | /run/aqua/aqua.sock | the daemon's socket; `.presence` is beside it |
| AQUA_HOME_GPU | none | the GPU that this process borrows for |
| AQUA_TENANT | none | a sub-tenant: divides the tenant's quota, never leaves it |
| AQUA_FALLBACK | host | without room or daemon: use `host` memory, or raise an `error` |
| AQUA_HOST_LIMIT | a quarter of what is there | bytes of host memory that may be used ("4GiB") |
| AQUA_CONNECT_SECONDS | 0.5 | how long start-up waits for the daemon |
| AQUA_CALL_SECONDS | 0.5 | deadline of a call that moves no memory |
| AQUA_ACQUIRE_SECONDS | 2 | deadline of borrowing a slab, which is made and scrubbed meanwhile |
"""

from __future__ import annotations

import enum
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aqua_client.errors import InvalidSetting
from aqua_client.host_memory import default_host_limit_bytes

DEFAULT_SOCKET = "/run/aqua/aqua.sock"
PRESENCE_SUFFIX = ".presence"
CONNECT_SECONDS = 0.5
CALL_SECONDS = 0.5
ACQUIRE_SECONDS = 2.0

# sun_path holds 108 bytes with its closing zero, and the suffix has to fit too.
LONGEST_SOCKET_BYTES = 107 - len(PRESENCE_SUFFIX)
LONGEST_NAME_BYTES = 64  # of a GPU or a sub-tenant
LONGEST_DEADLINE_SECONDS = 60.0  # beyond it a broken daemon would hang the server

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+)\s*([A-Za-z]*)\s*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Fallback(enum.Enum):
    """What to do when no leased memory is to be had."""

    HOST = "host"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Everything that can be set. Make one with `from_environment`, vary it with `replace`."""

    socket_path: str = DEFAULT_SOCKET
    home_gpu: str | None = None
    sub_tenant: str = ""
    fallback: Fallback = Fallback.HOST
    host_limit_bytes: int = 0  # no host memory at all
    connect_seconds: float = CONNECT_SECONDS
    call_seconds: float = CALL_SECONDS
    acquire_seconds: float = ACQUIRE_SECONDS
    close_seconds: float = 0.2  # the promise for the end of a process
    program: str = ""  # for people: shown in status and logs

    def __post_init__(self) -> None:
        """Check what the types can't."""
        if not 0 < len(os.fsencode(self.socket_path)) <= LONGEST_SOCKET_BYTES:
            allowed = f"a path of 1 to {LONGEST_SOCKET_BYTES} bytes"
            raise InvalidSetting.of("AQUA_SOCKET", self.socket_path, allowed)
        _check_name("AQUA_HOME_GPU", self.home_gpu)
        _check_name("AQUA_TENANT", self.sub_tenant or None)
        if self.host_limit_bytes < 0:
            raise InvalidSetting.of("AQUA_HOST_LIMIT", self.host_limit_bytes, "0 or more bytes")
        for key, seconds in (
            ("AQUA_CONNECT_SECONDS", self.connect_seconds),
            ("AQUA_CALL_SECONDS", self.call_seconds),
            ("AQUA_ACQUIRE_SECONDS", self.acquire_seconds),
            ("close_seconds", self.close_seconds),
        ):
            _check_seconds(key, seconds)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> ClientSettings:
        """Read *environ*, the process's own unless given.

        Raises:
            InvalidSetting: names the key, its value and what is allowed.
        """
        chosen = os.environ if environ is None else environ
        host_limit = chosen.get("AQUA_HOST_LIMIT", "")
        return cls(
            socket_path=chosen.get("AQUA_SOCKET") or DEFAULT_SOCKET,
            home_gpu=chosen.get("AQUA_HOME_GPU") or None,
            sub_tenant=chosen.get("AQUA_TENANT", ""),
            fallback=_fallback(chosen.get("AQUA_FALLBACK") or Fallback.HOST.value),
            host_limit_bytes=parse_bytes("AQUA_HOST_LIMIT", host_limit)
            if host_limit
            else default_host_limit_bytes(),
            connect_seconds=_seconds(chosen, "AQUA_CONNECT_SECONDS", CONNECT_SECONDS),
            call_seconds=_seconds(chosen, "AQUA_CALL_SECONDS", CALL_SECONDS),
            acquire_seconds=_seconds(chosen, "AQUA_ACQUIRE_SECONDS", ACQUIRE_SECONDS),
            program=Path(sys.argv[0]).name if sys.argv else "",
        )

    @property
    def presence_path(self) -> str:
        """The socket of identity, keepalives and pushes."""
        return self.socket_path + PRESENCE_SUFFIX


def parse_bytes(key: str, value: str) -> int:
    """A size such as "512MiB", "4 GiB" or "1048576".

    Raises:
        InvalidSetting: it is none.
    """
    match = _SIZE.fullmatch(value)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        allowed = 'a whole number of bytes with B, KiB, MiB, GiB or TiB, such as "4GiB"'
        raise InvalidSetting.of(key, value, allowed)
    return int(match[1]) * unit


def _seconds(environ: Mapping[str, str], key: str, default: float) -> float:
    text = environ.get(key, "")
    if not text:
        return default
    try:
        return float(text)
    except ValueError:
        raise InvalidSetting.of(key, text, "a number of seconds") from None


def _check_seconds(key: str, seconds: float) -> None:
    if not math.isfinite(seconds) or not 0 < seconds <= LONGEST_DEADLINE_SECONDS:
        allowed = f"more than 0 and at most {LONGEST_DEADLINE_SECONDS:g} seconds"
        raise InvalidSetting.of(key, seconds, allowed)


def _check_name(key: str, name: str | None) -> None:
    if name is None:
        return
    if len(name) > LONGEST_NAME_BYTES or not _NAME.fullmatch(name):
        allowed = f"at most {LONGEST_NAME_BYTES} letters, digits, dots, underscores and hyphens"
        raise InvalidSetting.of(key, name, allowed)


def _fallback(value: str) -> Fallback:
    try:
        return Fallback(value)
    except ValueError:
        allowed = " or ".join(one.value for one in Fallback)
        raise InvalidSetting.of("AQUA_FALLBACK", value, allowed) from None
