"""What the demo reads of a node, and how it chooses what an owner takes back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_client.demo.gauges import gpus_of, read_gpus
from aqua_client.demo.happenings import GpuBytes, Happening, NodeSeen, RevokesServed
from aqua_client.demo.node import metrics_address
from aqua_client.demo.plan import MIB
from aqua_client.demo.watching import Watch, count

PAGE = """\
# HELP aqua_pool_bytes What each GPU's memory is used for.
# TYPE aqua_pool_bytes gauge
aqua_pool_bytes{gpu="SHM-1",state="used_by_others"} 1.048576e+06
aqua_pool_bytes{gpu="SHM-1",state="lent"} 3.3554432e+07
aqua_pool_bytes{gpu="SHM-1",state="free"} 5.0
aqua_pool_bytes{gpu="SHM-0",state="quarantined"} 7.0
aqua_pool_bytes{gpu="SHM-0",state="returning"} 8.0
aqua_leases{state="leased"} 1.0
aqua_lendable_bytes{gpu="SHM-1"} 4.0
"""


def gpu(name: str, *, lent: int = 0, free: int = 0, own: int = 0) -> GpuBytes:
    """A GPU of these, in MiB."""
    return GpuBytes(
        gpu=name, own=own * MIB, lent=lent * MIB, quarantined=0, returning=0, free=free * MIB
    )


def test_metrics_give_each_gpu_in_the_order_of_names() -> None:
    """Counts that a page does not have are 0; other metrics are passed over."""
    first, second = gpus_of(PAGE)
    assert (first.gpu, first.quarantined, first.returning, first.total) == ("SHM-0", 7, 8, 15)
    assert (second.own, second.lent, second.free) == (2**20, 2**25, 5)
    assert (first.lendable, second.lendable) == (0, 4)


def test_nobody_there_is_an_oserror() -> None:
    """The one error that a watch has to expect."""
    with pytest.raises(OSError):  # noqa: PT011 - refused, unreachable or reset: all the same
        read_gpus("127.0.0.1:9")


@pytest.mark.parametrize("metrics", ["127.0.0.1:4711", "http://127.0.0.1:4711/metrics"])
def test_ready_line_gives_the_metrics_address(metrics: str) -> None:
    """As an address or as a URL."""
    line = f'{{"event": "ready", "socket": "/s", "metrics": "{metrics}", "pid": 1}}\n'
    assert metrics_address(line.encode()) == "127.0.0.1:4711"


@pytest.mark.parametrize("line", [b"", b"hello\n", b'{"event": "ended"}\n', b"[1]\n"])
def test_anything_else_is_no_ready_line(line: bytes) -> None:
    """The node then says what the daemon wrote."""
    with pytest.raises(ValueError, match=r"ready|JSON|Expecting"):
        metrics_address(line)


def test_a_watch_waits_until_a_gpu_lends() -> None:
    """And says so when it does not in time."""
    ready = replace(gpu("SHM-1", free=9), lendable=MIB)
    seen = [(gpu("SHM-1", free=9),), (gpu("SHM-1", free=9), gpu("SHM-2")), (ready,)]
    watch = Watch(gauges=lambda: seen.pop(0), stats=dict, tell=lambda _: None)
    assert watch.wait_lendable("SHM-1", seconds=60)
    assert seen == []
    seen.append((ready,))
    assert not watch.wait_lendable("SHM-2", seconds=0)


def test_a_watch_tells_the_node_and_remembers_the_most_that_was_lent() -> None:
    """Also after the leases have gone back."""
    told: list[Happening] = []
    seen = [(gpu("SHM-1", lent=4, free=9),), (gpu("SHM-1", lent=2), gpu("SHM-2", lent=8))]
    watch = Watch(gauges=lambda: seen.pop(0), stats=dict, tell=told.append)
    watch.look()
    watch.look()
    assert watch.lenders == {"SHM-1": 4 * MIB, "SHM-2": 8 * MIB}
    assert all(isinstance(happening, NodeSeen) for happening in told)


def test_a_watch_tells_each_revoke_once() -> None:
    """What is told is what has come since the last look."""
    told: list[Happening] = []
    stats = {"revokes_served": 2, "evacuated_bytes": 100}
    watch = Watch(gauges=tuple, stats=lambda: stats, tell=told.append)
    watch.look()
    watch.look()
    stats["revokes_served"] = 3
    watch.look()
    revokes = [happening for happening in told if isinstance(happening, RevokesServed)]
    assert [(one.revokes, one.evacuated_bytes) for one in revokes] == [(2, 100), (1, 0)]


def test_a_watch_outlives_a_daemon_that_is_away() -> None:
    """It shows what it saw last."""

    def away() -> tuple[GpuBytes, ...]:
        raise ConnectionRefusedError

    watch = Watch(gauges=away, stats=dict, tell=lambda _: None)
    assert watch.look() == ()
    with watch:
        assert watch.look() == ()


def test_a_count_that_is_not_there_is_nothing() -> None:
    """Nor is one that is no number."""
    assert count({"fallbacks": {}}, "fallbacks") == 0
    assert count({}, "revokes_served") == 0
    assert count({"revokes_served": 3}, "revokes_served") == 3
