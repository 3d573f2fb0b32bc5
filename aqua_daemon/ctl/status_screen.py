"""What `aquactl status` draws: a node on one screen, whatever it is made of.

Covers the places of things, and what is left out where there is no room: a list that is cut says
how much it leaves out and which command shows that. Does not cover what is to be thought of the
node (verdict).
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from aqua_protos import broker_pb2
from rich.text import Text

from aqua_daemon.ctl.aligning import GAP, aligned, clipped, counted, cut, more, short_gpus
from aqua_daemon.ctl.screens import duration
from aqua_daemon.ctl.verdict import Verdict, findings

MIB = 2**20
COLUMNS, ROWS = 160, 24  # where nothing is known of the reader; no terminal is lower
BAR_CELLS, FEWEST_BAR_CELLS = 32, 8
WHOLE_UUID_COLUMNS = 112  # from here on there is room for them
TENANT_CELLS = 40
GPU_COMMAND, TENANT_COMMAND = "aquactl status --json", "aquactl quota get"
# Shape as well as colour: the bar must read without colours. The same signs head the figures.
OWN, LENT, QUARANTINED, FREE = ("█", "blue"), ("▓", "green"), ("▒", "red"), ("░", "dim")
_HEADS = ("TOTAL", f"{OWN[0]}OWN", f"{LENT[0]}LENT", f"{QUARANTINED[0]}QUAR", f"{FREE[0]}FREE")
LEVEL_STYLE = {"ok": "bold green", "warn": "bold yellow", "fail": "bold red"}


def status_screen(
    state: broker_pb2.GetStateReply, *, columns: int = COLUMNS, rows: int = ROWS
) -> Text:
    """The whole node in fewer lines than *rows*, none wider than *columns*."""
    judged, *others = findings(state)
    end = _verdict(judged, columns)
    # The last row is the prompt's, the one above the verdict empty.
    left = max(rows, ROWS) - 2 - len(end)
    head = [_headline(state, columns), *(_models(state.gpus) if rows > ROWS else ())]
    head += cut(_gpus(state, columns), left - len(head) - 8, GPU_COMMAND)
    left -= len(head)
    also = _also(others, columns, left // 2)
    left -= len(also)
    tenants = cut(_tenants(state.tenants), max(3, left // 2), TENANT_COMMAND)
    left -= len(tenants)
    happened = _events(state.events, left)
    left -= len(happened)
    lines = head
    for section in (also, tenants, happened):
        if section and left > 1:  # an empty line, where there is room for one
            lines.append(Text())
            left -= 1
        lines += section
    lines += [Text(), *end]
    for line in lines:
        line.truncate(columns, overflow="ellipsis")
    return Text("\n").join(lines)


def _headline(state: broker_pb2.GetStateReply, columns: int) -> Text:
    """What does not fit is left out whole, what is also seen below first: no figure is ever cut."""
    up, gpus = f"up {duration(state.uptime_seconds)}", counted(len(state.gpus), "GPU")
    host = state.host_reserved_bytes // MIB
    parts = [
        up,
        gpus,
        counted(state.sessions, "session"),
        counted(len(state.leases), "lease"),
        f"host room {host}/{state.host_pool_bytes // MIB} MiB",
    ]
    restarting = ("RESTARTING" + GAP if state.restarting else "", "bold yellow")
    head = Text.assemble(("AQUA ", "bold"), state.version, GAP, restarting)
    for expendable in (gpus, up):
        if head.cell_len + len(GAP.join(parts)) > columns:
            parts.remove(expendable)
    return head.append(GAP.join(parts))


def _gpus(state: broker_pb2.GetStateReply, columns: int) -> list[Text]:
    figures = aligned([(*_HEADS, "LENDABLE"), *map(_figures, state.gpus)], left=0)
    names = [Text("GPU", style="bold"), *(_name(gpu, columns) for gpu in state.gpus)]
    used = max(name.cell_len for name in names) + max(one.cell_len for one in figures)
    cells = min(BAR_CELLS, max(FEWEST_BAR_CELLS, columns - used - 2 * len(GAP)))
    bars = [Text("MIB"), *(_bar(gpu, cells) for gpu in state.gpus)]
    lines = aligned([*zip(names, bars, figures, strict=True)], left=3)
    lines[0].stylize("bold")
    return lines


def _figures(gpu: broker_pb2.GpuState) -> list[str]:
    figures = (
        gpu.total_bytes,
        gpu.used_by_others_bytes,
        gpu.lent_bytes + gpu.returning_bytes,
        gpu.quarantined_bytes,
        gpu.free_bytes,
        gpu.lendable_bytes,
    )
    return [str(figure // MIB) for figure in figures]


def _name(gpu: broker_pb2.GpuState, columns: int) -> Text:
    name = gpu.gpu if columns >= WHOLE_UUID_COLUMNS else short_gpus(gpu.gpu)
    if gpu.trouble:
        return Text(f"{name} !", style="red")
    if gpu.quiet_seconds:
        return Text(f"{name} z")
    return Text(f"{name} -" if gpu.waits_for else name)


def _models(gpus: Iterable[broker_pb2.GpuState]) -> list[Text]:
    models = Counter(gpu.model for gpu in gpus if gpu.model)
    named = ", ".join(f"{count} x {model}" for model, count in models.items())
    return [Text(named, style="dim")] if named else []


def _bar(gpu: broker_pb2.GpuState, cells_left: int) -> Text:
    """Own, lent, quarantined and free in proportion; what is there at all gets a cell."""
    shares = [
        (gpu.used_by_others_bytes, OWN),
        (gpu.lent_bytes + gpu.returning_bytes, LENT),
        (gpu.quarantined_bytes, QUARANTINED),
    ]
    bar, all_cells = Text(), cells_left
    for nbytes, (cell, style) in shares:
        cells = (
            min(cells_left, max(1, round(all_cells * nbytes / gpu.total_bytes))) if nbytes else 0
        )
        bar.append(cell * cells, style=style)
        cells_left -= cells
    return bar.append(FREE[0] * cells_left, style=FREE[1])


def _tenants(tenants: Iterable[broker_pb2.TenantState]) -> list[Text]:
    """Whoever holds most comes first."""
    found = sorted(tenants, key=lambda one: (-one.leased_bytes, one.tenant))
    if not found:
        return []
    rows = [
        (
            clipped(tenant.tenant, TENANT_CELLS),
            str(tenant.sessions),
            str(tenant.leased_bytes // MIB),
            str(tenant.quota_bytes // MIB),
            str(tenant.host_reserved_bytes // MIB),
        )
        for tenant in found
    ]
    lines = aligned([("TENANT", "SESSIONS", "LEASED MIB", "QUOTA MIB", "HOST MIB"), *rows])
    lines[0].stylize("bold")
    return lines


def _events(events: Iterable[broker_pb2.EventLine], rows: int) -> list[Text]:
    """The last ones, newest at the end."""
    shown = list(events)[-(rows - 1) :] if rows > 1 else []
    lines = [Text("LAST EVENTS", style="bold")] if shown else []
    for event in shown:
        ago = (f"{duration(event.seconds_ago):>4} ago  ", "dim")
        lines.append(Text.assemble(ago, short_gpus(event.text)))
    return lines


def _also(others: Sequence[Verdict], columns: int, rows: int) -> list[Text]:
    """What is true besides, without its consequences: a line each, or two where it is narrow."""
    lines: list[Text] = []
    for number, one in enumerate(others):
        level = ("note" if one.level == "ok" else one.level, LEVEL_STYLE[one.level])
        line = Text.assemble(level, GAP, short_gpus(one.sentence.partition(";")[0]))
        command = Text.assemble(GAP, "-> ", (one.next_command, "cyan"))
        is_wide = line.cell_len + command.cell_len > columns
        found = [line, Text(" " * 4) + command] if is_wide else [line + command]
        is_last = number == len(others) - 1
        if len(lines) + len(found) + (not is_last) > rows:
            return [*lines, more(len(others) - number, GPU_COMMAND)]
        lines += found
    return lines


def _verdict(judged: Verdict, columns: int) -> list[Text]:
    level = judged.level.upper()
    wrapped = textwrap.wrap(judged.sentence, columns, initial_indent=f"{level}{GAP}") or [level]
    lines = [Text(line) for line in wrapped[:3]]
    lines[0].stylize(LEVEL_STYLE[judged.level], 0, len(level))
    return [*lines, Text.assemble(("next", "dim"), GAP, judged.next_command)]
