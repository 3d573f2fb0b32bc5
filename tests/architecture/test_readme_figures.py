"""Figures and settings that the README states are those that the code has."""

from __future__ import annotations

import re

from aqua_client import (
    counters,
    evacuation_buffer,
    informing,
    out_of_memory,
    prefetching,
    reserving,
    settings,
    worker,
)
from aqua_client.informing.margins import Margins
from aqua_client.scheduling import FairSettings
from aqua_daemon.config import DEFAULTS
from aqua_daemon.core import resting, sizes
from aqua_daemon.ctl import status_screen
from aqua_daemon.ctl.quiet_commands import run_command
from tests.nodes import MIB, REPOSITORY

GIB = 1024 * MIB
WORDS = {2: "two", 8: "eight"}
PARTS = {0.1: "tenth", 1 / 3: "third"}
NODE = {key: f"{int(word):,}" for key, word in DEFAULTS.items() if word.isdecimal()}
LLM, MARGINS, FAIR = informing.LlmThresholds(), Margins(), FairSettings()
EARLIER = informing.EARLIER
SETTLE_SECONDS = next(one.default for one in run_command.params if one.name == "settle_seconds")

STATED = (
    f"one empty slab is kept for {worker.WARM_SECONDS:g} s",
    f"others beside it go back after {worker.IDLE_SECONDS:g} s",
    f"{WORDS[evacuation_buffer.LEAST_SLABS]} slabs' worth",
    f"or a {PARTS[1 / evacuation_buffer.SHARE]} of what is stored",
    f"({prefetching.MOST_BYTES / GIB:g} GiB at once at most, not fetched yet)",
    f"fetches of at least {counters.LEAST_TIMED_BYTES // MIB} MiB",
    f"What came back is lent to nobody for {out_of_memory.HOLD_SECONDS:g} s",
    f"until a {PARTS[reserving.WRITABLE_TERMS]} of a term after the daemon was last there",
    f"free for {MARGINS.settle_seconds:g} s in which at most {LLM.offer_pending:g} requests waited",
    f"waited, less {MARGINS.retain_bytes / GIB:g} GiB",
    f"where {MARGINS.least_free_bytes / GIB:g} GiB are free",
    f"all of it as soon as {LLM.reclaim_pending:g} requests wait",
    f"{MARGINS.retain_bytes / GIB:g} GiB again",
    f"once less than {MARGINS.reclaim_spare_bytes / GIB:g} GiB are left",
    f"varied by less than {(EARLIER.margins.most_varied_bytes or 0) // 10**6} MB",
    f"above {int(EARLIER.reclaim_pending)} waiting requests in the mean of {EARLIER.mean_seconds:g} s",
    f"or above {EARLIER.reclaim_rate:g} a second",
    f"enough once less than {EARLIER.margins.reclaim_spare_bytes // MIB} MiB are left",
    f"An offer grows by {MARGINS.band_bytes / GIB:g} GiB or more",
    f"| `order` | `{FAIR.order.name}` |",
    f"| `ageing_tokens_per_second` | {FAIR.ageing_tokens_per_second:g} |",
    f"| `newcomer_share` | {FAIR.newcomer_share:g} |",
    f"| `slice_iterations` | {FAIR.slice_iterations} |",
    f"| `swap_share` | {FAIR.swap_share:g} |",
    f"| `patience_seconds` | {FAIR.patience_seconds:g} |",
    f"Scrape `{DEFAULTS['metrics']}`",
    f"one screen, of {status_screen.ROWS} rows",
    f"leave a GPU alone until Ctrl-C, {sizes.LONGEST_QUIESCE_SECONDS / 60:g} minutes at most",
    f"left alone for {'a minute' if SETTLE_SECONDS == 60 else SETTLE_SECONDS} (`--settle S`)",
    f"{WORDS[sizes.SPARE_ADMIN_SESSIONS]} more than that are opened for admins",
    f"the standard deadlines ({sizes.STANDARD_REVOKE_SECONDS:g} s, or",
    f"{NODE['connections_per_uid']} presence connections a uid",
    f"{NODE['sessions_per_process']} sessions a process",
    f"{NODE['calls_per_process']} calls under way a process and {NODE['calls_per_uid']} a uid",
    f"{NODE['calls_per_second_per_process']} and {NODE['calls_per_second_per_uid']} calls a second",
    f"| `{DEFAULTS['lending']}` (default) |",
    f"what nobody has used for `settle_seconds` ({DEFAULTS['settle_seconds']})",
    f"A {PARTS[sizes.RESERVE_FRACTION]} of each GPU",
    f"of each GPU, {sizes.RESERVE_CEILING_BYTES / GIB:g} GiB at most",
    f"and {sizes.SLAB_GRANULE_BYTES // MIB} MiB at least, is its reserve",
    f"has not changed for `newcomer_seconds` ({DEFAULTS['newcomer_seconds']})",
    f"step by step over `ramp_seconds` ({DEFAULTS['ramp_seconds']})",
    f"every `rebalance_seconds` ({DEFAULTS['rebalance_seconds']})",
    f"never twice within {sizes.REST_SECONDS:g} s",
    f"A GPU or link {sizes.SLOW_FACTOR:g} times slower than the node's median",
    f"A GPU rests `rest_seconds` ({DEFAULTS['rest_seconds']})",
    f"then twice as long each time, {resting.LONGEST_REST_SECONDS / 60:g} minutes at most",
    f"`--handles {DEFAULTS['handles']}` (CUDA IPC)",
    f"ends by its deadline + {sizes.REVOKE_GRACE_SECONDS:g} s",
)


def test_what_is_stated_is_so() -> None:
    """Each statement is made of the code's own value, so a change of either is seen."""
    text = " ".join((REPOSITORY / "README.md").read_text().split())
    assert [statement for statement in STATED if statement not in text] == []


def test_the_clients_variables_are_listed_with_their_defaults() -> None:
    """Every one that is read, and no other."""
    text = (REPOSITORY / "README.md").read_text().split("\n## Settings\n\n")[1]
    rows = [line.split(" | ") for line in text.split("\n\n")[0].splitlines()[2:]]
    listed = {
        name: default
        for names, defaults, *_ in rows
        for name, default in zip(names.strip("| ").split(", "), defaults.split(", "), strict=True)
    }
    source = (REPOSITORY / "aqua_client" / "settings.py").read_text()
    assert set(listed) == {f"`{name}`" for name in re.findall(r'"(AQUA_[A-Z_]+)"', source)}
    defaults = settings.ClientSettings()
    stated = {
        "`AQUA_SOCKET`": f"`{defaults.socket_path}`",
        "`AQUA_HOME_GPU`": str(defaults.home_gpu).lower(),
        "`AQUA_FALLBACK`": f"`{defaults.fallback.value}`",
        "`AQUA_CONNECT_SECONDS`": f"{defaults.connect_seconds:g}",
        "`AQUA_CALL_SECONDS`": f"{defaults.call_seconds:g}",
        "`AQUA_ACQUIRE_SECONDS`": f"{defaults.acquire_seconds:g}",
    }
    assert listed | stated == listed
