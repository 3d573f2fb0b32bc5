"""What tests of copies in flight ask: what is taken in slabs, and the worker's next looks."""

from __future__ import annotations

from aqua_client.pager import Pager
from tests.fakes.streams import FakeEvent
from tests.nodes import wait_until


def used_bytes(pager: Pager) -> int:
    """What is taken in slabs."""
    found = pager.stats()["peer_bytes"]
    assert isinstance(found, int)
    return found


def some_looks(event: FakeEvent, *, more: int = 3) -> None:
    """Until the worker has asked the event so often again, and done what it does afterwards."""
    before = len(event.asked_by)
    wait_until(lambda: len(event.asked_by) >= before + more, what="the worker looks")
