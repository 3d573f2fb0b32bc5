"""A server from a model's directory: its engine, with fair slices and paging, and what it tells."""

from __future__ import annotations

import inspect
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import uvicorn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
)

from aqua_client.informing import LlmInformer
from aqua_client.integrations.transformers import engine, fair
from aqua_client.integrations.transformers.attaching import attach
from aqua_client.integrations.transformers.lending import Lending
from aqua_client.integrations.transformers.serving.answering import Answerer
from aqua_client.integrations.transformers.serving.app import app_of
from aqua_client.integrations.transformers.serving.gauges import Gauges
from aqua_client.producing import producer
from aqua_client.scheduling import FairSettings

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager


STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the command line says of the engine; None: the engine chooses."""

    directory: Path
    name: str
    device: str | None
    dtype: str
    page_tokens: int
    kv_blocks: int | None
    batch_tokens: int | None
    most_open: int
    scheduler: str = fair.NAME
    patience_seconds: float = (
        FairSettings().patience_seconds
    )  # that requests may take in the mean, before more are refused
    lent_gpu: str | None = None  # whose idle KV memory may be lent


class Served:
    """A model that listens, and is answered for once `run` is called."""

    def __init__(self, choices: Choices, *, host: str, port: int) -> None:
        """Load the model, and listen: port 0 is any that is free."""
        self.manager = _manager(choices)
        is_fair = choices.scheduler == fair.NAME
        settings = FairSettings(patience_seconds=choices.patience_seconds) if is_fair else None
        self._paging = attach(self.manager, fair=settings)
        self._producer = None
        if choices.lent_gpu is not None:
            self._producer = producer(choices.lent_gpu, informer=LlmInformer(), must_attach=False)
            self._lending = Lending(self.manager, self._paging, self._producer)
        tokenizer: Any = AutoTokenizer.from_pretrained(choices.directory, local_files_only=True)
        gauges = Gauges(self._figures)
        self._answerer = Answerer(
            self.manager,
            tokenizer,
            name=choices.name,
            most_open=choices.most_open,
            witness=gauges,
        )
        app = app_of(self._answerer, gauges, lifetime=self._lifetime)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self._socket = socket.create_server((host, port))
        self.url = f"http://{host}:{self._socket.getsockname()[1]}/v1"

    def run(self) -> None:
        """Answer until `end`, or a signal where this is the main thread."""
        self._server.run(sockets=[self._socket])

    def end(self) -> None:
        """Have `run` return, once what is being answered has been, or has been let go."""
        self._server.should_exit = True

    async def _lifetime(self) -> AsyncIterator[None]:
        self.manager.start()
        try:
            yield
        finally:
            if self._producer is not None:
                self._lending.close()
                self._producer.close()
            self.manager.stop(timeout=STOP_SECONDS, hard_stop=True)
            self.manager.destroy()
            self._paging.close()

    def _figures(self) -> dict[str, float]:
        processor = self.manager.batch_processor
        if processor is None:
            return {}
        used, total = engine.kv_bytes(processor.cache)
        waiting = len(processor.scheduler.waiting_requests) + self.manager.input_queue.qsize()
        done = self._paging.stats()
        return {
            "open_requests": self._answerer.open_requests,
            "waiting_requests": waiting,
            "kv_used_bytes": used,
            "kv_bytes": total,
            "parked_requests": done.pop("parked_now"),
            **done,
        }


def _manager(choices: Choices) -> ContinuousBatchingManager:
    device = choices.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(
        choices.directory, dtype=choices.dtype, local_files_only=True
    )
    model.to(device)
    known = inspect.signature(ContinuousBatchingConfig).parameters
    settings: dict[str, Any] = {
        "page_size" if "page_size" in known else "block_size": choices.page_tokens,
        "num_blocks": choices.kv_blocks,
        "max_batch_tokens": choices.batch_tokens,
        "scheduler_type": choices.scheduler,
        "use_cuda_graph": False,
        "use_async_batching": False,
        "per_request_processors": True,
    }
    manager = model.init_continuous_batching(
        generation_config=_generation(model.generation_config),
        continuous_batching_config=ContinuousBatchingConfig(**settings),
    )
    return cast("ContinuousBatchingManager", manager)


def _generation(models: GenerationConfig) -> GenerationConfig:
    """Draws as each request says: the engine makes what it draws with from what is set here.

    It makes nothing for a value that changes nothing, so each is set to one that would; a request
    names all three.
    """
    config = GenerationConfig(do_sample=True, temperature=0.5, top_k=1, top_p=0.5)
    config.eos_token_id = -1 if models.eos_token_id is None else models.eos_token_id
    config.pad_token_id = models.pad_token_id
    return config
