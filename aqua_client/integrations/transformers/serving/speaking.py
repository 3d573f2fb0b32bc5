"""Answers in OpenAI's words: whole, or as a stream of events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from aqua_client.integrations.transformers.serving.answers import Piece
from aqua_client.integrations.transformers.serving.asked import Asked
from aqua_client.integrations.transformers.serving.refusals import Refusal

END = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How one request is answered."""

    asked: Asked
    prompt_tokens: int
    answer_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: round(time.time()))  # noqa: TID251 - a date, no deadline

    def whole(self, text: str, last: Piece) -> dict[str, object]:
        """The answer."""
        said = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.asked.is_chat
            else {"text": text}
        )
        choice = {"index": 0, **said, "finish_reason": last.finish_reason, "logprobs": None}
        kind = "chat.completion" if self.asked.is_chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": self._usage(last.tokens)}

    async def events(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
        """The answer as it comes. What goes wrong underway is an event, for the status is out."""
        tokens = 0
        if self.asked.is_chat:
            yield self._event({"delta": {"role": "assistant", "content": ""}}, None)
        try:
            async for piece in pieces:
                tokens = piece.tokens
                said = (
                    {"delta": {"content": piece.text}}
                    if self.asked.is_chat
                    else {"text": piece.text}
                )
                yield self._event(said, piece.finish_reason)
        except Refusal as refusal:
            yield _encoded(refusal.body())
        else:
            if self.asked.wants_usage:
                head = self._head(self._part)
                yield _encoded({**head, "choices": [], "usage": self._usage(tokens)})
        yield END

    @property
    def _part(self) -> str:
        return "chat.completion.chunk" if self.asked.is_chat else "text_completion"

    def _event(self, said: Mapping[str, object], reason: str | None) -> bytes:
        choice = {"index": 0, **said, "finish_reason": reason, "logprobs": None}
        return _encoded({**self._head(self._part), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, object]:
        prefix = "chatcmpl" if self.asked.is_chat else "cmpl"
        return {
            "id": f"{prefix}-{self.answer_id}",
            "object": kind,
            "created": self.created,
            "model": self.asked.model,
        }

    def _usage(self, tokens: int) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }


def _encoded(event: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"
