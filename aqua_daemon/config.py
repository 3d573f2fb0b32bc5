"""What an operator sets, read once into one frozen object; defaults and limits are visible here.

Covers the values of `aqua-daemon`'s flags, AQUA_SOCKET, and what is worked out from the machine.
Flags win over the environment, the environment over the defaults. Does not cover the flags' form
(cli.py) or the rules' own constants (core/sizes.py). Every source gives the same thing, words by
setting name, so that a file of settings can become one more of them.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aqua_daemon.core.sizes import GIB, MIB, SLAB_GRANULE_BYTES, TERM_SECONDS

DEFAULTS: Mapping[str, str] = {
    "socket": "/run/aqua/aqua.sock",
    "shm_gpus": "0",
    "shm_gpu_bytes": "256MiB",
    "keepers": "spawn",
    # Fixed, so that a node keeps its `instance` label; outside 9100 to 9999, which is all given to
    # known exporters, and below 32768, where the kernel takes ports for outgoing connections.
    "metrics": "127.0.0.1:22782",
    "metrics_any_address": "false",
    "lend_to_own_gpu": "false",
    "group": "",
    "host_pool_bytes": "",  # half of the memory available at start
    "tenant_host_bytes": "",  # all of the host pool
    "tenant_quota_bytes": "",  # all of the GPUs
    "term_seconds": f"{TERM_SECONDS:g}",
}

MOST_SHM_GPUS = 64
SMALLEST_GPU_BYTES = 16 * MIB  # below, the reserve leaves no room for one slab
LARGEST_GPU_BYTES = 4096 * GIB
SMALLEST_TERM_SECONDS, LARGEST_TERM_SECONDS = 0.5, 600.0
# On shm GPUs: small enough that 256 MiB hold several, as the slabs of a real GPU do.
SMALLEST_SLAB_BYTES, LARGEST_SLAB_BYTES = 4 * MIB, 32 * MIB

# sockaddr_un has room for 107 bytes and the end mark; the longest name is the keeper's.
LONGEST_ADDRESS_BYTES = 107
KEEPER_SUFFIX = ".keeper-shm"
PRESENCE_SUFFIX = ".presence"
LOCK_SUFFIX = ".lock"

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": MIB, "GiB": GIB, "TiB": 2**40}
_TRUTHS = {"true": True, "false": False}


class ConfigError(ValueError):
    """A setting is not what it may be: the message names it, its value, and what is allowed."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key} = {str(value)!r}: {allowed}")
        self.key = key


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """Everything that a daemon is told at its start."""

    socket: str
    shm_gpus: int
    shm_gpu_bytes: int
    spawns_keepers: bool
    metrics_host: str
    metrics_port: int  # 0: any free one
    lend_to_own_gpu: bool
    group: str  # empty: the sockets stay with the daemon's own group
    host_pool_bytes: int
    tenant_host_bytes: int
    tenant_quota_bytes: int
    term_seconds: float

    @property
    def presence_socket(self) -> str:
        """Beside the gRPC socket, as clients expect it."""
        return self.socket + PRESENCE_SUFFIX

    @property
    def keeper_socket(self) -> str:
        """Of the one keeper of all shm GPUs."""
        return self.socket + KEEPER_SUFFIX

    @property
    def lock(self) -> str:
        """Held by the daemon that serves these sockets."""
        return self.socket + LOCK_SUFFIX


def read_config(
    given: Mapping[str, str], *, environment: Mapping[str, str] | None = None
) -> DaemonConfig:
    """Check *given* (words by setting name) over the environment over the defaults.

    Raises:
        ConfigError: the first setting that is unknown or out of range.
    """
    for key, value in given.items():
        if key not in DEFAULTS:
            raise ConfigError(key, value, f"no such setting; there are {', '.join(DEFAULTS)}")
    words = {**DEFAULTS, **_from_environment(environment), **given}
    gpus = _whole("shm_gpus", words, 1, MOST_SHM_GPUS)
    gpu_bytes = _bytes("shm_gpu_bytes", words, SMALLEST_GPU_BYTES, LARGEST_GPU_BYTES)
    if gpu_bytes % SLAB_GRANULE_BYTES:
        raise ConfigError("shm_gpu_bytes", words["shm_gpu_bytes"], "give a multiple of 2MiB")
    host, port = _metrics_address(words)
    host_pool = _bytes("host_pool_bytes", words, 0, 2**60, unset=available_bytes() // 2)
    return DaemonConfig(
        socket=checked_socket(words["socket"]),
        shm_gpus=gpus,
        shm_gpu_bytes=gpu_bytes,
        spawns_keepers=_one_of("keepers", words, ("spawn", "external")) == "spawn",
        metrics_host=host,
        metrics_port=port,
        lend_to_own_gpu=_truth("lend_to_own_gpu", words),
        group=words["group"],
        host_pool_bytes=host_pool,
        tenant_host_bytes=_bytes("tenant_host_bytes", words, 0, 2**60, unset=host_pool),
        tenant_quota_bytes=_bytes("tenant_quota_bytes", words, 0, 2**60, unset=gpus * gpu_bytes),
        term_seconds=_seconds("term_seconds", words, SMALLEST_TERM_SECONDS, LARGEST_TERM_SECONDS),
    )


def default_socket(environment: Mapping[str, str] | None = None) -> str:
    """Where the daemon serves when no flag says otherwise."""
    return {**DEFAULTS, **_from_environment(environment)}["socket"]


def checked_socket(path: str, *, key: str = "socket", suffix: str = KEEPER_SUFFIX) -> str:
    """*path*, if it and what is named after it fit into a Unix socket's address.

    Raises:
        ConfigError: it does not, or it is not absolute.
    """
    longest = LONGEST_ADDRESS_BYTES - len(suffix)
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(key, path, "give an absolute path")
    if len(os.fsencode(path)) > longest:
        length = len(os.fsencode(path))
        raise ConfigError(key, path, f"{length} bytes; a Unix socket allows {longest} here")
    return path


def parse_bytes(key: str, text: str, lowest: int, highest: int) -> int:
    """`64MiB`, `1GiB` or a plain number of bytes.

    Raises:
        ConfigError: another form, or outside the range.
    """
    found = re.fullmatch(r"(\d{1,19}) ?([KMGT]iB|B|)", text.strip(), re.ASCII)
    allowed = f"give {format_bytes(lowest)} to {format_bytes(highest)}, such as 64MiB or 1GiB"
    if found is None:
        raise ConfigError(key, text, allowed)
    nbytes = int(found[1]) * _UNITS[found[2]]
    if not lowest <= nbytes <= highest:
        raise ConfigError(key, text, allowed)
    return nbytes


def format_bytes(nbytes: int) -> str:
    """The shortest exact form that `parse_bytes` reads back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if nbytes and nbytes % _UNITS[unit] == 0:
            return f"{nbytes // _UNITS[unit]}{unit}"
    return str(nbytes)


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """What the kernel says could be used now without swapping."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 2**10
    raise ConfigError("host_pool_bytes", "", f"{meminfo} names no MemAvailable: give it as a flag")


def _from_environment(environment: Mapping[str, str] | None) -> dict[str, str]:
    found = (os.environ if environment is None else environment).get("AQUA_SOCKET")
    return {"socket": found} if found else {}


def _metrics_address(words: Mapping[str, str]) -> tuple[str, int]:
    text = words["metrics"]
    host, colon, port_text = text.rpartition(":")
    host = {"localhost": "127.0.0.1"}.get(host, host.removeprefix("[").removesuffix("]"))
    if not colon or not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
        raise ConfigError("metrics", text, "give ADDRESS:PORT, port 0 (any free one) to 65535")
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ConfigError("metrics", text, "give a numeric address, such as 127.0.0.1") from None
    if not is_loopback and not _truth("metrics_any_address", words):
        allowed = "give a loopback address; any other needs --metrics-any-address"
        raise ConfigError("metrics", text, allowed)
    return host, int(port_text)


def _whole(key: str, words: Mapping[str, str], lowest: int, highest: int) -> int:
    text = words[key]
    if not text.isascii() or not text.isdigit() or not lowest <= int(text) <= highest:
        raise ConfigError(key, text, f"give a whole number from {lowest} to {highest}")
    return int(text)


def _bytes(
    key: str, words: Mapping[str, str], lowest: int, highest: int, *, unset: int | None = None
) -> int:
    if not words[key] and unset is not None:
        return unset
    return parse_bytes(key, words[key], lowest, highest)


def _seconds(key: str, words: Mapping[str, str], lowest: float, highest: float) -> float:
    try:
        seconds = float(words[key])
    except ValueError:
        seconds = float("nan")
    if not lowest <= seconds <= highest:
        raise ConfigError(key, words[key], f"give {lowest:g} to {highest:g} seconds")
    return seconds


def _one_of(key: str, words: Mapping[str, str], choices: tuple[str, ...]) -> str:
    if words[key] not in choices:
        raise ConfigError(key, words[key], f"give one of {', '.join(choices)}")
    return words[key]


def _truth(key: str, words: Mapping[str, str]) -> bool:
    return _TRUTHS[_one_of(key, words, tuple(_TRUTHS))]
