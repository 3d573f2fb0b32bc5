"""Descriptors on their way: none is lost, none stays open that nobody takes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from aqua_client.descriptors import ArrivingDescriptors, check_spare
from aqua_client.errors import BrokerUnreachable
from tests.limits import no_more_descriptors


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def make() -> int:
    return os.memfd_create("slab")


def soon() -> float:
    return time.monotonic() + 5.0


def test_the_descriptor_may_come_first() -> None:
    """It waits for its reply."""
    arriving, descriptor = ArrivingDescriptors(), make()
    with arriving.expected() as link:
        arriving.put("a", descriptor)
        assert arriving.take("a", deadline=soon(), link=link) == descriptor
    assert is_open(descriptor)
    os.close(descriptor)


def test_the_reply_may_come_first() -> None:
    """The caller waits for the descriptor."""
    arriving, descriptor = ArrivingDescriptors(), make()
    with arriving.expected() as link:
        thread = threading.Thread(target=arriving.put, args=("a", descriptor))
        thread.start()
        assert arriving.take("a", deadline=soon(), link=link) == descriptor
        thread.join()
    os.close(descriptor)


def test_what_does_not_come_is_not_waited_for_longer() -> None:
    """At the deadline the caller goes on without."""
    arriving = ArrivingDescriptors()
    with arriving.expected() as link:
        assert arriving.take("a", deadline=time.monotonic(), link=link) is None


def test_a_link_that_ends_ends_the_wait() -> None:
    """What was to come by it never will; what is out by the next link goes on waiting."""
    arriving = ArrivingDescriptors()
    with arriving.expected() as before:
        arriving.link_ended()
        assert arriving.take("a", deadline=soon(), link=before) is None
    started = time.monotonic()
    with arriving.expected() as link:
        assert arriving.take("a", deadline=started + 0.05, link=link) is None
    assert time.monotonic() >= started + 0.05


def test_descriptors_that_can_not_be_had_are_known_before() -> None:
    """Nothing stays open by looking."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    check_spare(3)
    with no_more_descriptors(), pytest.raises(BrokerUnreachable) as caught:
        check_spare(1)
    assert caught.value.reason == "no_descriptors"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nobody_waits_so_it_is_closed() -> None:
    """A descriptor that comes too late for its caller must not stay open."""
    arriving, descriptor = ArrivingDescriptors(), make()
    arriving.put("a", descriptor)
    assert not is_open(descriptor)


def test_the_last_acquire_closes_what_is_left() -> None:
    """Whose call failed leaves no descriptor behind."""
    arriving, descriptor = ArrivingDescriptors(), make()
    with arriving.expected():
        with arriving.expected():
            arriving.put("a", descriptor)
        assert is_open(descriptor), "another acquire is still out, and it may be its"
    assert not is_open(descriptor)


def test_each_caller_takes_its_own() -> None:
    """Two acquires, descriptors in either order."""
    arriving, first, second = ArrivingDescriptors(), make(), make()
    with arriving.expected(), arriving.expected() as link:
        arriving.put("b", second)
        arriving.put("a", first)
        assert arriving.take("a", deadline=soon(), link=link) == first
        assert arriving.take("b", deadline=soon(), link=link) == second
    os.close(first)
    os.close(second)


def test_a_repeated_descriptor_replaces_the_first() -> None:
    """A daemon that answers a repeated request sends it again; one of them is enough."""
    arriving, first, second = ArrivingDescriptors(), make(), make()
    with arriving.expected() as link:
        arriving.put("a", first)
        arriving.put("a", second)
        assert not is_open(first)
        assert arriving.take("a", deadline=soon(), link=link) == second
    os.close(second)


def test_a_child_closes_its_copies_without_the_lock() -> None:
    """The lock may be held for ever by a thread that the fork left behind."""
    arriving, descriptor = ArrivingDescriptors(), make()
    with arriving.expected():
        arriving.put("a", descriptor)
        with arriving._change:
            arriving.abandon_in_child()
        assert not is_open(descriptor)
