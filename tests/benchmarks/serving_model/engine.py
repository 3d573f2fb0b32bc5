"""The engine: iterations that take time, a cache of blocks, a link that carries what is parked.

An iteration takes 6 ms, 0.03 ms for each request that decodes, and its prompt tokens at 40,000 a
second. With write-through full blocks are copied as they fill, so that a preemption copies the last
block alone; coming back brings all. Of a swap the iteration hides 80 %, but no more than it takes
itself: a link does not carry more than it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aqua_client.scheduling import Room, Swap
from tests.benchmarks.serving_model.arrivals import Arrival
from tests.benchmarks.serving_model.schedulers import Scheduler

GIB = 2**30
READER_SECONDS = 0.1  # for a token: ten a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """An 8B-shaped model on one GPU, coarsely."""

    kv_bytes: int = 4 * GIB
    bytes_per_token: int = 128 * 2**10
    block_tokens: int = 16
    batch_tokens: int = 2048
    iteration_seconds: float = 0.006
    decode_seconds: float = 0.00003
    prompt_tokens_per_second: float = 40_000
    hidden_share: float = 0.8

    @property
    def blocks(self) -> int:
        """Of the cache."""
        return self.kv_bytes // (self.bytes_per_token * self.block_tokens)


@dataclass(slots=True, kw_only=True)
class Story:
    """What became of one request."""

    arrival: Arrival
    kv_tokens: int = 0
    done_tokens: int = 0
    held_blocks: int = 0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    read_at: float = 0.0  # when its reader has read what there is
    stalled_seconds: float = 0.0

    @property
    def missing_tokens(self) -> int:
        """To compute before its next token."""
        return self.arrival.prompt_tokens + self.done_tokens - self.kv_tokens

    def answer(self, now: float) -> None:
        """One more token."""
        if not self.done_tokens:
            self.first_token_at = self.read_at = now
        self.stalled_seconds += max(0.0, now - self.read_at)
        self.read_at = max(now, self.read_at) + READER_SECONDS
        self.done_tokens += 1
        self.last_token_at = now


@dataclass(slots=True, kw_only=True)
class Moved:
    """Bytes over the link, and how often it was used."""

    parked: int = 0
    fetched: int = 0
    written_through: int = 0
    preemptions: int = 0

    @property
    def nbytes(self) -> int:
        """All of them."""
        return self.parked + self.fetched + self.written_through


class Engine:
    """Replays arrivals under one scheduler. *link* None: what is preempted is computed again.

    With *admits* the scheduler may refuse; who is refused does not come back.
    """

    def __init__(
        self, hardware: Hardware, scheduler: Scheduler, link: Swap | None, *, admits: bool = False
    ) -> None:
        self.hardware, self.scheduler, self.link = hardware, scheduler, link
        self.admits, self.refused = admits, 0
        self.now = self.busy_seconds = 0.0
        self.free_blocks = hardware.blocks
        self.moved = Moved()
        self.stories: dict[str, Story] = {}
        self._open: dict[str, Story] = {}

    def replay(self, arrivals: Sequence[Arrival]) -> list[Story]:
        """Until the last of them has its last token."""
        coming = [(one.at, str(number), one) for number, one in enumerate(arrivals)][::-1]
        while coming or self._open:
            if not self._open:
                self.now = max(self.now, coming[-1][0])
            while coming and coming[-1][0] <= self.now:
                self._take(*coming.pop())
            if self._open:
                self._iterate()
        return list(self.stories.values())

    def _take(self, at: float, name: str, arrival: Arrival) -> None:
        tokens = arrival.prompt_tokens
        if self.admits and not self.scheduler.admit(self.now, prompt_tokens=tokens).accepted:
            self.refused += 1
            return
        self.stories[name] = self._open[name] = Story(arrival=arrival)
        self.scheduler.add(name, prompt_tokens=tokens, now=at)

    def _iterate(self) -> None:
        room = Room(tokens=self.hardware.batch_tokens, free_blocks=self.free_blocks)
        plan = self.scheduler.plan(self.now, room, swap=self.link)
        swap_seconds = sum(self._park(self._open[name]) for name in plan.preempt)
        for name in plan.preempt:
            kept = self._open[name].kv_tokens
            self.scheduler.preempted(name, kept_tokens=kept)
        swap_seconds += sum(self._fetch(self._open[name]) for name in plan.resume)
        decoding, prompt_tokens, answered = 0, 0, []
        for share in plan.run:
            story = self._open[share.request_id]
            is_prefill = story.missing_tokens > 1
            decoding, prompt_tokens = (
                (decoding, prompt_tokens + share.tokens)
                if is_prefill
                else (decoding + 1, prompt_tokens)
            )
            self._compute(story, share.tokens)
            self.scheduler.ran(share.request_id, share.tokens)
            if not story.missing_tokens:
                answered.append((share.request_id, story))
        if self.free_blocks < 0 or not plan.run:
            message = f"a plan that does not fit, or runs nobody: {plan}"
            raise AssertionError(message)
        seconds = self._seconds(decoding, prompt_tokens, swap_seconds)
        self.now += seconds
        self.busy_seconds += seconds
        for name, story in answered:
            story.answer(self.now)
            if story.done_tokens == story.arrival.reply_tokens:
                self.free_blocks += story.held_blocks
                self.scheduler.remove(name)
                del self._open[name]

    def _seconds(self, decoding: int, prompt_tokens: int, swap_seconds: float) -> float:
        hardware = self.hardware
        computing = (
            hardware.iteration_seconds
            + decoding * hardware.decode_seconds
            + prompt_tokens / hardware.prompt_tokens_per_second
        )
        return computing + swap_seconds - min(computing, hardware.hidden_share * swap_seconds)

    def _park(self, story: Story) -> float:
        self.moved.preemptions += 1
        self.free_blocks += story.held_blocks
        story.held_blocks = 0
        if self.link is None or not self.link.parks:
            story.kv_tokens = 0
            return 0.0
        dirty = self.link.dirty_tokens(story.kv_tokens, self.hardware.block_tokens)
        self.moved.parked += dirty * self.hardware.bytes_per_token
        return dirty * self.hardware.bytes_per_token / self.link.store_bytes_per_second

    def _fetch(self, story: Story) -> float:
        assert self.link is not None
        nbytes = story.kv_tokens * self.hardware.bytes_per_token
        self.moved.fetched += nbytes
        return nbytes / self.link.fetch_bytes_per_second

    def _compute(self, story: Story, tokens: int) -> None:
        block_tokens = self.hardware.block_tokens
        full_before = story.kv_tokens // block_tokens
        story.kv_tokens += tokens
        blocks = -(-story.kv_tokens // block_tokens)
        self.free_blocks -= blocks - story.held_blocks
        story.held_blocks = blocks
        if self.link is not None and self.link.writes_through:
            filled = story.kv_tokens // block_tokens - full_before
            self.moved.written_through += filled * block_tokens * self.hardware.bytes_per_token
