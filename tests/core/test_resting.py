"""GPUs whose keepers keep ending: an accident changes nothing, a habit has the GPU rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import GpuReported, KeeperEnded, UndrainRequested
from aqua_daemon.core.instructions import AnswerUndrain, TellLost
from aqua_daemon.core.model import RequestId
from tests.core.bench import HOME, NEAR, SLAB, Bench, report

REST_SECONDS = 30.0
DEAD = "CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error encountered"


def end(bench: Bench) -> None:
    bench.handle(KeeperEnded(gpus=(NEAR,)))


def follow(bench: Bench) -> None:
    bench.attach(NEAR)


def trouble(bench: Bench) -> str:
    return bench.gpu(NEAR).trouble


def after(bench: Bench, seconds: float) -> None:
    bench.now += seconds
    bench.handle(GpuReported(report=report(NEAR)))


def resting_bench() -> Bench:
    return Bench(rest_seconds=REST_SECONDS)


def test_the_first_end_is_an_accident() -> None:
    """The next keeper lends at once."""
    bench = resting_bench()
    session = bench.open()
    end(bench)
    follow(bench)
    assert trouble(bench) == ""
    bench.grant(session)


def test_a_second_end_within_an_hour_has_it_rest_and_it_heals_by_itself() -> None:
    """Refused with the reason and the command; granted when the time is over."""
    bench = resting_bench()
    session = bench.open()
    for _ in range(2):
        end(bench)
        follow(bench)
    assert trouble(bench).startswith("2 of its keepers have ended within an hour")
    assert bench.gpu(NEAR).lendable_bytes == 0
    with pytest.raises(InsufficientMemory, match="aquactl undrain"):
        bench.ask(session)
    after(bench, REST_SECONDS - 1.0)
    assert trouble(bench) != ""
    after(bench, 1.0)
    assert trouble(bench) == ""
    bench.grant(session)


def test_each_further_end_doubles_the_rest_to_ten_minutes_at_most() -> None:
    """However often; an hour without one is a new beginning."""
    bench = resting_bench()
    end(bench)
    for seconds in (30, 60, 120, 240, 480, 600, 600):
        follow(bench)
        end(bench)
        follow(bench)
        assert f"nothing for {seconds} s" in trouble(bench)
    after(bench, 3601.0)
    end(bench)
    follow(bench)
    assert trouble(bench) == ""


def test_a_keeper_that_ends_all_the_time_is_borne() -> None:
    """Each second for an hour, as where something kills it: what it held is lost each time, and said."""
    bench = resting_bench()
    for _ in range(1100):
        end(bench)
        follow(bench)
    assert "nothing for 600 s" in trouble(bench)


def test_an_admin_ends_it_at_once() -> None:
    """By name or with all others; what was forgiven does not count any more."""
    bench = resting_bench()
    admin = bench.open(pid=7, is_admin=True)
    for number, gpus in enumerate(((NEAR,), ())):
        for _ in range(2):
            end(bench)
            follow(bench)
        asked = RequestId(f"undrain-{number}")
        bench.handle(UndrainRequested(session_id=admin, request_id=asked, gpus=gpus))
        assert [answer.gpus for answer in bench.the(AnswerUndrain)] == [(NEAR,)]
        assert trouble(bench) == ""
        end(bench)
        follow(bench)
        assert trouble(bench) == ""
        bench.now += 3601.0


def test_without_a_time_to_rest_none_rests() -> None:
    """0 switches it off."""
    bench = Bench(rest_seconds=0.0)
    for _ in range(5):
        end(bench)
        follow(bench)
    assert trouble(bench) == ""


def test_what_a_keeper_said_before_its_end_is_told_to_whoever_lost() -> None:
    """In status, to the holder of a lost slab, and until the next keeper knows better."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.handle(
        GpuReported(report=replace(report(NEAR, {lease_id: SLAB}), not_lending=DEAD)),
    )
    end(bench)
    [told] = bench.the(TellLost)
    assert told.lease_ids == (lease_id,)
    assert told.reason == f"the keeper of {NEAR} has ended, which had said: {DEAD}"
    assert trouble(bench) == f"its keeper has ended, which had said: {DEAD}"
    follow(bench)
    assert trouble(bench) == ""
    assert bench.gpu(HOME).trouble == ""
