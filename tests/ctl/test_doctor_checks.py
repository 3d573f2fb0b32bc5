"""Each check of doctor, as a table: what was found, how bad it is, what is said and advised."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from aqua_daemon import __version__
from aqua_daemon.ctl.doctor.findings import Finding, Level, worst
from aqua_daemon.ctl.doctor.machine import Cgroups, Holder
from aqua_daemon.ctl.doctor.report import CHECKS, diagnosed, report, report_document
from tests.ctl.cases import Case, fail, ok, warn
from tests.ctl.gpu_cases import GPU_CASES
from tests.ctl.machines import (
    CALLER,
    DAEMON,
    DAEMON_UNIT,
    DOWN,
    HEALTHY,
    KEEPER_UNIT,
    SOCKET,
)
from tests.ctl.states import gpu, node

MIB = 2**20


HOST = [
    ok("kernel", "6.8.0-40-generic, with SO_PEERPIDFD"),
    warn("kernel", "start time instead", "newer kernel", kernel="6.4.9"),
    warn("kernel", "no SO_PEERPIDFD", "newer kernel", has_peer_pidfd=False),
    warn("kernel", "no version", "uname -r", kernel="unknown"),
    fail("kernel", "5.10 or newer", "newer kernel", kernel="5.4.0-100-generic"),
    ok("shared memory", "60.0 of 64.0 GiB"),
    warn("shared memory", "few stand-in GPUs", "remount,size", shm_free_bytes=512 * MIB),
    fail("shared memory", "0.0 of 64.0 GiB", "remove what is old", shm_free_bytes=MIB),
    fail("shared memory", "not mounted", "mount -t tmpfs", shm_total_bytes=None),
    ok("memory files", "made and sealed"),
    warn("memory files", "could shrink a slab", "F_ADD_SEALS", sealing_trouble="not permitted"),
    fail("memory files", "memfd_create fails: no", "seccomp", memfd_trouble="no"),
    ok("/proc", "can be seen"),
    ok("/proc", "can be seen", hidepid="0"),
    warn("/proc", "only group proc", "usermod -aG proc aqua", hidepid="2", proc_group="proc"),
    fail("/proc", "hidepid=invisible", "hidepid=0", hidepid="invisible"),
    ok("cgroups", "v2"),
    warn("cgroups", "name=systemd", "unified", cgroups=Cgroups.LEGACY),
    fail("cgroups", "can't be told apart", "mount -t cgroup2", cgroups=Cgroups.NONE),
]
SERVICE = [
    ok("systemd", "aqua-daemon.service and 1 keeper units are active"),
    warn("systemd", "does not run here", "other means", units=None),
    warn(
        "systemd",
        "not installed",
        "deploy/",
        units=(replace(DAEMON_UNIT, load="not-found", active="inactive"),),
    ),
    warn("systemd", "not installed", "deploy/", units=()),
    warn(
        "systemd",
        "aqua-keeper@shm.service is not",
        "systemctl start aqua-keeper@shm.service",
        units=(DAEMON_UNIT, replace(KEEPER_UNIT, active="failed")),
    ),
    warn("systemd", "no keeper unit is not", "aqua-keeper@shm", units=(DAEMON_UNIT,)),
    warn(
        "systemd",
        "will not start at boot",
        "systemctl enable",
        units=(replace(DAEMON_UNIT, enabled="disabled"), KEEPER_UNIT),
    ),
    warn(
        "systemd",
        "runs outside its unit",
        "stop that daemon",
        units=(replace(DAEMON_UNIT, active="inactive"), KEEPER_UNIT),
    ),
    fail(
        "systemd",
        "aqua-daemon.service is failed",
        "journalctl",
        units=(replace(DAEMON_UNIT, active="failed"), KEEPER_UNIT),
        daemon=DOWN,
    ),
    fail("systemd", "is masked", "systemctl cat", units=(replace(DAEMON_UNIT, load="masked"),)),
    ok("socket", "aqua.sock.presence, mode 660, group aqua"),
    warn("socket", "open to every user", "chmod o-rwx", socket=replace(SOCKET, mode=0o666)),
    fail("socket", "is not there", "--socket", socket=replace(SOCKET, is_there=False)),
    fail("socket", "is no socket", "move it away", socket=replace(SOCKET, is_socket=False)),
    fail("socket", "directory is closed", "usermod", socket=replace(SOCKET, may_look=False)),
    ok("group", "alice is in group aqua"),
    ok("group", "root may come in as root", caller=replace(CALLER, name="root", uid=0)),
    ok("group", "as owner", caller=replace(CALLER, uid=990, groups=frozenset())),
    warn("group", "not known", "the socket", socket=replace(SOCKET, is_there=False)),
    warn(
        "group",
        "only because everybody may",
        "usermod -aG aqua alice",
        socket=replace(SOCKET, mode=0o666),
        caller=replace(CALLER, groups=frozenset()),
    ),
    fail(
        "group",
        "may not come in",
        "usermod -aG aqua alice, then log in anew",
        caller=replace(CALLER, groups=frozenset({1000})),
    ),
    fail("group", "may not", "usermod", socket=replace(SOCKET, mode=0o600)),
    ok("daemon", f"{__version__} answers, process 42"),
    warn(
        "daemon",
        "9.9 answers",
        "systemctl restart",
        daemon=replace(DAEMON, state=node(version="9.9")),
    ),
    fail("daemon", "no daemon at", "systemctl start", daemon=DOWN),
    fail("daemon", "no answer", "journalctl", daemon=replace(DOWN, pid=42, silence="no answer")),
    ok("open files", "may open 65536"),
    warn(
        "open files",
        "some 1000 sessions",
        "LimitNOFILE",
        daemon=replace(DAEMON, open_files_limit=4000),
    ),
    warn(
        "open files", "can't be read", "the daemon", daemon=replace(DAEMON, open_files_limit=None)
    ),
    fail("open files", "may open 256", "LimitNOFILE", daemon=replace(DAEMON, open_files_limit=256)),
    ok("keepers", "answer for 2 GPUs"),
    warn("keepers", "not known", "the daemon", daemon=DOWN),
    warn(
        "keepers",
        "SHM-1: its owner grows fast",
        "aquactl status",
        daemon=replace(DAEMON, state=node(gpu("SHM-1", warnings=["its owner grows fast"]))),
    ),
    fail(
        "keepers",
        "none answers for SHM-1",
        "aqua-keeper@",
        daemon=replace(DAEMON, state=node(gpu("SHM-0"), gpu("SHM-1", total_bytes=0))),
    ),
    fail(
        "keepers",
        "none answers for SHM-0",
        "aqua-keeper@",
        daemon=replace(DAEMON, state=node(gpu("SHM-0", trouble="its keeper has ended"))),
    ),
    ok("metrics", "served at 127.0.0.1:22782"),
    warn("metrics", "any free port", "fixed --metrics", metrics_holder=Holder.UNKNOWN),
    warn("metrics", "nobody", "the daemon", metrics_holder=Holder.NOBODY, daemon=DOWN),
    fail("metrics", "nobody answers", "journalctl", metrics_holder=Holder.NOBODY),
    fail("metrics", "another program", "sport = :22782", metrics_holder=Holder.ANOTHER),
    ok("node", "434 MiB can be lent now"),
    warn("node", "not known", "the daemon", daemon=DOWN),
    warn(
        "node",
        "below its reserve",
        "--state revoking",
        daemon=replace(DAEMON, state=node(gpu("SHM-1", free_bytes=MIB))),
    ),
    fail(
        "node",
        "lends nothing",
        "journalctl",
        daemon=replace(DAEMON, state=node(gpu("SHM-1", trouble="sick"))),
    ),
]


CASES = (*HOST, *GPU_CASES, *SERVICE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}: {case.says}")
def test_what_is_found_is_judged_and_remedied(case: Case) -> None:
    """The line of the check has the level, the words and the remedy of its row."""
    (finding,) = (found for found in diagnosed(case.machine) if found.check == case.check)
    assert finding.level is case.level
    assert case.says in finding.sentence
    assert case.advises in finding.remedy
    steps = finding.remedy.split("; ")
    assert len(steps) == len({*steps}), "advised twice"
    assert bool(finding.remedy) == (case.level is not Level.OK)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check_has_been_seen_well_doubtful_and_bad(check: object) -> None:
    """No level of any check goes untested; what NVML says of itself can only be bad."""
    assert callable(check)
    cases = [case for case in CASES if any(check(case.machine))]
    levels = {found.level for case in cases for found in check(case.machine)}
    assert levels == set(Level)


def test_a_healthy_machine_is_ok_throughout() -> None:
    """Nothing to say against it, nothing advised."""
    findings = diagnosed(HEALTHY)
    assert worst(findings) is Level.OK
    assert not any(finding.remedy for finding in findings)


def test_the_report_fits_a_terminal_of_80_columns() -> None:
    """Nothing is cut: each sentence and remedy is there, and no line is longer."""
    findings = diagnosed(replace(HEALTHY, daemon=DOWN, cgroups=Cgroups.LEGACY))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(report(findings))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    text = " ".join(" ".join(lines).split())
    assert all(finding.sentence in text and finding.remedy in text for finding in findings)
    assert lines[-1].startswith("FAIL  ")


def test_machines_get_the_same() -> None:
    """The document has the worst level and each finding whole."""
    finding = Finding(check="a", level=Level.WARN, sentence="b", remedy="c")
    assert report_document([finding]) == {
        "schema": 1,
        "level": "warn",
        "findings": [{"check": "a", "level": "warn", "sentence": "b", "remedy": "c"}],
    }
