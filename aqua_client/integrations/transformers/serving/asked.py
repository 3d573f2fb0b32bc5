"""What a request asks for: OpenAI's fields, checked, and refused by name where they mean nothing here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aqua_client.integrations.transformers.serving.refusals import BadRequest

MOST_STOPS = 4
DEFAULT_TOKENS = 16  # of a completion, as OpenAI has it; a chat goes on to its end
# Of these only what changes nothing is taken.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "seed": (None,),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Checked, but for what only the tokenizer knows."""

    model: str
    prompt: str | Sequence[int] | None  # of a completion
    messages: Sequence[Mapping[str, str]] | None  # of a chat
    most_tokens: int | None
    temperature: float = 1.0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()
    is_streamed: bool = False
    wants_usage: bool = False  # at the end of a stream

    @property
    def is_chat(self) -> bool:
        """Whether it came with messages."""
        return self.messages is not None

    def sampling(self, vocabulary: int) -> dict[str, float]:
        """For the engine, which wants each of them said."""
        if self.temperature == 0.0:
            return {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
        return {"temperature": self.temperature, "top_k": vocabulary, "top_p": self.top_p}


def parse(body: object, *, is_chat: bool) -> Asked:
    """What *body*, a request's JSON, asks for.

    Raises:
        BadRequest: names the field, its value and what is allowed.
    """
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    for key, allowed in NEUTRAL.items():
        if body.get(key) not in allowed:
            raise BadRequest(
                f"{key}={body[key]!r} is not supported here",
                parameter=key,
                code="unsupported_value",
            )
    options = body.get("stream_options") or {}
    return Asked(
        model=_text(body, "model"),
        prompt=None if is_chat else _prompt(body.get("prompt")),
        messages=_messages(body.get("messages")) if is_chat else None,
        most_tokens=_most_tokens(body, is_chat=is_chat),
        temperature=_number(body, "temperature", 1.0, least=0.0, most=2.0),
        top_p=_number(body, "top_p", 1.0, least=0.0, most=1.0),
        stops=_stops(body.get("stop")),
        is_streamed=body.get("stream") is True,
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _text(body: Mapping[str, object], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{key}={value!r} is not allowed: a text is needed", parameter=key)
    return value


def _number(
    body: Mapping[str, object], key: str, default: float, *, least: float, most: float
) -> float:
    value = body.get(key)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= float(str(value)) <= most:
        raise BadRequest(f"{key}={value!r} is not allowed: {least:g} to {most:g}", parameter=key)
    return float(str(value))


def _most_tokens(body: Mapping[str, object], *, is_chat: bool) -> int | None:
    for key in ("max_completion_tokens", "max_tokens"):
        value = body.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadRequest(f"{key}={value!r} is not allowed: 1 or more", parameter=key)
        return value
    return None if is_chat else DEFAULT_TOKENS


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if isinstance(stops, list) and len(stops) <= MOST_STOPS:
        texts = tuple(one for one in stops if isinstance(one, str) and one)
        if len(texts) == len(stops):
            return texts
    allowed = f"a text, or up to {MOST_STOPS}"
    raise BadRequest(f"stop={value!r} is not allowed: {allowed}", parameter="stop")


def _prompt(value: object) -> str | Sequence[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(type(one) is int for one in value):
        return value
    raise BadRequest("prompt must be one text, or one list of token ids", parameter="prompt")


def _messages(value: object) -> Sequence[Mapping[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadRequest("messages must be a list of at least one", parameter="messages")
    return [_message(one) for one in value]


def _message(one: object) -> Mapping[str, str]:
    if not isinstance(one, dict) or not isinstance(one.get("role"), str):
        raise BadRequest("each message needs a role and a content", parameter="messages")
    content = one.get("content")
    if isinstance(content, list):  # parts: of those, texts
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRequest("only parts of type 'text' are supported", parameter="messages")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise BadRequest("each message needs a role and a content", parameter="messages")
    return {"role": str(one["role"]), "content": content}
