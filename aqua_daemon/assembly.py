"""Puts the daemon together, runs it, and takes it apart: the only place that knows every part.

Covers the order of starting and stopping, signals, and what is said when the node is ready. Decides
nothing: each part gets the values that it needs, and no part looks for another.

Stopping detaches: clients hear that another daemon comes, the sockets close, and the leases live on
in the keepers. Nothing is revoked, freed or waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grpc import aio

from aqua_daemon import __version__
from aqua_daemon.adapters.admins import admins_of
from aqua_daemon.adapters.broker_calls import BrokerCalls
from aqua_daemon.adapters.call_limits import CallLimits
from aqua_daemon.adapters.client_tally import ClientTally, links_used
from aqua_daemon.adapters.framed_calls import FramedCalls
from aqua_daemon.adapters.grpc_health import Health, make_server
from aqua_daemon.adapters.grpc_servicer import calls_handler
from aqua_daemon.adapters.holders import Holders
from aqua_daemon.adapters.journal import FanOut, LogJournal
from aqua_daemon.adapters.json_lines import JsonLines
from aqua_daemon.adapters.keeper_address import KeeperAddress
from aqua_daemon.adapters.keeper_link import KeeperLinks
from aqua_daemon.adapters.keeper_processes import (
    KeeperProcess,
    cuda_keeper_command,
    listed_gpus,
    shm_keeper_command,
)
from aqua_daemon.adapters.link_file import NAME as LINKS_NAME
from aqua_daemon.adapters.link_file import LinkFile
from aqua_daemon.adapters.log_handler import UnhurriedHandler
from aqua_daemon.adapters.log_writer import to_descriptor
from aqua_daemon.adapters.metrics import MetricsServer, NodeCollector, Reading, on_loop
from aqua_daemon.adapters.presence import PresenceServer
from aqua_daemon.adapters.presence_link import PresenceLimits
from aqua_daemon.adapters.service_manager import ServiceManager
from aqua_daemon.adapters.settings_file import NAME as SETTINGS_NAME
from aqua_daemon.adapters.settings_file import SettingsFile, UnreadableSettings
from aqua_daemon.adapters.sockets import SocketClaim, SocketInUse
from aqua_daemon.adapters.tally import Tally
from aqua_daemon.config import DaemonConfig
from aqua_daemon.config_limits import CountLimits
from aqua_daemon.core.broker import Broker
from aqua_daemon.core.model import BrokerSettings, GpuUuid
from aqua_daemon.core.sizes import RESTART_GRACE_SECONDS, TERM_SECONDS
from aqua_daemon.service import BrokerService

# How long a start waits for keepers before it serves without them: a GPU that is not heard yet is
# one on which nothing is granted, and no reason to keep clients out.
KEEPERS_HEARD_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_MOST_NEW_OBJECTS = 10_000  # until these are looked through; log lines are gone long before
_CALLS_END_SECONDS = 0.3  # what is being answered when a stop comes may still go out

_log = logging.getLogger("aqua")


def serve(config: DaemonConfig) -> int:
    """Serve until told to stop; the exit status, 1 when the node could not be served."""
    _log_to_stderr(is_journal=config.logs_to_journal)
    _allow_many_descriptors()
    try:
        Path(config.socket).parent.mkdir(mode=0o750, exist_ok=True)
        asyncio.run(_serve(config, _lent_gpus(config)))
    except (SocketInUse, UnreadableSettings, OSError) as error:
        sys.stderr.write(f"aqua-daemon: {error}\n")
        return 1
    return 0


def broker_settings(config: DaemonConfig, gpus: tuple[GpuUuid, ...]) -> BrokerSettings:
    """What of the configuration the broker is told; *gpus* are those that it lends."""
    return BrokerSettings(
        gpus=gpus,
        smallest_slab_bytes=config.smallest_slab_bytes,
        largest_slab_bytes=config.largest_slab_bytes,
        host_pool_bytes=config.host_pool_bytes,
        tenant_host_bytes=config.tenant_host_bytes,
        tenant_quota_bytes=config.tenant_quota_bytes,
        tenant_quota_leases=config.limits.tenant_quota_leases,
        tenant_quota_sessions=config.limits.tenant_quota_sessions,
        admin_group=config.admin_group,
        lend_to_own_gpu=config.lend_to_own_gpu,
        lending=config.lending.lending,
        lending_of=config.lending.lending_of,
        settle_seconds=config.lending.settle_seconds,
        newcomer_seconds=config.lending.newcomer_seconds,
        ramp_seconds=config.lending.ramp_seconds,
        rebalance_seconds=config.lending.rebalance_seconds,
        rest_seconds=config.lending.rest_seconds,
        lend_over_pcie=config.lending.lend_over_pcie,
        host_bytes_per_second=config.lending.host_bytes_per_second,
        term_seconds=config.term_seconds,
        restart_grace_seconds=config.term_seconds * RESTART_GRACE_SECONDS / TERM_SECONDS,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """The parts that are started and stopped."""

    service: BrokerService
    presence: PresenceServer
    api: aio.Server
    health: Health
    metrics: MetricsServer


def _lent_gpus(config: DaemonConfig) -> tuple[GpuUuid, ...]:
    if config.shm_gpus:
        return tuple(GpuUuid(f"SHM-{number}") for number in range(config.shm_gpus))
    return tuple(GpuUuid(uuid) for uuid in config.gpus or listed_gpus())


async def _serve(config: DaemonConfig, gpus: tuple[GpuUuid, ...]) -> None:
    manager = ServiceManager(config.notify_socket)
    async with contextlib.AsyncExitStack() as stack:
        stopped = asyncio.create_task(_told_to_stop(_stop_signals()))  # before anything can be seen
        node = _assembled(config, gpus, stack)
        ticking = asyncio.create_task(node.service.run())
        pinging = asyncio.create_task(manager.ping(period_seconds=config.watchdog_seconds))
        node.presence.start()
        await node.api.start()
        heard = asyncio.create_task(_keepers_heard(node.service))
        await _first_of(stopped, ticking, heard)
        if heard.done() and not stopped.done():
            node.health.is_serving = True
            _spare_collector()
            manager.tell("READY=1")
            _say_ready(config, node)
            await _first_of(stopped, ticking)
        manager.tell("STOPPING=1")
        await _detach(node)
        if ticking.done():
            ticking.result()  # it ends by a fault alone: raise it
        for task in (stopped, ticking, pinging, heard):
            task.cancel()


def _assembled(
    config: DaemonConfig, gpus: tuple[GpuUuid, ...], stack: contextlib.AsyncExitStack
) -> _Node:
    """Every part, bound and listening; *stack* closes what needs closing."""
    loop, clock = asyncio.get_running_loop(), time.monotonic
    claim = stack.enter_context(SocketClaim(lock=config.lock, group=config.group))
    settings = broker_settings(config, gpus)
    journal, tally, clients = LogJournal(clock=clock), Tally(), ClientTally()
    settings_file = SettingsFile(config.state_dir / SETTINGS_NAME)
    kept, link_file = settings_file.read(), LinkFile(config.state_dir / LINKS_NAME)
    broker = Broker(
        settings,
        now=clock(),
        quotas=kept.quotas,
        drained=kept.drained,
        links=link_file.read(),
    )
    service = BrokerService(broker, clock=clock, journal=FanOut(journal, tally))
    holders = stack.enter_context(contextlib.closing(Holders(loop, service.submit)))
    keepers = KeeperLinks(
        _keepers(config, gpus),
        submit=service.submit,
        holders=holders,
        daemon_version=__version__,
    )
    stack.push_async_callback(keepers.close)
    presence = PresenceServer(
        claim.listen(config.presence_socket),
        service=service,
        holders=holders,
        keepers=keepers,
        settings=settings,
        clock=clock,
        limits=presence_limits(config.limits),
        admins=admins_of(config.admin_group),
        clients=clients,
    )
    stack.callback(presence.close)
    service.connect(keepers=keepers, sessions=presence)
    clients.on_links = links_used(service.submit)
    calls = BrokerCalls(
        service=service,
        presence=presence,
        keepers=keepers,
        settings=settings,
        happenings=journal.happenings,
        settings_file=settings_file,
        link_file=link_file,
        clock=clock,
        limits=call_limits(config.limits),
    )
    presence.take_calls(FramedCalls(calls).take)
    health = Health()
    api = make_server((calls_handler(calls, presence), health.handler()))
    with claim.binding(config.socket):
        api.add_insecure_port(f"unix:{config.socket}")
    metrics = _metrics_server(config, on_loop(loop, _reader(service, tally, clients)))
    stack.callback(metrics.close)
    keepers.start()
    return _Node(service=service, presence=presence, api=api, health=health, metrics=metrics)


def presence_limits(limits: CountLimits) -> PresenceLimits:
    """What one user, and one process, may have of the presence socket."""
    return PresenceLimits(
        connections_per_uid=limits.connections_per_uid,
        sessions_per_process=limits.sessions_per_process,
    )


def call_limits(limits: CountLimits) -> CallLimits:
    """What they may ask of the API."""
    return CallLimits(
        under_way_per_process=limits.calls_per_process,
        under_way_per_uid=limits.calls_per_uid,
        per_second_per_process=limits.calls_per_second_per_process,
        per_second_per_uid=limits.calls_per_second_per_uid,
    )


def _keepers(config: DaemonConfig, gpus: tuple[GpuUuid, ...]) -> list[KeeperAddress]:
    """One of all shm GPUs, or one of each CUDA GPU."""
    if config.shm_gpus:
        path = Path(config.keeper_socket)
        command = shm_keeper_command(
            gpus=config.shm_gpus, gpu_bytes=config.shm_gpu_bytes, socket_path=path
        )
        return [_keeper(config, gpus, path, command)]
    found = []
    for gpu in gpus:
        path = Path(config.keeper_socket_of(gpu))
        command = cuda_keeper_command(gpu=gpu, handles=config.handles, socket_path=path)
        found.append(_keeper(config, (gpu,), path, command))
    return found


def _keeper(
    config: DaemonConfig, gpus: tuple[GpuUuid, ...], path: Path, command: tuple[str, ...]
) -> KeeperAddress:
    # A file and not our stderr: it outlives whoever reads that, and must never wait for them.
    process = KeeperProcess(command, log_path=Path(f"{path}.log"))
    return KeeperAddress(
        socket_path=path, gpus=gpus, process=process if config.spawns_keepers else None
    )


def _metrics_server(config: DaemonConfig, ask: Callable[[], Reading | None]) -> MetricsServer:
    host, port = config.metrics_host, config.metrics_port
    try:
        return MetricsServer(NodeCollector(ask), host=host, port=port)
    except OSError as error:
        msg = f"metrics can't be served at {host}:{port} ({error}): give another --metrics"
        raise OSError(msg) from error


def _reader(service: BrokerService, tally: Tally, clients: ClientTally) -> Callable[[], Reading]:
    def read() -> Reading:
        return Reading(
            snapshot=service.snapshot(),
            counts=tally.counts(),
            faults=service.faults,
            clients=clients.totals(),
        )

    return read


async def _keepers_heard(service: BrokerService) -> None:
    """Return when every GPU's keeper was heard, or when clients have waited long enough."""
    deadline = time.monotonic() + KEEPERS_HEARD_SECONDS
    while any(gpu.total_bytes == 0 for gpu in service.snapshot().gpus):
        if time.monotonic() > deadline:
            _log.warning("serving although not every keeper was heard; see `aquactl status`")
            return
        await asyncio.sleep(_LOOK_SECONDS)


async def _detach(node: _Node) -> None:
    """Tell everybody that this daemon leaves; the slabs stay where they are."""
    node.health.is_serving = False
    node.presence.announce_restart()
    # Both take their time, and the metrics' thread may ask this loop once more meanwhile.
    await asyncio.gather(node.api.stop(_CALLS_END_SECONDS), asyncio.to_thread(node.metrics.close))


def _stop_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT from now on; later ones change nothing."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, came.set)
    return came


async def _told_to_stop(came: asyncio.Event) -> None:
    await came.wait()
    _log.info("stopping: leases live on in the keepers")


async def _first_of(*tasks: asyncio.Task[None]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _spare_collector() -> None:
    """Have no grant wait while all that the daemon is made of is looked through again."""
    gc.freeze()
    gc.set_threshold(_MOST_NEW_OBJECTS)


def _say_ready(config: DaemonConfig, node: _Node) -> None:
    line = {
        "event": "ready",
        "socket": config.socket,
        "metrics": node.metrics.url,
        "pid": os.getpid(),
    }
    with contextlib.suppress(OSError):  # nobody reads: that is no reason not to serve
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def _log_to_stderr(*, is_journal: bool) -> None:
    handler = UnhurriedHandler(to_descriptor(sys.stderr.fileno()))
    handler.setFormatter(JsonLines(has_priority=is_journal))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # No line says them, and each record would look them up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _allow_many_descriptors() -> None:
    """A session is three descriptors and a slab one: the usual soft limit of 1,024 is soon reached."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
