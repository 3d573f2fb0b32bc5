"""`python -m aqua_client.integrations.transformers serve MODEL_DIR`: a server, until it is ended."""

from __future__ import annotations

import json
from pathlib import Path

import click

from aqua_client.errors import AquaError
from aqua_client.scheduling import FairSettings


@click.group()
def main() -> None:
    """Continuous batching of transformers, with fair time slices and KV caches paged to leases."""


@main.command()
@click.argument("model_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="0: any that is free.")
@click.option("--name", default=None, help="What requests call the model; its directory's name.")
@click.option("--device", default=None, help="cuda where there is one, else cpu.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
)
@click.option("--page-tokens", default=32, show_default=True, help="Tokens of a block of KV cache.")
@click.option("--kv-blocks", type=int, default=None, help="As many as there is memory for.")
@click.option("--batch-tokens", type=int, default=None, help="That one iteration computes at most.")
@click.option(
    "--most-open", default=256, show_default=True, help="Requests at once; more are refused (429)."
)
@click.option(
    "--scheduler",
    type=click.Choice(["aqua_fair", "fifo", "prefill_first"]),
    default="aqua_fair",
    show_default=True,
)
@click.option(
    "--patience",
    default=FairSettings().patience_seconds,
    show_default=True,
    help="Seconds that requests may take in the mean, before more are refused (429).",
)
@click.option("--lend", "lent_gpu", default=None, help="This GPU's KV memory while idle: cuda:0.")
def serve(
    model_dir: Path,
    host: str,
    port: int,
    name: str | None,
    device: str | None,
    dtype: str,
    page_tokens: int,
    kv_blocks: int | None,
    batch_tokens: int | None,
    most_open: int,
    scheduler: str,
    patience: float,
    lent_gpu: str | None,
) -> None:
    """Serve the model in MODEL_DIR: OpenAI's completions and chat, /health and /metrics.

    Prints one line of JSON when it is ready.
    """
    try:
        from aqua_client.integrations.transformers.serving.starting import Choices, Served
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f'{error.name} is missing: pip install "aqua-broker[serving]"'
        ) from error
    choices = Choices(
        directory=model_dir,
        name=name or model_dir.resolve().name,
        device=device,
        dtype=dtype,
        page_tokens=page_tokens,
        kv_blocks=kv_blocks,
        batch_tokens=batch_tokens,
        most_open=most_open,
        scheduler=scheduler,
        patience_seconds=patience,
        lent_gpu=lent_gpu,
    )
    try:
        served = Served(choices, host=host, port=port)
    except (AquaError, OSError, ValueError) as error:  # settings, files, a port that is taken
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps({"ready": True, "url": served.url}))
    served.run()


if __name__ == "__main__":
    main()
