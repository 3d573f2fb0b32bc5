"""One engine with its tokenizer: what is asked becomes tokens, and what is taken an answer.

Covers what is refused before it costs anything: what can never fit, and what would stall everybody.
Does not cover how an answer comes: that is `answers`'.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from aqua_client.integrations.transformers.engine import capacity_tokens
from aqua_client.integrations.transformers.fair import FairBatches
from aqua_client.integrations.transformers.serving.answers import Answer
from aqua_client.integrations.transformers.serving.asked import Asked
from aqua_client.integrations.transformers.serving.paces import Pace
from aqua_client.integrations.transformers.serving.pieces import Pieces
from aqua_client.integrations.transformers.serving.refusals import (
    BadRequest,
    TooMany,
    Unavailable,
    UnknownModel,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager


class Witness(Protocol):
    """Is told of every request."""

    def began(self, prompt_tokens: int) -> None:
        """It was taken."""

    def spoke(self, seconds: float) -> None:
        """Its first token came after so long."""

    def ended(self, outcome: str, tokens: int) -> None:
        """It has ended by `stop` or `length`, was `cancelled`, or has `failed`."""

    def refused(self) -> None:
        """There were too many."""


class Answerer:
    """One engine with its tokenizer, under a name."""

    def __init__(
        self,
        manager: ContinuousBatchingManager,
        tokenizer: PreTrainedTokenizerFast,
        *,
        name: str,
        most_open: int,
        witness: Witness,
    ) -> None:
        self.name = name
        self._manager = manager
        self._tokenizer = tokenizer
        self._most_open = most_open
        self._witness = witness
        self._pace = Pace()
        self.open_requests = 0

    @property
    def is_well(self) -> bool:
        """Whether the engine runs and takes requests."""
        status = self._manager.background_thread_status
        return self._manager.is_running() and status.can_accept_new_requests() is None

    def prompt_of(self, asked: Asked) -> list[int]:
        """The tokens of what is asked.

        Raises:
            UnknownModel, BadRequest: it is for another model, or can't be told to this one.
        """
        if asked.model != self.name:
            raise UnknownModel(asked.model, self.name)
        prompt = self._tokens(asked)
        vocabulary = len(self._tokenizer)
        if not prompt or not all(0 <= token < vocabulary for token in prompt):
            raise BadRequest(
                f"the prompt needs at least one token, and token ids of 0 to {vocabulary - 1}",
                parameter="prompt",
            )
        return prompt

    def answer(self, asked: Asked, prompt: Sequence[int]) -> Answer:
        """Have the engine begin. Whoever asks closes the answer.

        Raises:
            BadRequest: it can never fit.
            TooMany: later.
            Unavailable: the engine does not run.
        """
        most_tokens = self._most_tokens(asked, len(prompt))
        self._admit(len(prompt))
        pieces = Pieces(self._tokenizer.backend_tokenizer, asked.stops)
        answer = Answer(self._manager, pieces, most_tokens=most_tokens, ended=self._ended)
        sampling = asked.sampling(len(self._tokenizer))
        self.open_requests += 1
        self._witness.began(len(prompt))
        answer.begin(prompt, sampling, spoke=self._witness.spoke)
        return answer

    def _ended(self, outcome: str, tokens: int) -> None:
        self.open_requests -= 1
        self._pace.ended(time.monotonic())
        self._witness.ended(outcome, tokens)

    def _admit(self, prompt_tokens: int) -> None:
        if not self.is_well:
            raise Unavailable("the engine has stopped")
        if self.open_requests >= self._most_open:
            self._witness.refused()
            seconds = self._pace.seconds_for(1, now=time.monotonic())
            message = f"{self.open_requests} requests are being answered, which is the most"
            raise TooMany(message, retry_after_seconds=seconds)
        processor = self._manager.batch_processor
        scheduler = None if processor is None else processor.scheduler
        if isinstance(scheduler, FairBatches):
            admission = scheduler.admit(prompt_tokens=prompt_tokens)
            if not admission.accepted:
                self._witness.refused()
                message = f"more would stall everybody: {admission.reason}"
                raise TooMany(message, retry_after_seconds=admission.retry_after_seconds)

    def _most_tokens(self, asked: Asked, prompt_tokens: int) -> int:
        left = self._context_tokens - prompt_tokens
        most_tokens = left if asked.most_tokens is None else asked.most_tokens
        if most_tokens < 1 or most_tokens > left:
            raise BadRequest(
                f"{prompt_tokens} tokens of prompt and {max(1, most_tokens)} of answer are more "
                f"than fit: {self._context_tokens}",
                parameter="messages" if asked.is_chat else "prompt",
                code="context_length_exceeded",
            )
        return most_tokens

    @property
    def _context_tokens(self) -> int:
        processor = self._manager.batch_processor
        if processor is None:
            raise Unavailable("the engine has stopped")
        here = capacity_tokens(processor.cache)
        longest = getattr(self._manager.model.config, "max_position_embeddings", None)
        return here if longest is None else min(here, int(longest))

    def _tokens(self, asked: Asked) -> list[int]:
        if asked.messages is None:
            prompt = asked.prompt or ""
            return self._encoded(prompt) if isinstance(prompt, str) else list(prompt)
        if self._tokenizer.chat_template is None:
            raise BadRequest(
                f"{self.name!r} has no chat template: use /v1/completions", parameter="messages"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(one) for one in asked.messages], add_generation_prompt=True, tokenize=False
            )
        except Exception as error:
            raise BadRequest(
                f"the chat template refuses it: {error}", parameter="messages"
            ) from error
        return self._encoded(text, add_special_tokens=False)

    def _encoded(self, text: object, *, add_special_tokens: bool = True) -> list[int]:
        found = self._tokenizer.encode(str(text), add_special_tokens=add_special_tokens)
        return [int(token) for token in found]
