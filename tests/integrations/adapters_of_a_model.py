"""A small model with LoRA adapters, and what it answers with each: without a pool, by peft itself."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import torch
from torch import nn

X = torch.linspace(-1, 1, 128).reshape(4, 32)


def config(**more: Any) -> peft.LoraConfig:  # noqa: ANN401 - any of peft's
    options: dict[str, Any] = {"target_modules": ["0", "2"], "init_lora_weights": False, "r": 4}
    return peft.LoraConfig(**{**options, **more})


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


def model_with(*names: str) -> peft.PeftModel:
    """A model whose adapters have weights that follow from their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base(), config(), names[0])
        seed(model, names[0])
        for name in names[1:]:
            model.add_adapter(name, config())
            seed(model, name)
    return model


def seed(model: peft.PeftModel, name: str) -> None:
    """Give an adapter its weights."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for path, tensor in model.named_parameters():
            if f".{name}." in path:
                tensor.normal_(generator=generator)


def answers(model: peft.PeftModel, names: list[str]) -> dict[str, torch.Tensor]:
    """By peft's own switch."""
    found = {}
    for name in names:
        model.set_adapter(name, inference_mode=True)
        found[name] = model(X).detach()
    return found
