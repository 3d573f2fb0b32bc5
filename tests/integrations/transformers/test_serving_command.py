"""The command that serves a directory, and what it says where it can't."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from aqua_client.integrations.transformers.__main__ import main
from tests.integrations.transformers.engines import expected, prompts
from tests.integrations.transformers.servers import text_of
from tests.nodes import Node, environment

(ASKED,) = prompts(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "config.json"),
        (["--dtype", "bananas"], "bfloat16"),
        (["--lend", "cuda:0", "--scheduler", "none"], "aqua_fair"),
    ],
)
def test_a_command_that_can_not_be_says_why_in_a_line(
    tmp_path: Path, options: list[str], said: str
) -> None:
    """A directory without a model, and words that it does not know: no traceback."""
    ended = CliRunner().invoke(main, ["serve", str(tmp_path), *options])
    assert ended.exit_code in {1, 2}
    assert isinstance(ended.exception, SystemExit)
    assert said in ended.output
    assert "Traceback" not in ended.output


def test_a_setting_that_can_not_be_and_a_port_that_is_taken_are_named(model_dir: Path) -> None:
    """By what is allowed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, said in (
            (["--patience", "0"], "patience_seconds"),
            (["--port", port], "in use"),
        ):
            words = ["serve", str(model_dir), "--device", "cpu", "--kv-blocks", "8", *options]
            ended = CliRunner().invoke(main, words)
            assert (ended.exit_code, isinstance(ended.exception, SystemExit)) == (1, True)
            assert said in ended.output


def test_the_command_serves_a_directory(model_dir: Path, node: Node) -> None:
    """It says where it listens, is named as its directory, answers, and ends when told."""
    command = [sys.executable, "-m", "aqua_client.integrations.transformers", "serve"]
    options = ["--port", "0", "--kv-blocks", "8", "--page-tokens", "16", "--batch-tokens", "64"]
    process = subprocess.Popen(
        [*command, str(model_dir), *options],
        env=environment(
            AQUA_SOCKET=str(node.socket),
            AQUA_HOME_GPU="SHM-0",
            PYTHONPATH=os.pathsep.join([environment()["PYTHONPATH"], *sys.path]),
        ),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with openai.OpenAI(base_url=ready["url"], api_key="none", max_retries=0) as client:
            answer = client.completions.create(
                model=model_dir.name, prompt=text_of(ASKED), max_tokens=24, temperature=0
            )
        assert answer.choices[0].text == text_of(expected(ASKED, 24))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20.0) in {0, -signal.SIGTERM}
    finally:
        process.kill()
        process.communicate()
