"""What the server answers.

POST /v1/completions, /v1/chat/completions     OpenAI's, whole or streamed
GET  /v1/models, /v1/models/{name}             the one model
GET  /health                                   200, or 503 when the engine has stopped
GET  /metrics                                  for Prometheus
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from aqua_client.integrations.transformers.serving.answering import Answerer
from aqua_client.integrations.transformers.serving.answers import Answer
from aqua_client.integrations.transformers.serving.asked import parse
from aqua_client.integrations.transformers.serving.gauges import Gauges
from aqua_client.integrations.transformers.serving.refusals import BadRequest, Refusal, UnknownModel
from aqua_client.integrations.transformers.serving.speaking import Voice

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def app_of(
    answerer: Answerer, gauges: Gauges, *, lifetime: Callable[[], AsyncIterator[None]]
) -> Starlette:
    """The application. The engine runs within *lifetime*."""
    routes = _Routes(answerer, gauges)
    return Starlette(
        routes=[
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
        ],
        exception_handlers={Refusal: _refused, HTTPException: _not_here},
        lifespan=asynccontextmanager(lambda _app: lifetime()),
    )


class _Routes:
    def __init__(self, answerer: Answerer, gauges: Gauges) -> None:
        self._answerer = answerer
        self._gauges = gauges

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, is_chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, is_chat=True)

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = str(request.path_params["name"])
        if name != self._answerer.name:
            raise UnknownModel(name, self._answerer.name)
        return JSONResponse(self._model())

    async def health(self, _request: Request) -> Response:
        is_well = self._answerer.is_well
        body = {"status": "ok" if is_well else "the engine has stopped"}
        return JSONResponse(body, status_code=200 if is_well else 503)

    async def metrics(self, _request: Request) -> Response:
        return Response(self._gauges.text(), headers={"content-type": METRICS_TYPE})

    async def _answer(self, request: Request, *, is_chat: bool) -> Response:
        asked = parse(await _body(request), is_chat=is_chat)
        prompt = self._answerer.prompt_of(asked)
        voice = Voice(asked=asked, prompt_tokens=len(prompt))
        answer = self._answerer.answer(asked, prompt)
        watching = asyncio.create_task(_close_when_gone(request, answer))
        if asked.is_streamed:
            events = _ending(voice.events(answer.pieces()), answer, watching)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            return await _whole(voice, answer)
        finally:
            _end(answer, watching)

    def _model(self) -> dict[str, object]:
        return {"id": self._answerer.name, "object": "model", "created": 0, "owned_by": "aqua"}


async def _body(request: Request) -> object:
    try:
        return await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is no JSON: {error}") from error


async def _close_when_gone(request: Request, answer: Answer) -> None:
    """Nobody listens any more: the engine need not go on."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answer.close()


async def _whole(voice: Voice, answer: Answer) -> Response:
    texts: list[str] = []
    async for piece in answer.pieces():
        texts.append(piece.text)
        if piece.finish_reason is not None:
            return JSONResponse(voice.whole("".join(texts), piece))
    return Response(status_code=499)  # to nobody: the caller has gone


async def _ending(
    events: AsyncIterator[bytes], answer: Answer, watching: asyncio.Task[None]
) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    finally:
        _end(answer, watching)


def _end(answer: Answer, watching: asyncio.Task[None]) -> None:
    answer.close()
    watching.cancel()


async def _refused(_request: Request, error: Exception) -> Response:
    if not isinstance(error, Refusal):
        raise error
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _not_here(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    refusal = BadRequest(f"{request.method} {request.url.path}: there is nothing of that name here")
    return JSONResponse(refusal.body(), status_code=status)
