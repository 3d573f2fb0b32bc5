"""A GPU's trouble, told when it begins, when it becomes another, and when it is over."""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.core.events import GpuReported, KeeperDetached, KeeperEnded
from aqua_daemon.core.instructions import NoteTrouble
from tests.core.bench import HOME, NEAR, Bench, report


def said(bench: Bench, words: str = "") -> list[str]:
    """What is told after a report with these words."""
    bench.handle(GpuReported(report=replace(report(NEAR), not_lending=words)))
    return told(bench)


def told(bench: Bench) -> list[str]:
    notes = bench.the(NoteTrouble)
    assert {note.gpu for note in notes} <= {NEAR}
    return [note.trouble for note in notes]


def test_a_gpu_that_is_well_from_its_first_word_on_is_no_news() -> None:
    """Not that its keeper had not been heard before."""
    bench = Bench()
    assert told(bench) == []
    assert said(bench) == []


def test_trouble_is_told_once_and_again_when_it_is_over() -> None:
    """However long it lasts and however its seconds pass."""
    bench = Bench()
    assert said(bench, "NVML has not answered for 6 s") == ["NVML has not answered for 6 s"]
    assert said(bench, "NVML has not answered for 17 s") == []
    assert said(bench, "GPU is lost") == ["GPU is lost"]
    assert said(bench) == [""]
    assert said(bench) == []


def test_the_story_of_a_keeper_that_ends_is_told_in_order() -> None:
    """The driver's word, the end, and that the next one finds all well."""
    bench = Bench()
    words = "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"
    assert said(bench, words) == [words]
    bench.handle(KeeperEnded(gpus=(NEAR,)))
    assert told(bench) == [f"its keeper has ended, which had said: {words}"]
    bench.attach(NEAR)
    assert told(bench) == [""]


def test_a_link_that_breaks_is_told_of_every_gpu_behind_it() -> None:
    """And that it is mended."""
    bench = Bench()
    bench.handle(KeeperDetached(gpus=(HOME, NEAR)))
    assert {note.gpu for note in bench.the(NoteTrouble)} == {HOME, NEAR}
    bench.attach(HOME, NEAR)
    assert [note.trouble for note in bench.the(NoteTrouble)] == ["", ""]
