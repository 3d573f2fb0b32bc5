"""Tiny engines with random weights, and what they should say.

Models are float32, on one thread, with a head scaled so that the two best logits stay apart: then
a request is answered alike in whatever batches it is computed. `expected` checks that they do.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from typing import Any, cast

import torch
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import GenerationOutput

from aqua_client.integrations.transformers.engine import kv_groups, processor_of

for name in ("transformers", "ContinuousBatchingLogger"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
VOCABULARY = 256
PAGE_TOKENS = 16
LEAST_GAP = 1e-2  # of the two best logits; what a batch changes in float32 is far below it
BLOCK_BYTES = PAGE_TOKENS * 2 * 2 * 2 * 16 * 4  # tokens, layers, keys and values, heads, numbers
END_SECONDS = 30.0
MOST_STEPS = 3000

Tokens = list[int]


@cache
def tiny_model(sliding_window: int | None = None) -> PreTrainedModel:
    """Two layers; what it says depends on all that it has read, or on so many tokens of it."""
    torch.set_num_threads(1)
    torch.manual_seed(3 if sliding_window is None else 5)
    config_type: Any = LlamaConfig
    model_type: Any = LlamaForCausalLM
    if sliding_window is not None:
        config_type = partial(MistralConfig, sliding_window=sliding_window)
        model_type = MistralForCausalLM
    config = config_type(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = model_type(config)
    model.eval()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)
    return cast("PreTrainedModel", model)


def blocks_in_use(manager: ContinuousBatchingManager) -> set[int]:
    """Those that some request has; of a model whose layers all share a table."""
    (group,) = kv_groups(processor_of(manager).cache)
    return {block for table in list(group.tables.values()) for block in table}


def greedy(max_new_tokens: int = 40) -> GenerationConfig:
    """The likeliest token each time, without an end of its own."""
    return _endless(configured(max_new_tokens=max_new_tokens, do_sample=False))


def sampled(sequences: int, max_new_tokens: int = 40) -> GenerationConfig:
    """So many answers to each question, drawn from the one likeliest token."""
    return _endless(
        configured(
            max_new_tokens=max_new_tokens,
            do_sample=True,
            top_k=1,
            num_return_sequences=sequences,
        )
    )


def configured(**chosen: object) -> GenerationConfig:
    """With these settings."""
    return GenerationConfig(**chosen)


def _endless(config: GenerationConfig) -> GenerationConfig:
    config.eos_token_id, config.pad_token_id = -1, 0
    return config


def prompts(count: int, tokens: int = 20) -> list[Tokens]:
    """Different ones, from the first token on."""
    made = torch.Generator().manual_seed(2)
    return torch.randint(0, VOCABULARY, (count, tokens), generator=made).tolist()


def expected(
    prompt: Sequence[int],
    new_tokens: int = 40,
    *,
    sliding_window: int | None = None,
    least_gap: float = LEAST_GAP,
) -> Tokens:
    """What `generate` says; fails where a rounding could have it say something else."""
    tokens, gap = _expected(tuple(prompt), new_tokens, sliding_window)
    assert gap > least_gap, f"two logits are {gap:g} apart: choose another seed"
    return list(tokens)


@cache
def _expected(
    prompt: tuple[int, ...], new_tokens: int, sliding_window: int | None
) -> tuple[tuple[int, ...], float]:
    model: Any = tiny_model(sliding_window)
    answer = model.generate(
        torch.tensor([prompt]),
        generation_config=configured(max_new_tokens=new_tokens, do_sample=False),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.stack(answer.logits)[:, 0].topk(2).values
    gap = float((best[:, 0] - best[:, 1]).min())
    return tuple(answer.sequences[0, len(prompt) :].tolist()), gap


def batching(*, blocks: int = 8, **more: object) -> ContinuousBatchingConfig:
    """A cache of *blocks* blocks of 16 tokens, and the names that this transformers has."""
    known = inspect.signature(ContinuousBatchingConfig).parameters
    sizes = {"page_size" if "page_size" in known else "block_size": PAGE_TOKENS}
    plain = {"use_cuda_graph": False, "use_async_batching": False, "auto_switch_to_flash": False}
    chosen: dict[str, Any] = {
        **sizes,
        **plain,
        "num_blocks": blocks,
        "max_batch_tokens": 64,
        **more,
    }
    return ContinuousBatchingConfig(**{k: v for k, v in chosen.items() if k in known})


def manager_of(
    config: ContinuousBatchingConfig,
    generation: GenerationConfig | None = None,
    *,
    sliding_window: int | None = None,
) -> ContinuousBatchingManager:
    """A manager, not started, of a tiny model of its own: it changes how the model attends."""
    model: Any = deepcopy(tiny_model(sliding_window))
    made = model.init_continuous_batching(
        generation_config=generation or greedy(), continuous_batching_config=config
    )
    return cast("ContinuousBatchingManager", made)


@contextmanager
def started(manager: ContinuousBatchingManager) -> Iterator[ContinuousBatchingManager]:
    """It runs within the block."""
    manager.start()
    try:
        yield manager
    finally:
        manager.stop(timeout=END_SECONDS, hard_stop=True)
        manager.destroy()


def step(manager: ContinuousBatchingManager) -> None:
    """One iteration of a manager that is not started, in this thread."""
    processor = manager.batch_processor
    assert processor is not None
    if processor.prepare_next_batch():
        processor._generation_step(manager.model)
        processor.update_batch()


def run_until(manager: ContinuousBatchingManager, condition: Callable[[], object]) -> None:
    """Step until it holds."""
    for _ in range(MOST_STEPS):
        if condition():
            return
        step(manager)
    raise AssertionError(f"not within {MOST_STEPS} steps")


def results(manager: ContinuousBatchingManager) -> dict[str, GenerationOutput]:
    """What has been finished of a manager that is not started."""
    queue = manager.output_router.output_queue
    found = [queue.get_nowait() for _ in range(queue.qsize())]
    return {one.request_id: one for one in found if one.is_finished()}


def run_to_end(
    manager: ContinuousBatchingManager, *, each_step: Callable[[], object] = lambda: None
) -> dict[str, GenerationOutput]:
    """Step until nothing is left."""
    processor = manager.batch_processor
    assert processor is not None

    def is_over() -> bool:
        each_step()
        return manager.input_queue.empty() and not processor.has_pending_requests()

    run_until(manager, is_over)
    return results(manager)


def finished(manager: ContinuousBatchingManager, count: int) -> dict[str, GenerationOutput]:
    """The next *count* requests to finish, by id."""
    found: dict[str, GenerationOutput] = {}
    deadline = time.monotonic() + END_SECONDS
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} requests are answered"
        result = manager.get_result(timeout=1.0)
        if result is not None and result.is_finished():
            found[result.request_id] = result
    return found


def ask(manager: ContinuousBatchingManager, asked: Sequence[Tokens], most: int = 40) -> list[str]:
    """The ids of the requests, in order."""
    return manager.add_requests(list(asked), max_new_tokens=most)


def said(found: Mapping[str, GenerationOutput]) -> list[Tokens]:
    """The answers of those that were asked, in the order of asking."""
    by_number = sorted(found, key=lambda one: int(one.removeprefix("req_")))
    return [found[one].generated_tokens for one in by_number]


def answers(manager: ContinuousBatchingManager, asked: Sequence[Tokens]) -> list[Tokens]:
    """What it says to each, asked together."""
    ids = ask(manager, asked)
    found = finished(manager, len(ids))
    assert [found[one].error for one in ids] == [None] * len(ids)
    return [found[one].generated_tokens for one in ids]
