"""The server in a thread of the test, over the tiny model with a tokenizer of 256 letters."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from aqua_client.integrations.transformers.serving.starting import Choices, Served
from tests.integrations.transformers.engines import PAGE_TOKENS, VOCABULARY, Tokens, tiny_model

LETTERS = [chr(32 + index) for index in range(95)] + [chr(0x400 + index) for index in range(161)]
TEMPLATE = "{% for one in messages %}{{ one.role }}: {{ one.content }} {% endfor %}assistant:"


def write_model(directory: Path) -> None:
    """What `serve` wants: weights, config and tokenizer."""
    tiny_model().save_pretrained(directory)
    letters = {letter: index for index, letter in enumerate(LETTERS)}
    assert len(letters) == VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)


def text_of(tokens: Tokens) -> str:
    """As the tokenizer has it."""
    return "".join(LETTERS[token] for token in tokens)


def tokens_of(text: str) -> Tokens:
    """As the tokenizer has it."""
    return [LETTERS.index(letter) for letter in text]


@contextmanager
def running_server(
    directory: Path,
    *,
    blocks: int = 16,
    most_open: int = 64,
    patience_seconds: float = 3600.0,  # the machine may be slow
    lent_gpu: str | None = None,
) -> Iterator[Served]:
    """It listens within the block."""
    choices = Choices(
        directory=directory,
        name="tiny",
        device="cpu",
        dtype="float32",
        page_tokens=PAGE_TOKENS,
        kv_blocks=blocks,
        batch_tokens=64,
        most_open=most_open,
        patience_seconds=patience_seconds,
        lent_gpu=lent_gpu,
    )
    served = Served(choices, host="127.0.0.1", port=0)
    thread = threading.Thread(target=served.run, name="server")
    thread.start()
    try:
        yield served
    finally:
        served.end()
        thread.join(timeout=20.0)
        assert not thread.is_alive()
