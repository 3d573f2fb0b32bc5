"""The server, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import aqua_client
from aqua_client.integrations.transformers.serving.starting import Served
from aqua_client.scheduling import Admission
from tests.integrations.transformers.engines import expected, prompts
from tests.integrations.transformers.servers import (
    running_server,
    text_of,
    tokens_of,
)
from tests.nodes import Node, wait_until

STREAMS = 32
ASKED = prompts(STREAMS)


@pytest.fixture(scope="module")
def server(model_dir: Path, node: Node) -> Iterator[Served]:
    with (
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0"),
        running_server(model_dir) as made,
    ):
        yield made


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def test_32_streams_at_once_say_the_same(server: Served) -> None:
    """In a cache for five each is streamed what `generate` says, by way of leases."""

    async def stream(client: openai.AsyncOpenAI, prompt: list[int]) -> tuple[str, int]:
        pieces = []
        async for event in await client.completions.create(
            model="tiny", prompt=text_of(prompt), max_tokens=24, temperature=0, stream=True
        ):
            pieces.append(event.choices[0].text)  # noqa: PERF401 - they come one by one
        return "".join(pieces), len(pieces)

    async def all_of_them() -> list[tuple[str, int]]:
        async with openai.AsyncOpenAI(
            base_url=server.url, api_key="none", max_retries=0, timeout=50
        ) as client:
            return await asyncio.gather(*(stream(client, prompt) for prompt in ASKED))

    said = asyncio.run(all_of_them())
    assert [text for text, _ in said] == [text_of(expected(prompt, 24)) for prompt in ASKED]
    assert min(count for _, count in said) >= 24
    assert figure(server, "aqua_serving_restored_total") >= 3
    assert figure(server, 'aqua_serving_requests_total{outcome="length"}') >= STREAMS


def test_a_whole_completion_has_its_usage(client: openai.OpenAI) -> None:
    """Text, reason and counts."""
    answer = client.completions.create(
        model="tiny", prompt=text_of(ASKED[0]), max_tokens=24, temperature=0
    )
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (text_of(expected(ASKED[0], 24)), "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (20, 24)


def test_a_chat_is_told_by_the_models_template(client: openai.OpenAI) -> None:
    """Whole and streamed alike."""
    told = tokens_of("user: hello assistant:")
    right = text_of(expected(told, 24))
    ask = client.chat.completions.create
    messages = [{"role": "user", "content": "hello"}]
    whole = ask(model="tiny", messages=messages, max_completion_tokens=24, temperature=0)
    assert whole.choices[0].message.content == right
    events = list(
        ask(
            model="tiny",
            messages=messages,
            max_completion_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = "".join(one.choices[0].delta.content or "" for one in events if one.choices)
    assert said == right
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-1].usage.completion_tokens == 24


def test_an_answer_ends_before_a_stop(client: openai.OpenAI) -> None:
    """Whole or streamed, nothing of the stop is said."""
    right = text_of(expected(ASKED[1]))
    stop = right[10:13]
    end = right.index(stop)
    ask = client.completions.create
    common = {"model": "tiny", "prompt": text_of(ASKED[1]), "temperature": 0, "max_tokens": 40}
    whole = ask(**common, stop=[stop, "not there"])
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (right[:end], "stop")
    streamed = list(ask(**common, stop=stop, stream=True))
    assert "".join(one.choices[0].text for one in streamed) == right[:end]
    assert streamed[-1].choices[0].finish_reason == "stop"


def test_draws_follow_the_request(client: openai.OpenAI) -> None:
    """Hot answers differ from each other; with a tiny top_p they are the likeliest ones."""
    ask = client.completions.create
    common = {"model": "tiny", "prompt": text_of(ASKED[2]), "max_tokens": 30}
    hot = {ask(**common, temperature=2.0).choices[0].text for _ in range(3)}
    assert len(hot) == 3
    sure = ask(**common, temperature=1.0, top_p=0.0001).choices[0].text
    assert sure == text_of(expected(ASKED[2], 30))


@pytest.mark.parametrize(
    ("wrong", "status", "parameter"),
    [
        ({"model": "other"}, 404, "model"),
        ({"n": 2}, 400, "n"),
        ({"temperature": 3}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 1000}, 400, "prompt"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"prompt": ["a", "b"]}, 400, "prompt"),
        ({"prompt": [1, 999]}, 400, "prompt"),
        ({"logprobs": 3}, 400, "logprobs"),
    ],
)
def test_what_can_not_be_is_refused_by_name(
    client: openai.OpenAI, wrong: dict[str, object], status: int, parameter: str
) -> None:
    """With OpenAI's status and error, which name the parameter."""
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(**{"model": "tiny", "prompt": "hello", **wrong})
    assert (refused.value.status_code, refused.value.param) == (status, parameter)


def test_models_and_health_and_unknown_paths(server: Served, client: openai.OpenAI) -> None:
    """The one model is listed; the engine is well; what is not there has an error of its own."""
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert json.loads(get(server, "health")) == {"status": "ok"}
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="hello")


def test_a_caller_that_goes_is_not_answered_further(server: Served, client: openai.OpenAI) -> None:
    """Its request is cancelled in the engine, and its blocks are free."""
    cancelled = figure(server, 'aqua_serving_requests_total{outcome="cancelled"}')
    stream = client.completions.create(
        model="tiny", prompt=text_of(ASKED[3]), max_tokens=200, temperature=0, stream=True
    )
    next(iter(stream))
    stream.close()
    wait_until(
        lambda: figure(server, 'aqua_serving_requests_total{outcome="cancelled"}') > cancelled,
        what="it is cancelled",
    )
    wait_until(lambda: figure(server, "aqua_serving_kv_used_bytes") == 0, what="it is gone")


def test_a_caller_that_goes_before_its_whole_answer_is_not_answered_further(server: Served) -> None:
    """There is nothing to be written that would fail: its going is what is seen."""
    cancelled = figure(server, 'aqua_serving_requests_total{outcome="cancelled"}')
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    caller = http.client.HTTPConnection(host, int(port), timeout=30)
    asked = {"model": "tiny", "prompt": text_of(ASKED[3]), "max_tokens": 200, "temperature": 0}
    caller.request("POST", "/v1/completions", json.dumps(asked))
    wait_until(lambda: figure(server, "aqua_serving_open_requests") > 0, what="it is taken")
    caller.close()
    wait_until(
        lambda: figure(server, 'aqua_serving_requests_total{outcome="cancelled"}') > cancelled,
        what="it is cancelled",
    )


def test_past_capacity_it_says_when_to_come_back(model_dir: Path, node: Node) -> None:
    """429 with retry-after for the third where two are the most; the two are answered."""

    async def crowd(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            ask = client.completions.create
            streams = [
                await ask(model="tiny", prompt="abc", max_tokens=200, temperature=0, stream=True)
                for _ in range(2)
            ]
            with pytest.raises(openai.RateLimitError) as refused:
                await ask(model="tiny", prompt="abc", max_tokens=5)
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
            for stream in streams:
                await stream.close()

    with (
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0"),
        running_server(model_dir, most_open=2) as server,
    ):
        asyncio.run(crowd(server.url))
        assert figure(server, 'aqua_serving_requests_total{outcome="refused"}') == 1
        assert server.manager.batch_processor is not None
        scheduler = server.manager.batch_processor.scheduler
        scheduler.admit = busy  # type: ignore[attr-defined]  # as it is when all take too long
        with (
            openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
            pytest.raises(openai.RateLimitError, match="stall everybody") as refused,
        ):
            client.completions.create(model="tiny", prompt="abc")
        assert refused.value.response.headers["retry-after"] == "7"


def test_a_server_whose_engine_has_died_says_so(model_dir: Path, node: Node) -> None:
    """Health is 503, and so is every request; nobody is left waiting."""
    with (
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0"),
        running_server(model_dir) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        stream = client.completions.create(
            model="tiny", prompt="abc", max_tokens=200, temperature=0, stream=True
        )
        next(iter(stream))
        processor = server.manager.batch_processor
        assert processor is not None
        processor.update_batch = broken  # type: ignore[method-assign]
        with pytest.raises(openai.APIError, match="the engine is broken"):
            list(stream)
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model="tiny", prompt="abc")
        assert refused.value.status_code == 503
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(server, "health")


def test_an_engine_is_as_patient_as_it_is_told_and_lends_what_it_is_told(
    model_dir: Path, node: Node
) -> None:
    """What the command line says reaches the policy, and a producer that hears of requests."""
    with (
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0"),
        running_server(model_dir, patience_seconds=1e-6, lent_gpu="SHM-1") as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        lending = server._lending
        wait_until(lambda: server.manager.batch_processor is not None, what="the engine runs")
        assert server.manager.batch_processor is not None
        scheduler = server.manager.batch_processor.scheduler
        assert scheduler._policy._settings.patience_seconds == 1e-6  # type: ignore[attr-defined]
        client.completions.create(model="tiny", prompt="abc", max_tokens=4, temperature=0)
        wait_until(lambda: bool(lending._came), what="the informer is told of the request")
    assert server._producer is not None
    assert not lending._thread.is_alive()


def busy(*, prompt_tokens: int) -> Admission:
    assert prompt_tokens == 3
    return Admission(accepted=False, retry_after_seconds=6.2, reason="busy")


def broken() -> None:
    raise RuntimeError("the engine is broken")


def figure(server: Served, name: str) -> float:
    lines = get(server, "metrics").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def get(server: Served, path: str) -> str:
    url = server.url.removesuffix("v1") + path
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
        return str(answer.read(), "utf-8")
