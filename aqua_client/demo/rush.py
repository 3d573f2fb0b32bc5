"""The same rush of requests on one engine, shared in two ways: stock, and in fair slices over leases.

The engine is transformers' continuous batching. Whoever asks for its answers tells of each token.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

import aqua_client
from aqua_client.demo.happenings import RushBegan, RushEnded, Teller, TokensCame
from aqua_client.demo.plan import Rush
from aqua_client.integrations.transformers import attach
from aqua_client.scheduling import FairSettings

FCFS, FAIR = "first come, first served", "fair slices over leases"
BATCH_TOKENS = 64
STOP_SECONDS = 10.0
ANSWER_SECONDS = 60.0  # a request that has said nothing for so long will not


def serve_rush(
    llama: LlamaForCausalLM,
    rush: Rush,
    prompts: Sequence[list[int]],
    client: aqua_client.Client,
    *,
    tell: Teller,
) -> None:
    """Both ways, one after the other.

    Raises:
        RuntimeError: a request failed, or was not answered.
        InvalidRequest: this transformers is not supported.
    """
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    for way in (FCFS, FAIR):
        with _engine(llama, rush, client, is_fair=way == FAIR) as (manager, parked):
            _answer(manager, [prompts[0]], [2], way="", tell=lambda _: None)  # it warms up
            tell(RushBegan(way=way, reply_tokens=rush.reply_tokens))
            _answer(manager, prompts, rush.reply_tokens, way=way, tell=tell)
            tell(RushEnded(way=way, parked=parked()))


@contextmanager
def _engine(
    llama: LlamaForCausalLM, rush: Rush, client: aqua_client.Client, *, is_fair: bool
) -> Iterator[tuple[ContinuousBatchingManager, Callable[[], int]]]:
    model = deepcopy(llama)  # the engine changes how it attends
    model.set_attn_implementation("sdpa")
    generation = GenerationConfig(do_sample=False)
    generation.eos_token_id, generation.pad_token_id = -1, 0  # no end of its own
    manager = model.init_continuous_batching(generation, _config(rush, is_fair=is_fair))
    fair = FairSettings(
        slice_iterations=rush.slice_tokens, longest_slice_iterations=rush.slice_tokens
    )
    paging = attach(manager, client=client, fair=fair) if is_fair else None
    manager.start()
    try:
        yield manager, lambda: 0 if paging is None else int(paging.stats()["parked"])
    finally:
        manager.stop(timeout=STOP_SECONDS, hard_stop=True)
        if paging is not None:
            paging.close()


def _config(rush: Rush, *, is_fair: bool) -> ContinuousBatchingConfig:
    known = inspect.signature(ContinuousBatchingConfig).parameters
    chosen: dict[str, Any] = {
        "page_size" if "page_size" in known else "block_size": rush.block_tokens,
        "num_blocks": rush.kv_blocks,
        "max_batch_tokens": BATCH_TOKENS,
        "scheduler_type": "aqua_fair" if is_fair else "fifo",
        "use_cuda_graph": False,
        "use_async_batching": False,
        "auto_switch_to_flash": False,
    }
    return ContinuousBatchingConfig(**{name: one for name, one in chosen.items() if name in known})


def _answer(
    manager: ContinuousBatchingManager,
    prompts: Sequence[list[int]],
    lengths: Sequence[int],
    *,
    way: str,
    tell: Teller,
) -> None:
    begin = time.monotonic()
    numbers = {
        manager.add_request(prompt, max_new_tokens=length, streaming=True): number
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    }
    had = [0] * len(prompts)
    left = len(prompts)
    while left:
        output = manager.get_result(timeout=ANSWER_SECONDS)
        if output is None or output.error is not None:
            why = "no answer" if output is None else output.error
            raise RuntimeError(f"a request of the rush was not answered: {why}")
        number, count = numbers[output.request_id], len(output.generated_tokens)
        if count > had[number]:
            seconds = time.monotonic() - begin
            tell(TokensCame(way=way, request=number, tokens=count - had[number], seconds=seconds))
            had[number] = count
        left -= output.is_finished()
