"""An interrupt at any step of an operation leaves nothing taken, and everything working.

Signal handlers run between two of the interpreter's instructions: where a function is entered and
where one of C's has returned. A profiler sees just these, so it raises at each in its turn.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

import aqua_client
from aqua_client import batches, copying
from aqua_client.pager import Pager
from tests.client.pagers import no_daemon, paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.fakes.streams import FakeStreams
from tests.nodes import wait_until

LIBRARY = str(Path(aqua_client.__file__).parent)
NBYTES = 1000
APART = {"OffloadedTensor.__del__", "Pager.release_later", "Memory.of_grant", "Memory.__init__"}


def interrupted(call: Callable[[], object], *, at: int) -> bool:
    """Whether *call* got as far as its step number *at*, where it was interrupted."""
    steps = itertools.count(1)

    def profiler(frame: FrameType, event: str, _: object) -> None:
        is_ours = frame.f_code.co_filename.startswith(LIBRARY)
        # From a finalizer an exception goes nowhere; what mapping has got hold of is lost with it.
        code = frame.f_code
        is_apart = code.co_qualname in APART or Path(code.co_filename).name in {
            "mapping.py",
            "opening.py",
        }
        if is_ours and not is_apart and event in {"call", "c_return"} and next(steps) == at:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(profiler)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def assert_nothing_taken(pager: Pager) -> None:
    """Neither in slabs nor in host memory, nor is anybody said to be asking the daemon."""
    tiers = pager._tiers

    def is_clean() -> bool:
        with tiers.lock:
            tiers.collect_garbage()
            is_landed = not tiers.flights and not tiers.landing.locked()  # nor is the worker at it
            return is_landed and not any(slab.places for slab in tiers.slabs.values())

    wait_until(is_clean, what="no place is taken")
    with tiers.lock:
        for slab in tiers.slabs.values():
            assert slab.extents.used_bytes == 0
            assert slab.extents.largest_free_bytes == slab.nbytes
        assert (tiers.host.used_bytes, tiers.host.asked_bytes) == (0, 0)
        assert not pager._borrowing._asking
        assert not pager._arriving._opening


NODES = {"peer": two_gpus, "host": no_daemon}


@pytest.mark.parametrize("enqueues", [False, True])
@pytest.mark.parametrize("tier", ["peer", "host"])
@pytest.mark.parametrize("many", [False, True])
def test_an_offload_that_is_interrupted_leaves_nothing_taken(
    tier: str, *, many: bool, enqueues: bool
) -> None:
    """Whatever it was about: finding a place, copying, or making the handle."""
    tensor = random_bytes(NBYTES)
    streams = FakeStreams(is_quick=True) if enqueues else None
    with paging(NODES[tier](), streams=streams) as pager:
        park(pager, tensor)
        for at in itertools.count(1):

            def call() -> object:
                if many:
                    return batches.offload_many(pager, [tensor, tensor], "store")
                return park(pager, tensor)

            was_interrupted = interrupted(call, at=at)
            assert_nothing_taken(pager)
            if not was_interrupted:
                break
        assert at > 10
        handle = park(pager, tensor)
        assert torch.equal(handle.fetch(), tensor)


def test_an_offload_that_is_interrupted_while_it_borrows_lets_others_borrow() -> None:
    """Nobody waits for an answer that nobody awaits any more."""
    tensor = random_bytes(NBYTES)
    for at in itertools.count(1):
        node = FakeNode()
        with paging(node) as pager:
            was_interrupted = interrupted(functools.partial(park, pager, tensor), at=at)
            assert_nothing_taken(pager)
            handle = park(pager, tensor)
            assert handle.tier == "peer"
        if not was_interrupted:
            break
    assert at > 30


def test_an_interrupted_copy_leaves_a_slab_that_can_be_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise its lease would end in quarantine."""
    node = two_gpus()
    kept = random_bytes(MIB)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with paging(node) as pager:
        handle = park(pager, kept)
        with monkeypatch.context() as patch:
            patch.setattr(copying, "write", interrupt)
            with pytest.raises(KeyboardInterrupt):
                park(pager, random_bytes(1000))
        revoked = node.revoke(next(iter(node.leases.values())).gpu)
        wait_acknowledged(node, revoked)
        assert torch.equal(handle.fetch(), kept)


def test_a_fetch_or_release_that_is_interrupted_holds_nothing() -> None:
    """No pin stays, and what was released is free."""
    tensor = random_bytes(NBYTES)
    with paging(two_gpus()) as pager:
        for at in itertools.count(1):
            handle = park(pager, tensor)

            def call(handle: aqua_client.OffloadedTensor = handle) -> None:
                handle.fetch()
                handle.release()

            was_interrupted = interrupted(call, at=at)
            assert all(place.pins == 0 for place in handle._stored.places)
            handle.release()
            del handle
            assert_nothing_taken(pager)
            if not was_interrupted:
                break
        assert at > 10
