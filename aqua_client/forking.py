"""Keeps forks and gRPC calls apart, and forks and the mapping of slabs: each waits for the other.

When a process forks, gRPC stops its threads and starts them again; a call that is just then on its
way can lose its reply (seen: one in some 200 forks), and costs its deadline. So a fork waits for
the calls that are out, and calls that come meanwhile wait for the fork. Neither waits longer than
`PATIENCE_SECONDS`: a stuck daemon must not hold up forks, and nothing here can deadlock.
A slab is mapped before its pages are left out of children, and its descriptor is open so long: what
a child got of it would outlive its lease.

Does not cover what a child may do: that is `session` and `calls`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# A call takes about a millisecond. One that takes longer may be lost, and then has its deadline.
PATIENCE_SECONDS = 0.05


class ForkGate:
    """Counts the calls that are out and knows who is forking."""

    def __init__(self, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._change = threading.Condition()
        self._calls_out = 0
        self._forking: set[int] = set()  # threads; changed without the lock, each its own entry

    @contextmanager
    def call_out(self) -> Iterator[None]:
        """While a call is out, or a slab is being mapped."""
        with self._change:
            if self._forking:
                self._change.wait_for(lambda: not self._forking, self._patience_seconds)
            self._calls_out += 1
        try:
            yield
        finally:
            with self._change:
                self._calls_out = max(0, self._calls_out - 1)  # 0: in a child that forked in a call
                if self._forking:
                    self._change.notify_all()

    def before_fork(self) -> None:
        """Wait for the calls that are out, and hold back others."""
        self._forking.add(threading.get_ident())
        # A signal handler may fork while its own thread holds the lock: so never for ever.
        if self._change.acquire(timeout=self._patience_seconds):
            try:
                self._change.wait_for(lambda: not self._calls_out, self._patience_seconds)
            finally:
                self._change.release()

    def after_fork_in_parent(self) -> None:
        """Let calls go on."""
        self._forking.discard(threading.get_ident())
        if self._change.acquire(timeout=self._patience_seconds):
            try:
                self._change.notify_all()
            finally:
                self._change.release()

    def after_fork_in_child(self) -> None:
        """Begin afresh: threads that held the lock or were in a call did not come along."""
        self._change = threading.Condition()
        self._calls_out = 0
        self._forking = set()


GATE = ForkGate()

os.register_at_fork(
    before=GATE.before_fork,
    after_in_parent=GATE.after_fork_in_parent,
    after_in_child=GATE.after_fork_in_child,
)
