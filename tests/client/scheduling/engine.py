"""An engine without a model: blocks, iterations, and a clock that each iteration moves on.

Carries plans out as a real one would, and holds the scheduler to what every plan promises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aqua_client.scheduling import FairScheduler, FairSettings, Plan, Room, Swap

ITERATION_SECONDS = 0.01


@dataclass(slots=True, kw_only=True)
class Job:
    """What the engine knows of a request."""

    prompt_tokens: int
    reply_tokens: int
    came_at: float
    kv_tokens: int = 0
    held_blocks: int = 0
    done_tokens: int = 0  # of the reply
    sure_of: int = 0  # new tokens, before it may be preempted
    turns: list[float] = field(default_factory=list)  # when it ran

    @property
    def known_tokens(self) -> int:
        return self.prompt_tokens + self.done_tokens


class Engine:
    """One that can lend its memory: `resize`."""

    def __init__(
        self,
        settings: FairSettings,
        *,
        blocks: int,
        tokens: int = 256,
        seats: int = 64,
        reads: int = 10**6,
        swap: Swap | None = None,
        keeps: Callable[[Job], int | None] = lambda _job: None,
    ) -> None:
        self.settings, self.blocks, self.tokens, self.seats = settings, blocks, tokens, seats
        self.reads = reads  # tokens of the cache that one batch can
        self.swap, self._keeps = swap, keeps
        self.scheduler = FairScheduler(settings)
        self.jobs: dict[str, Job] = {}
        self.ended: dict[str, Job] = {}
        self.now = 0.0
        self.preemptions = 0
        self.spare_blocks = blocks  # in the last iteration, before any of it ended
        self.swap_seconds = 0.0  # there and back, of all that were preempted

    def add(self, name: str, prompt: int, reply: int, *, weight: float = 1.0) -> None:
        self.scheduler.add(name, prompt_tokens=prompt, now=self.now, weight=weight)
        self.jobs[name] = Job(prompt_tokens=prompt, reply_tokens=reply, came_at=self.now)

    def cancel(self, name: str) -> None:
        del self.jobs[name]
        self.scheduler.remove(name)

    def resize(self, blocks: int) -> None:
        """The cache has so many from now on; if fewer, nobody is sure of its slice."""
        if blocks < self.blocks:
            for job in self.jobs.values():
                job.sure_of = 0
        self.blocks = blocks

    @property
    def free_blocks(self) -> int:
        return self.blocks - sum(job.held_blocks for job in self.jobs.values())

    def step(self) -> Plan:
        """One iteration, checked."""
        room = Room(
            tokens=self.tokens,
            free_blocks=self.free_blocks,
            requests=self.seats,
            kv_tokens=self.reads,
        )
        plan = self.scheduler.plan(self.now, room, swap=self.swap)
        running = [share.request_id for share in plan.run]
        assert len(set(running)) == len(running) <= self.seats
        assert sum(share.tokens for share in plan.run) <= self.tokens
        assert sum(self.jobs[name].kv_tokens for name in running) <= self.reads
        assert set(plan.resume) <= set(running)
        assert not set(running) & set(plan.preempt)
        self._preempt(plan)
        self._check_order(plan)
        assert not set(running) & set(plan.soon)
        assert all(
            self.jobs[name].kv_tokens and not self.jobs[name].held_blocks for name in plan.soon
        )
        for name in plan.resume:
            job = self.jobs[name]
            assert job.kv_tokens > 0
            assert job.held_blocks == 0
            job.held_blocks = self.settings.blocks(job.kv_tokens)
        for share in plan.run:
            self._run(share.request_id, share.tokens)
        self.spare_blocks = self.free_blocks
        for share in plan.run:
            self._end(share.request_id)
        assert self.free_blocks >= min(0, room.free_blocks), "a plan did not fit"
        self.now += ITERATION_SECONDS
        return plan

    def run(self, *, until: Callable[[], bool] | None = None, most: int = 100_000) -> None:
        """Until *until*, or until all have ended."""
        for _ in range(most):
            if until() if until else not self.jobs:
                return
            self.step()
        message = f"not done after {most} iterations: {self.jobs}"
        raise AssertionError(message)

    def _preempt(self, plan: Plan) -> None:
        for name in plan.preempt:
            job = self.jobs[name]
            assert job.held_blocks, "who holds nothing has nothing to give"
            assert not job.sure_of, "preempted within its slice"
            if self.swap:
                self.swap_seconds += self.swap.seconds(job.kv_tokens, self.settings.block_tokens)
            kept = self._keeps(job)
            job.kv_tokens = job.kv_tokens if kept is None else kept
            job.held_blocks = job.sure_of = 0
            self.scheduler.preempted(name, kept_tokens=kept)
            self.preemptions += 1

    def _check_order(self, plan: Plan) -> None:
        lacking = [
            self.jobs[share.request_id].known_tokens - self.jobs[share.request_id].kv_tokens
            for share in plan.run
        ]
        prefills = [lack > 1 for lack in lacking]
        assert prefills == sorted(prefills), "a prefill before a decode"

    def _run(self, name: str, tokens: int) -> None:
        job = self.jobs[name]
        if not job.held_blocks:
            job.sure_of = self.settings.slice_iterations
            if not job.done_tokens:  # a newcomer: how many wait with it is not known here
                job.sure_of = min(job.sure_of, self.settings.rush_slice_iterations)
        job.kv_tokens += tokens
        job.held_blocks = self.settings.blocks(job.kv_tokens)
        job.turns.append(self.now)
        self.scheduler.ran(name, tokens)
        if job.kv_tokens == job.known_tokens:
            job.done_tokens += 1
            job.sure_of = max(0, job.sure_of - 1)

    def _end(self, name: str) -> None:
        job = self.jobs[name]
        if job.done_tokens == job.reply_tokens:
            self.scheduler.remove(name)
            self.ended[name] = self.jobs.pop(name)
