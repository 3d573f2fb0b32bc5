"""What doctor has found out about a machine: facts only, gathered once. Nothing is judged here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from aqua_protos import broker_pb2

from aqua_daemon.ctl.doctor.nvidia_facts import Nvidia
from aqua_daemon.ctl.doctor.surroundings import Namespaces, NumaNode


class Cgroups(Enum):
    """Which hierarchy tells units and containers apart."""

    UNIFIED = "v2"
    LEGACY = "v1"
    NONE = "none"


class Holder(Enum):
    """Who listens at the address of the metrics."""

    DAEMON = "the daemon"
    ANOTHER = "another program"
    NOBODY = "nobody"
    UNKNOWN = "unknown"  # the daemon took any free port


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """The presence socket, which is the door for everybody."""

    path: str
    is_there: bool = True
    is_socket: bool = True
    mode: int = 0o660
    owner: int = 0
    group: int = 0
    group_name: str = "aqua"
    may_look: bool = True  # False: its directory is closed to the caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who runs doctor."""

    name: str
    uid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """What the daemon said, or why it said nothing."""

    state: broker_pb2.GetStateReply | None
    silence: str = ""  # why there is no state
    pid: int = 0  # 0: nobody listens
    open_files_limit: int | None = None  # None: its limits can't be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One systemd unit."""

    name: str
    load: str  # loaded, not-found, masked, ...
    active: str  # active, inactive, failed, activating, ...
    enabled: str  # enabled, disabled, static, "" for one that is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything that is looked at."""

    kernel: str
    has_peer_pidfd: bool
    shm_total_bytes: int | None  # None: there is no /dev/shm
    shm_free_bytes: int
    memfd_trouble: str  # empty: memory files can be made
    sealing_trouble: str  # empty: and sealed
    hidepid: str  # as /proc is mounted; empty or "0": nothing is hidden
    proc_group: str  # whose members see all the same; empty: nobody
    cgroups: Cgroups
    units: tuple[Unit, ...] | None  # None: systemd does not run here
    socket: Socket
    caller: Caller
    daemon: Daemon
    metrics: str  # the address, as far as it is known
    metrics_holder: Holder
    nvidia: Nvidia
    namespaces: Namespaces
    numa: tuple[NumaNode, ...]
