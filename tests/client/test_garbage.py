"""Garbage collection runs anywhere, also inside the pager's lock: no finalizer may take it."""

from __future__ import annotations

import gc
import threading
import traceback
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from aqua_client import tiers
from aqua_client.pools import BlockPool
from aqua_client.records import SafetyClass
from tests.client.pagers import paging, park, wait_acknowledged
from tests.client.test_stress import BLOCK, GPUS, User
from tests.fakes.session import MIB, FakeNode


def test_garbage_is_collected_inside_the_lock() -> None:
    """A finalizer that took the lock would wait for itself for ever."""
    with paging(FakeNode()) as pager:
        pool = BlockPool(pager, (BLOCK,), torch.uint8, SafetyClass.STORE)
        for parked in (
            park(pager, torch.ones(10)),
            pool.store(torch.ones(2, BLOCK, dtype=torch.uint8), [1]),
        ):
            ring: list[object] = [parked]
            ring.append(ring)
        del ring, parked
        with pager._tiers.lock:
            gc.collect()
            assert len(pager._tiers.garbage) == 2
        assert pager.stats()["releases"] == 2
        assert pager.stats()["peer_bytes"] == 0


class CollectingLock:
    """Collects garbage as soon as it is taken: finalizers run while it is held, every time."""

    would_hang: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as threading's
        if blocking and self._holder == threading.get_ident():
            self.would_hang.append("".join(traceback.format_stack(limit=6)))
            raise RuntimeError("whoever holds the lock waits for it")
        is_taken = self._lock.acquire(blocking, timeout)
        if is_taken:
            self._holder = threading.get_ident()
            gc.collect(0)
        return is_taken

    def locked(self) -> bool:
        return self._lock.locked()

    def release(self) -> None:
        self._holder = 0
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def test_garbage_is_collected_whenever_the_lock_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By each call, by the worker and for a revoke: no finalizer waits for whoever holds it."""
    made = SimpleNamespace(Lock=CollectingLock, Condition=threading.Condition)
    monkeypatch.setattr(tiers, "threading", made)
    monkeypatch.setattr(CollectingLock, "would_hang", [])
    node = FakeNode(gpu_bytes=dict.fromkeys(GPUS[:2], 32 * MIB))
    gc.disable()
    try:
        with paging(node) as pager:
            user = User(pager, 0, threading.Event(), [])
            for number in range(30):
                user.drop_a_ring_of_everything()
                user.step()
                if number % 10 == 5:
                    wait_acknowledged(node, node.revoke(GPUS[number // 10 % 2]))
                    node.gpu_bytes = dict.fromkeys(GPUS[:2], 32 * MIB)
            del user
            gc.collect()
            assert pager.stats()["peer_bytes"] == pager.stats()["host_bytes"] == 0
    finally:
        gc.enable()
    assert CollectingLock.would_hang == []
