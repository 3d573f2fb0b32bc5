"""Keeper and client in different namespaces: processes, also of equal numbers; IPC; network."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from tests.gpu.probe.actors import NAMESPACES, Actor, Ended, Refused, Silent
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import Devices, Notes, filled_slab, side_by_side, whose_bytes

OWN_SHM = ("sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh")
CASES: tuple[tuple[str, Sequence[str], Sequence[str]], ...] = (
    ("client in its own PID namespace", (), NAMESPACES),
    ("keeper in its own PID namespace", NAMESPACES, ()),
    ("each in its own, with equal numbers", NAMESPACES, NAMESPACES),
    ("client with its own IPC and /dev/shm", (), ("unshare", "--ipc", "--mount", *OWN_SHM)),
    ("client in its own network namespace", (), ("unshare", "--net")),
)


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    if not _may_unshare():
        findings.row("handles between namespaces", "not run: this user may not make namespaces")
        return

    def ask(kind: str, notes: Notes) -> None:
        for name, keepers, clients in CASES:
            try:
                notes[name] = _between(keepers, clients, kind, plan, where)
            except (Refused, Silent, Ended) as error:
                notes[name] = str(error)

    side_by_side(findings, ask)


def _may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0


def _between(
    keepers: Sequence[str], clients: Sequence[str], kind: str, plan: Plan, where: Devices
) -> str:
    with Actor(within=keepers) as keeper, Actor(within=clients) as client:
        keeper.ask("context", number=where.lender)
        client.ask("context", number=where.borrower)
        slab = filled_slab(keeper, kind=kind, nbytes=plan.slab_bytes)
        ticket = keeper.export(slab, kind=kind, nbytes=plan.slab_bytes)
        numbers = f"pids {keeper.ask('pid').number} and {client.ask('pid').number}"
        try:
            opened = client.open(ticket).number
            return f"opens, {whose_bytes(client, opened, nbytes=plan.slab_bytes)}"
        except (Refused, Silent, Ended) as error:
            equal = keeper.ask("pid").number == client.ask("pid").number
            return f"{error}{' (pids are equal)' if equal else f' ({numbers})'}"
        finally:
            ticket.close()
