"""One answer on its way: asked of the engine, heard in an event loop, ended by whoever ends it first.

The engine computes in a thread of its own; what it says comes into the loop by a handler.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aqua_client.integrations.transformers.serving.pieces import Pieces
from aqua_client.integrations.transformers.serving.refusals import EngineFailed, Unavailable

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
    from transformers.generation.continuous_batching.requests import GenerationOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of an answer. The last one has a reason."""

    text: str
    tokens: int  # of the answer, up to here
    finish_reason: str | None = None


class Answer:
    """One answer on its way."""

    def __init__(
        self,
        manager: ContinuousBatchingManager,
        pieces: Pieces,
        *,
        most_tokens: int,
        ended: Callable[[str, int], None],
    ) -> None:
        self._manager = manager
        self._text = pieces
        self._most_tokens = most_tokens
        self._ended = ended
        self._request_id = f"aqua-{uuid.uuid4().hex}"
        self._said: asyncio.Queue[GenerationOutput | None] = asyncio.Queue()
        self._outcome: str | None = None
        self._tokens = 0

    def begin(
        self,
        prompt: Sequence[int],
        sampling: Mapping[str, Any],
        *,
        spoke: Callable[[float], None],
    ) -> None:
        """Ask the engine.

        Raises:
            Unavailable: it takes nothing more.
        """
        self._asked_at, self._spoke = time.monotonic(), spoke
        self._manager.register_result_handler(self._request_id, self._said.put_nowait)
        taken = self._manager.add_request(
            list(prompt),
            request_id=self._request_id,
            max_new_tokens=self._most_tokens,
            streaming=True,
            **sampling,
        )
        if taken is None:
            self._end("failed")
            raise Unavailable("the engine has stopped")

    async def pieces(self) -> AsyncIterator[Piece]:
        """As they come, up to the last one, or until it is closed.

        Raises:
            EngineFailed: the engine gave it up.
        """
        while self._outcome is None:
            output = await self._said.get()
            if output is None:
                return
            if output.error is not None:
                self._end("failed")
                raise EngineFailed(output.error)
            text = self._heard(output)
            if text or self._outcome is not None:
                yield Piece(text=text, tokens=self._tokens, finish_reason=self._outcome)

    def close(self) -> None:
        """The rest is not wanted. Idempotent."""
        if self._outcome is None:
            self._end("cancelled")
            self._manager.cancel_request(self._request_id)
            self._said.put_nowait(None)

    def _heard(self, output: GenerationOutput) -> str:
        """What can be said now."""
        if self._tokens == 0:
            self._spoke(time.monotonic() - self._asked_at)
        text = self._text.add(output.generated_tokens[self._tokens :])
        self._tokens = len(output.generated_tokens)
        if self._text.is_stopped:
            self._manager.cancel_request(self._request_id)
            self._end("stop")
        elif output.is_finished():
            text += self._text.end()
            self._end("length" if self._tokens >= self._most_tokens else "stop")
        return text

    def _end(self, outcome: str) -> None:
        self._outcome = outcome
        self._manager.output_router.result_handlers.pop(self._request_id, None)
        self._ended(outcome, self._tokens)
