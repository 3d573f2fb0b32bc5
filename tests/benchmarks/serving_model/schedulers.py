"""What is replayed: fair scheduling as shipped, and first come first served as engines have it."""

from __future__ import annotations

from typing import Protocol

from aqua_client.scheduling import Admission, Plan, Room, Share, Swap


class Scheduler(Protocol):
    """What the engine asks, as `aqua_client.scheduling` describes it."""

    def add(self, request_id: str, *, prompt_tokens: int, now: float) -> None: ...

    def admit(self, now: float, *, prompt_tokens: int) -> Admission: ...

    def remove(self, request_id: str) -> None: ...

    def plan(self, now: float, room: Room, *, swap: Swap | None = None) -> Plan: ...

    def ran(self, request_id: str, tokens: int) -> None: ...

    def preempted(self, request_id: str, *, kept_tokens: int | None = None) -> None: ...


class FirstComeFirstServed:
    """Stock behaviour: whoever came first, where its prompt fits.

    A full cache preempts the newest, who begins anew at the head of the queue.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._waiting: dict[str, list[int]] = {}  # known tokens, tokens in the cache
        self._resident: dict[str, list[int]] = {}

    def add(self, request_id: str, *, prompt_tokens: int, now: float) -> None:
        """At the end of the queue."""
        del now
        self._waiting[request_id] = [prompt_tokens, 0]

    def admit(self, now: float, *, prompt_tokens: int) -> Admission:
        """Everybody."""
        del now, prompt_tokens
        return Admission(accepted=True)

    def remove(self, request_id: str) -> None:
        """It has ended."""
        del self._resident[request_id]

    def plan(self, now: float, room: Room, *, swap: Swap | None = None) -> Plan:
        """Decodes, then prefills in order of arrival, then newcomers."""
        del now, swap
        tokens, free = room.tokens, room.free_blocks
        preempt: list[str] = []
        residents = dict(self._resident)

        def more_blocks(state: list[int], more: int) -> int:
            return self._blocks(state[1] + more) - self._blocks(state[1])

        decoding = [name for name, state in residents.items() if state[0] - state[1] == 1]
        needed = sum(more_blocks(residents[name], 1) for name in decoding)
        while needed > free:
            name, state = residents.popitem()
            preempt.append(name)
            free += self._blocks(state[1])
            needed -= more_blocks(state, 1) if name in decoding else 0
        free -= needed
        run = [Share(request_id=name, tokens=1) for name in decoding if name in residents]
        tokens -= len(run)
        candidates = {name: state for name, state in residents.items() if state[0] - state[1] > 1}
        if not preempt:
            candidates |= self._waiting
        for name, state in candidates.items():
            whole = more_blocks(state, state[0] - state[1])
            chunk = min(tokens, state[0] - state[1])
            if chunk < 1 or whole > free:
                break
            free -= whole
            run.append(Share(request_id=name, tokens=chunk))
            tokens -= chunk
        return Plan(run=tuple(run), preempt=tuple(preempt))

    def ran(self, request_id: str, tokens: int) -> None:
        """It is resident."""
        if request_id in self._waiting:
            self._resident[request_id] = self._waiting.pop(request_id)
        state = self._resident[request_id]
        state[1] += tokens
        state[0] += state[0] == state[1]

    def preempted(self, request_id: str, *, kept_tokens: int | None = None) -> None:
        """It begins anew, before everybody else that waits."""
        del kept_tokens
        known, _ = self._resident.pop(request_id)
        self._waiting = {request_id: [known, 0], **self._waiting}

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)
