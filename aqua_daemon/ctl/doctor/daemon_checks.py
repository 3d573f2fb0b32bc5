"""Whether a daemon is installed, runs, and can be reached by whoever asks. Pure, as host_checks.

What only a daemon could tell is a warning while it is down: the daemon's own line is the failure.
"""

from __future__ import annotations

from collections.abc import Iterator

from aqua_daemon import __version__
from aqua_daemon.ctl.doctor.findings import Finding, Level, fail, ok, warn
from aqua_daemon.ctl.doctor.machine import Holder, Machine, Unit
from aqua_daemon.ctl.verdict import verdict

DAEMON_UNIT = "aqua-daemon.service"
KEEPER_UNITS = "aqua-keeper@"
FEW_FILES = 8192  # 2,000 sessions; a session is three descriptors and a slab one
TOO_FEW_FILES = 1024
_EVERYBODY = 0o002
_GROUP = 0o020
_START = "systemctl start aqua-daemon"
_LOG = "journalctl -u aqua-daemon -n 50"


def check_daemon(machine: Machine) -> Iterator[Finding]:
    """It answers, and is of this release."""
    state = machine.daemon.state
    if state is None:
        remedy = _LOG if machine.daemon.pid else f"{_START}; if it does not stay up: {_LOG}"
        yield fail("daemon", machine.daemon.silence, remedy)
    elif state.version != __version__:
        yield warn(
            "daemon",
            f"{state.version} answers, this is aquactl {__version__}",
            "systemctl restart aqua-daemon takes the installed release; leases live on",
        )
    else:
        yield ok("daemon", f"{state.version} answers, process {machine.daemon.pid}")


def check_open_files(machine: Machine) -> Iterator[Finding]:
    """A daemon that is out of descriptors lets nobody in."""
    limit = machine.daemon.open_files_limit
    if limit is None:
        yield _unknown("open files", "the daemon's limit can't be read")
    elif limit < TOO_FEW_FILES:
        yield fail("open files", f"the daemon may open {limit}", _raise_limit())
    elif limit < FEW_FILES:
        yield warn(
            "open files", f"the daemon may open {limit}: some {limit // 4} sessions", _raise_limit()
        )
    else:
        yield ok("open files", f"the daemon may open {limit}")


def check_node(machine: Machine) -> Iterator[Finding]:
    """What `aquactl status` would say of the node."""
    if machine.daemon.state is None:
        yield _unknown("node", "not known")
        return
    judged = verdict(machine.daemon.state)
    level = Level[judged.level.upper()]
    remedy = "" if level is Level.OK else judged.next_command
    yield Finding(check="node", level=level, sentence=judged.sentence, remedy=remedy)


def check_keepers(machine: Machine) -> Iterator[Finding]:
    """Every GPU has a keeper that was heard."""
    state = machine.daemon.state
    if state is None:
        yield _unknown("keepers", "not known")
        return
    unheard = [gpu.gpu for gpu in state.gpus if not gpu.total_bytes or "keeper" in gpu.trouble]
    warned = [f"{gpu.gpu}: {gpu.warnings[0]}" for gpu in state.gpus if gpu.warnings]
    if unheard or not state.gpus:
        yield fail(
            "keepers",
            f"none answers for {', '.join(unheard) or 'any GPU'}",
            "systemctl status 'aqua-keeper@*'; journalctl -u 'aqua-keeper@*' -n 50",
        )
    elif warned:
        yield warn("keepers", "; ".join(warned), "aquactl status")
    else:
        yield ok("keepers", f"answer for {len(state.gpus)} GPUs")


def check_metrics(machine: Machine) -> Iterator[Finding]:
    """Prometheus finds the daemon, and nobody else, at its address."""
    is_up = machine.daemon.state is not None
    match machine.metrics_holder:
        case Holder.DAEMON:
            yield ok("metrics", f"served at {machine.metrics}")
        case Holder.UNKNOWN:
            yield warn(
                "metrics",
                "served at any free port, which only the daemon's first line tells",
                "give the daemon a fixed --metrics, so that Prometheus finds it",
            )
        case Holder.NOBODY if not is_up:
            yield _unknown("metrics", f"nobody serves at {machine.metrics}")
        case Holder.NOBODY:
            yield fail("metrics", f"nobody answers at {machine.metrics}", _LOG)
        case Holder.ANOTHER:
            port = machine.metrics.rpartition(":")[2]
            yield fail(
                "metrics",
                f"another program serves at {machine.metrics}",
                f"see whose it is (ss -ltnp sport = :{port}), or give the daemon another --metrics",
            )


def check_socket(machine: Machine) -> Iterator[Finding]:
    """The door is there, and only for its group."""
    socket = machine.socket
    if not socket.may_look:
        yield fail(
            "socket",
            f"{socket.path} can't be seen by {machine.caller.name}: its directory is closed",
            f"join the group of the directory: usermod -aG aqua {machine.caller.name}, log in anew",
        )
    elif not socket.is_there:
        yield fail("socket", f"{socket.path} is not there", f"{_START}, or name it: --socket")
    elif not socket.is_socket:
        yield fail("socket", f"{socket.path} is no socket", "move it away, then " + _START)
    elif socket.mode & _EVERYBODY:
        yield warn(
            "socket",
            f"{socket.path} is open to every user of this machine (mode {socket.mode:o})",
            f"chmod o-rwx {socket.path}, and give tenants the group {socket.group_name}",
        )
    else:
        yield ok("socket", f"{socket.path}, mode {socket.mode:o}, group {socket.group_name}")


def check_group(machine: Machine) -> Iterator[Finding]:
    """Whoever asks may come in."""
    socket, caller = machine.socket, machine.caller
    if not socket.is_there or not socket.may_look:
        yield warn("group", "not known without the socket", "see the line of the socket")
    elif caller.uid in {0, socket.owner}:
        yield ok("group", f"{caller.name} may come in as {'root' if not caller.uid else 'owner'}")
    elif socket.mode & _GROUP and socket.group in caller.groups:
        yield ok("group", f"{caller.name} is in group {socket.group_name}")
    elif socket.mode & _EVERYBODY:
        yield warn(
            "group",
            f"{caller.name} comes in only because everybody may: not in {socket.group_name}",
            f"usermod -aG {socket.group_name} {caller.name}, then log in anew",
        )
    else:
        yield fail(
            "group",
            f"{caller.name} is not in group {socket.group_name} and may not come in",
            f"usermod -aG {socket.group_name} {caller.name}, then log in anew",
        )


def check_units(machine: Machine) -> Iterator[Finding]:
    """The daemon is a service that comes back by itself."""
    if machine.units is None:
        yield warn("systemd", "does not run here", "keep the daemon running by other means")
        return
    units = {unit.name: unit for unit in machine.units}
    daemon = units.get(DAEMON_UNIT)
    if daemon is None or daemon.load == "not-found":
        yield warn("systemd", f"{DAEMON_UNIT} is not installed", "install the units of deploy/")
    elif daemon.load != "loaded":
        yield fail("systemd", f"{DAEMON_UNIT} is {daemon.load}", f"systemctl cat {DAEMON_UNIT}")
    elif daemon.active == "active":
        yield from _running(daemon, machine.units)
    elif machine.daemon.state is not None:
        yield warn(
            "systemd",
            f"a daemon answers, but {DAEMON_UNIT} is {daemon.active}: it runs outside its unit",
            f"stop that daemon, then {_START}",
        )
    else:
        yield fail("systemd", f"{DAEMON_UNIT} is {daemon.active}", f"{_START}; {_LOG}")


def _running(daemon: Unit, units: tuple[Unit, ...]) -> Iterator[Finding]:
    keepers = [unit for unit in units if unit.name.startswith(KEEPER_UNITS)]
    down = [unit.name for unit in keepers if unit.active != "active"]
    if down or not keepers:
        yield warn(
            "systemd",
            f"{DAEMON_UNIT} is active, {', '.join(down) or 'no keeper unit'} is not",
            f"systemctl start {' '.join(down) or 'aqua-keeper@shm'}",
        )
    elif daemon.enabled not in {"enabled", "static"}:
        yield warn(
            "systemd",
            f"{DAEMON_UNIT} is active, but will not start at boot",
            f"systemctl enable {DAEMON_UNIT}",
        )
    else:
        yield ok("systemd", f"{DAEMON_UNIT} and {len(keepers)} keeper units are active")


def _unknown(check: str, sentence: str) -> Finding:
    return warn(check, f"{sentence} while the daemon is down", "see the line of the daemon")


def _raise_limit() -> str:
    return "systemctl edit aqua-daemon: [Service] LimitNOFILE=65536; then restart it"
