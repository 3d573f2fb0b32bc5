"""What an operator sets, read once into one frozen object; defaults and limits are visible here.

Covers what each setting may be, its default, and what is worked out from the machine. Every source
gives the same thing, words by setting name. Does not cover the sources (config_sources.py), the
flags' form (cli.py) or the rules' own constants (core/sizes.py).
"""

from __future__ import annotations

import grp
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aqua_daemon.config_lending import LENDING_DEFAULTS, LendingConfig, read_lending
from aqua_daemon.config_limits import LIMIT_DEFAULTS, CountLimits, read_limits
from aqua_daemon.config_words import (
    ConfigError,
    one_of,
    parse_bytes,
    parse_seconds,
    parse_truth,
    parse_whole,
)
from aqua_daemon.core.sizes import GIB, MIB, SLAB_GRANULE_BYTES, TERM_SECONDS

DEFAULTS: Mapping[str, str] = {
    "socket": "/run/aqua/aqua.sock",
    "shm_gpus": "",  # none: the CUDA GPUs
    "shm_gpu_bytes": "256MiB",
    "gpu": "",  # all CUDA GPUs that NVML shows
    "handles": "legacy",
    "keepers": "spawn",
    # Fixed, so that a node keeps its `instance` label; outside 9100 to 9999, which is all given to
    # known exporters, and below 32768, where the kernel takes ports for outgoing connections.
    "metrics": "127.0.0.1:22782",
    "metrics_any_address": "false",
    "lend_to_own_gpu": "false",
    "group": "",
    "admin_group": "",  # none: root and the daemon's user alone
    "host_pool_bytes": "",  # half of the memory available at start
    "tenant_host_bytes": "",  # all of the host pool
    "tenant_quota_bytes": "",  # all of the GPUs
    **LIMIT_DEFAULTS,
    **LENDING_DEFAULTS,
    "term_seconds": f"{TERM_SECONDS:g}",
    "state_dir": "/var/lib/aqua",
}
WORKED_OUT = ("host_pool_bytes", "tenant_host_bytes", "tenant_quota_bytes")  # where left empty

MOST_SHM_GPUS = 64
SMALLEST_GPU_BYTES = 16 * MIB  # below, the reserve leaves no room for one slab
LARGEST_GPU_BYTES = 4096 * GIB
LARGEST_POOL_BYTES = 2**60
SMALLEST_TERM_SECONDS = 0.5  # below, a busy machine can't send three keepalives in time
# On shm GPUs: small enough that 256 MiB hold several, as the slabs of a real GPU do.
SMALLEST_SHM_SLAB_BYTES, LARGEST_SHM_SLAB_BYTES = 4 * MIB, 32 * MIB
SMALLEST_CUDA_SLAB_BYTES, LARGEST_CUDA_SLAB_BYTES = 32 * MIB, 256 * MIB
HANDLES = ("legacy", "vmm")

# sockaddr_un has room for 107 bytes and the end mark; the longest name is a keeper's.
LONGEST_ADDRESS_BYTES = 107
KEEPER_SUFFIX = ".keeper-shm"
CUDA_KEEPER_SUFFIX = ".keeper-GPU-01234567-89ab-cdef-0123-456789abcdef"  # as long as each is
PRESENCE_SUFFIX = ".presence"
LOCK_SUFFIX = ".lock"

_OVERFLOW_GID = Path("/proc/sys/kernel/overflowgid")
_GPU_UUID = re.compile(r"GPU(-[0-9a-f]{8})(-[0-9a-f]{4}){3}(-[0-9a-f]{12})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """Everything that a daemon is told at its start."""

    socket: str
    shm_gpus: int  # 0: the CUDA GPUs are lent
    shm_gpu_bytes: int
    gpus: tuple[str, ...]  # UUIDs of the CUDA GPUs to lend; none named: all there are
    handles: str  # what slabs of CUDA GPUs travel as
    spawns_keepers: bool
    metrics_host: str
    metrics_port: int  # 0: any free one
    lend_to_own_gpu: bool
    group: str  # empty: the sockets stay with the daemon's own group
    admin_group: str  # whose members are admins, too; empty: nobody's
    host_pool_bytes: int
    tenant_host_bytes: int
    tenant_quota_bytes: int
    limits: CountLimits
    lending: LendingConfig
    term_seconds: float
    state_dir: Path  # what admins set is kept there
    notify_socket: str  # the service manager's; empty: there is none
    logs_to_journal: bool  # standard error is the systemd journal's
    watchdog_seconds: float | None  # it restarts a daemon that is silent for so long

    @property
    def presence_socket(self) -> str:
        """Beside the gRPC socket, as clients expect it."""
        return self.socket + PRESENCE_SUFFIX

    @property
    def keeper_socket(self) -> str:
        """Of the one keeper of all shm GPUs."""
        return self.socket + KEEPER_SUFFIX

    def keeper_socket_of(self, gpu: str) -> str:
        """Of the keeper of one CUDA GPU."""
        return f"{self.socket}.keeper-{gpu}"

    @property
    def smallest_slab_bytes(self) -> int:
        """No lease is of less."""
        return SMALLEST_SHM_SLAB_BYTES if self.shm_gpus else SMALLEST_CUDA_SLAB_BYTES

    @property
    def largest_slab_bytes(self) -> int:
        """No lease is of more."""
        return LARGEST_SHM_SLAB_BYTES if self.shm_gpus else LARGEST_CUDA_SLAB_BYTES

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
    environment = os.environ if environment is None else environment
    words = {**DEFAULTS, **_from_environment(environment), **given}
    has_shm = words["shm_gpus"] != ""
    count, gpu_bytes = read_shm_gpus(words["shm_gpus"] or "1", words["shm_gpu_bytes"])
    count = count if has_shm else 0
    host, port = _metrics_address(words)
    quota = count * gpu_bytes if has_shm else LARGEST_POOL_BYTES
    host_pool = _bytes("host_pool_bytes", words, unset=available_bytes() // 2)
    return DaemonConfig(
        socket=checked_socket(
            words["socket"], suffix=KEEPER_SUFFIX if has_shm else CUDA_KEEPER_SUFFIX
        ),
        shm_gpus=count,
        shm_gpu_bytes=gpu_bytes,
        gpus=_named_gpus(words),
        handles=one_of("handles", words, HANDLES),
        spawns_keepers=one_of("keepers", words, ("spawn", "external")) == "spawn",
        metrics_host=host,
        metrics_port=port,
        lend_to_own_gpu=parse_truth("lend_to_own_gpu", words),
        group=_group("group", words),
        admin_group=_admin_group(words),
        host_pool_bytes=host_pool,
        tenant_host_bytes=_bytes("tenant_host_bytes", words, unset=host_pool),
        tenant_quota_bytes=_bytes("tenant_quota_bytes", words, unset=quota),
        limits=read_limits(words),
        lending=read_lending(words),
        term_seconds=parse_seconds("term_seconds", words["term_seconds"], SMALLEST_TERM_SECONDS),
        state_dir=_directory("state_dir", words),
        notify_socket=environment.get("NOTIFY_SOCKET", ""),
        logs_to_journal=_is_journal(environment),
        watchdog_seconds=_watchdog_seconds(environment),
    )


def read_shm_gpus(count: str, each: str | None) -> tuple[int, int]:
    """How many stand-in GPUs, and the bytes of each.

    Raises:
        ConfigError: none, too many, or a size that holds no slab.
    """
    text = DEFAULTS["shm_gpu_bytes"] if each is None else each
    gpus = parse_whole("shm_gpus", count, 1, MOST_SHM_GPUS)
    gpu_bytes = parse_bytes("shm_gpu_bytes", text, SMALLEST_GPU_BYTES, LARGEST_GPU_BYTES)
    if gpu_bytes % SLAB_GRANULE_BYTES:
        raise ConfigError("shm_gpu_bytes", text, "give a multiple of 2MiB")
    return gpus, gpu_bytes


def checked_gpu(uuid: str) -> str:
    """*uuid*, if it is one of a CUDA GPU.

    Raises:
        ConfigError: it is not.
    """
    if _GPU_UUID.fullmatch(uuid) is None:
        allowed = "give a UUID as `nvidia-smi -L` or `aqua-daemon keeper --list` shows it"
        raise ConfigError("gpu", uuid, allowed)
    return uuid


def checked_handles(kind: str | None) -> str:
    """What CUDA memory travels as. Raises ConfigError: no such kind."""
    return one_of("handles", {"handles": DEFAULTS["handles"] if kind is None else kind}, HANDLES)


def default_socket(environment: Mapping[str, str] | None = None) -> str:
    """Where the daemon serves when no flag says otherwise."""
    found = _from_environment(os.environ if environment is None else environment)
    return {**DEFAULTS, **found}["socket"]


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


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """What the kernel says could be used now without swapping."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 2**10
    raise ConfigError("host_pool_bytes", "", f"{meminfo} names no MemAvailable: give it as a flag")


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    found = environment.get("AQUA_SOCKET")
    return {"socket": found} if found else {}


def _named_gpus(words: Mapping[str, str]) -> tuple[str, ...]:
    named = tuple(checked_gpu(uuid) for uuid in words["gpu"].split(",") if uuid)
    if named and words["shm_gpus"]:
        raise ConfigError("gpu", words["gpu"], "give either this or shm_gpus, not both")
    if not named and not words["shm_gpus"] and words["keepers"] == "external":
        allowed = "name each GPU whose keeper runs; only keepers that are spawned can be found"
        raise ConfigError("gpu", "", allowed)
    if len({*named}) < len(named):
        raise ConfigError("gpu", words["gpu"], "name each GPU once")
    return named


def _is_journal(environment: Mapping[str, str]) -> bool:
    # systemd says which file it is: standard error may have been sent elsewhere since.
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    microseconds = environment.get("WATCHDOG_USEC", "")
    meant_for = environment.get("WATCHDOG_PID", str(os.getpid()))
    if meant_for != str(os.getpid()) or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6


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
    if not parse_truth("metrics_any_address", words) and not is_loopback:
        allowed = "give a loopback address; any other needs --metrics-any-address"
        raise ConfigError("metrics", text, allowed)
    return host, int(port_text)


def _bytes(key: str, words: Mapping[str, str], *, unset: int) -> int:
    return parse_bytes(key, words[key], 0, LARGEST_POOL_BYTES) if words[key] else unset


def _group(key: str, words: Mapping[str, str]) -> str:
    name = words[key]
    try:
        return grp.getgrnam(name).gr_name if name else ""
    except KeyError:
        raise ConfigError(key, name, "give the name of a group of this machine") from None


def _admin_group(words: Mapping[str, str]) -> str:
    name = _group("admin_group", words)
    if name and grp.getgrnam(name).gr_gid == int(_OVERFLOW_GID.read_text()):
        allowed = "give another: the kernel also says this one of groups that it can't name here"
        raise ConfigError("admin_group", name, allowed)
    return name


def _directory(key: str, words: Mapping[str, str]) -> Path:
    if not words[key].startswith("/") or "\0" in words[key]:
        raise ConfigError(key, words[key], "give an absolute path")
    return Path(words[key])
