"""Counters: plain ints by name."""

from __future__ import annotations

from dataclasses import fields

import torch

from aqua_client.client import Client
from aqua_client.counters import (
    FETCH_BOUNDS_NANOSECONDS,
    LEAST_TIMED_BYTES,
    TIERS,
    Counters,
    Durations,
)
from tests.client.pagers import paging, park, random_bytes, two_gpus


def test_everything_begins_at_nothing() -> None:
    """A new client has done nothing, and says so of every count; durations and links are no counts."""
    snapshot = Counters().snapshot()
    others = {"fetch_durations", "fetched_from"}
    assert set(snapshot) == {one.name for one in fields(Counters)} - others
    assert all(not value for value in snapshot.values())


def test_reasons_are_counted_apart() -> None:
    """Each reason has its own count."""
    counters = Counters()
    for reason in ("no_room", "breaker", "no_room"):
        counters.count_fallback(reason)
    counters.count_call_failure("timeout")
    assert counters.fallbacks == {"no_room": 2, "breaker": 1}
    assert counters.call_failures == {"timeout": 1}


def test_a_snapshot_does_not_move() -> None:
    """What was shown stays as it was."""
    counters = Counters()
    counters.offloads += 1
    counters.count_fallback("no_room")
    before = counters.snapshot()
    counters.offloads += 1
    counters.count_fallback("no_room")
    assert before["offloads"] == 1
    assert before["fallbacks"] == {"no_room": 1}


def test_a_duration_falls_into_the_first_bucket_that_holds_it() -> None:
    """A bound belongs to its bucket, and what is longer than all goes into the last."""
    durations = Durations()
    for nanoseconds in (1, FETCH_BOUNDS_NANOSECONDS[0], FETCH_BOUNDS_NANOSECONDS[0] + 1, 10**12):
        durations.count(nanoseconds)
    assert durations.counts == [2, 1, *[0] * (len(FETCH_BOUNDS_NANOSECONDS) - 2), 1]
    assert durations.sum_nanoseconds == 200_002 + 10**12


def test_figures_are_a_copy_of_what_the_daemon_is_told() -> None:
    """Bytes by tier, fallbacks, evacuations, durations: as they were at that moment."""
    counters = Counters()
    counters.peer_out_bytes, counters.host_out_bytes = 1, 2
    counters.peer_in_bytes, counters.host_in_bytes = 3, 4
    counters.evacuated_bytes = 5
    counters.promoted_bytes = 6
    counters.count_fallback("no_room")
    counters.fetch_durations["mixed"].count(7)
    figures = counters.figures()
    counters.count_fallback("no_room")
    counters.fetch_durations["mixed"].count(7)
    assert (figures.peer_offload_bytes, figures.host_offload_bytes) == (1, 2)
    assert (figures.peer_fetch_bytes, figures.host_fetch_bytes) == (3, 4)
    assert figures.evacuated_bytes == 5
    assert figures.promoted_bytes == 6
    assert figures.fallbacks == {"no_room": 1}
    assert set(figures.fetch_durations) == set(TIERS)
    assert figures.fetch_durations["mixed"].sum_nanoseconds == 7


def test_every_name_in_stats_is_documented() -> None:
    """Where who calls it looks."""
    with paging(two_gpus()) as pager:
        handle = park(pager, random_bytes(1000))
        stats = pager.stats()
        assert handle.tier == "peer"
    (lease,) = dict(stats["leases"]).values()  # type: ignore[call-overload]
    text = str(Client.stats.__doc__)
    assert [name for name in (*stats, *lease) if f"`{name}`" not in text] == []


def test_a_timed_fetch_from_one_slab_is_counted_for_its_lender() -> None:
    """Not one that is too small to be timed, nor one that was only enqueued, nor one from the host."""
    node = two_gpus()
    with paging(node) as pager:
        handle = park(pager, random_bytes(LEAST_TIMED_BYTES))
        for _ in range(2):
            assert torch.equal(handle.fetch(), random_bytes(LEAST_TIMED_BYTES))
        park(pager, random_bytes(1000)).fetch()
        [(lender, use)] = pager._counters.figures().fetched_from.items()
        [place] = pager.pin(handle._stored)
        assert place.slab is not None
        assert lender == place.slab.lender_gpu
        assert (use.fetches, use.nbytes) == (2, 2 * LEAST_TIMED_BYTES)
        assert use.nanoseconds > 0
        pager.unpin([place], is_read=True, nanoseconds=5, event=Enqueued())
        assert pager._counters.figures().fetched_from[lender].fetches == 2


class Enqueued:
    """A copy that is to be done some time."""

    nanoseconds = nbytes = 0

    def is_done(self) -> bool:
        return True

    def wait_on_current_stream(self) -> None:
        raise AssertionError("nobody fetches after it")

    def wait(self) -> None:
        raise AssertionError("nor here")
