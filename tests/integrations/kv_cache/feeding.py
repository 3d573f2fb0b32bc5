"""Random keys and values go through a cache and through the stock one, and are compared.

No model, so no rounding: on every device each byte must be the same.
"""

from __future__ import annotations

import random

import torch
from transformers import DynamicCache

from aqua_client.integrations.kv_cache import AquaCache

LAYERS = 5
BATCH, HEADS, HEAD_DIM = 2, 3, 16
SLEEP_CYCLES = (
    2_000_000  # about a millisecond of a GPU, so that copies and work wait for each other
)
POISON = float("nan")


def feed(
    cache: AquaCache, *, device: str, prompt_tokens: int, steps: int, seed: int = 0
) -> list[str]:
    """What went wrong, in words: a prompt, then steps with crops, parks and beams among them."""
    chance = random.Random(seed)  # noqa: S311 - a test's dice
    stock = DynamicCache()
    wrong: list[str] = []
    for step in range(steps):
        count = prompt_tokens if step == 0 else chance.choice((1, 1, 1, 7))
        for number in range(LAYERS):
            pair = _states(count, device), _states(count, device)
            _delay(device, chance)
            ours, theirs = cache.update(*pair, number), stock.update(*pair, number)
            # Looked at when both are long enqueued, and after what was let go of has been poisoned.
            wrong += _differences(ours, theirs, f"step {step}, layer {number}")
        _do_something(chance, (cache, stock), device)
    return wrong


def _do_something(
    chance: random.Random, caches: tuple[AquaCache, DynamicCache], device: str
) -> None:
    ours, _ = caches
    dice = chance.random()
    if dice < 0.15:
        ours.park()
        _poison(device)
    elif dice < 0.3:
        ours.resume()
    elif dice < 0.5:
        tokens = chance.choice((1, 3, 9, 30))
        for cache in caches:
            cache.crop(-tokens)
    elif dice < 0.7:
        rows = torch.LongTensor([chance.randrange(BATCH) for _ in range(BATCH)])
        for cache in caches:
            cache.reorder_cache(rows)


def _states(count: int, device: str) -> torch.Tensor:
    return torch.randn(BATCH, HEADS, count, HEAD_DIM, device=device)


def _differences(
    ours: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor], where: str
) -> list[str]:
    names = ("keys", "values")
    return [
        f"{where}: {name} differ"
        for name, mine, other in zip(names, ours, theirs, strict=True)
        if not torch.equal(mine, other)
    ]


def _delay(device: str, chance: random.Random) -> None:
    if device != "cpu":
        torch.cuda._sleep(chance.randrange(SLEEP_CYCLES))


def _poison(device: str) -> None:
    """Whoever still reads memory that was let go of shall see it."""
    if device != "cpu":
        torch.full((2**22,), POISON, device=device)
