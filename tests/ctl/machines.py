"""A machine in good health, for doctor to find something wrong with."""

from __future__ import annotations

from aqua_daemon import __version__
from aqua_daemon.ctl.doctor.machine import (
    Caller,
    Cgroups,
    Daemon,
    Holder,
    Machine,
    Socket,
    Unit,
)
from aqua_daemon.ctl.doctor.nvidia_facts import DeviceNode, Gpu, Nvidia, ServiceUser
from aqua_daemon.ctl.doctor.surroundings import Namespaces, NumaNode
from tests.ctl.states import node

GIB = 2**30
SOCKET = Socket(path="/run/aqua/aqua.sock.presence", mode=0o660, owner=990, group=991)
CALLER = Caller(name="alice", uid=1000, groups=frozenset({1000, 991}))
DAEMON = Daemon(state=node(version=__version__), pid=42, open_files_limit=65536)
DOWN = Daemon(state=None, silence="no daemon at /run/aqua/aqua.sock.presence")
DAEMON_UNIT = Unit(name="aqua-daemon.service", load="loaded", active="active", enabled="enabled")
KEEPER_UNIT = Unit(name="aqua-keeper@shm.service", load="loaded", active="active", enabled="static")
GPU = Gpu(uuid="GPU-8f6e0000-aaaa", model="NVIDIA H200", mig=False, ecc=True)
NODES = tuple(DeviceNode(path=f"/dev/{name}") for name in ("nvidia-uvm", "nvidia0", "nvidiactl"))
NVIDIA = Nvidia(
    driver="570.1",
    library="570.1",
    cuda_version=12080,
    bindings="12.8.0",
    nodes=NODES,
    service_user=ServiceUser(name="aqua", uid=990, groups=frozenset({990})),
    gpus=(GPU,),
)
HEALTHY = Machine(
    kernel="6.8.0-40-generic",
    has_peer_pidfd=True,
    shm_total_bytes=64 * GIB,
    shm_free_bytes=60 * GIB,
    memfd_trouble="",
    sealing_trouble="",
    hidepid="",
    proc_group="",
    cgroups=Cgroups.UNIFIED,
    units=(DAEMON_UNIT, KEEPER_UNIT),
    socket=SOCKET,
    caller=CALLER,
    daemon=DAEMON,
    metrics="127.0.0.1:22782",
    metrics_holder=Holder.DAEMON,
    nvidia=NVIDIA,
    namespaces=Namespaces(),
    numa=(NumaNode(number=0, total_bytes=512 * GIB, free_bytes=400 * GIB),),
)
