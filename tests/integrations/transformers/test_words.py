"""What is asked and said, without an engine: stops, parts of messages, and when to come back."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from aqua_client.integrations.transformers.serving.asked import parse
from aqua_client.integrations.transformers.serving.paces import FIRST_GUESS_SECONDS, Pace
from aqua_client.integrations.transformers.serving.pieces import Pieces
from aqua_client.integrations.transformers.serving.refusals import BadRequest

BYTES = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def bytewise() -> Tokenizer:
    """A token is a byte."""
    made = Tokenizer(models.BPE(vocab=BYTES, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def said(text: str, *stops: str) -> tuple[list[str], bool]:
    """Token by token, and what is left at the end."""
    tokenizer = bytewise()
    pieces = Pieces(tokenizer, stops)
    parts = [pieces.add([token]) for token in tokenizer.encode(text).ids]
    return [*parts, pieces.end()], pieces.is_stopped


def test_a_character_of_several_tokens_comes_whole() -> None:
    """Never a part of it."""
    parts, is_stopped = said("a\N{EURO SIGN}b")
    assert [part for part in parts if part] == ["a", "\N{EURO SIGN}", "b"]
    assert not is_stopped


@pytest.mark.parametrize(
    ("text", "stops", "right"),
    [
        ("one END two", ("END",), "one "),
        ("one EN", ("END",), "one EN"),
        ("aab", ("ab",), "a"),
        ("x\n\ny", ("\n\n", "y"), "x"),
        ("abc", ("bc", "c"), "a"),
    ],
)
def test_nothing_of_a_stop_is_said(text: str, stops: tuple[str, ...], right: str) -> None:
    """Not even its beginning, unless it turns out to be none."""
    parts, is_stopped = said(text, *stops)
    assert "".join(parts) == right
    assert is_stopped == (right != text)


def test_a_message_may_come_in_parts() -> None:
    """Of text: those are put together, and other kinds refused."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    assert parse(body, is_chat=True).messages == [{"role": "user", "content": "ab"}]
    parts[0]["type"] = "image_url"
    with pytest.raises(BadRequest, match="type 'text'"):
        parse(body, is_chat=True)


@pytest.mark.parametrize(
    "body", [None, [], {"model": "m"}, {"model": "m", "messages": [{}]}, {"messages": []}]
)
def test_what_is_no_request_is_refused(body: object) -> None:
    """Whatever JSON it is."""
    for is_chat in (True, False):
        with pytest.raises(BadRequest):
            parse(body, is_chat=is_chat)


def test_when_to_come_back_follows_how_often_requests_end() -> None:
    """A guess before the first, then the mean of the last half minute, a minute at most."""
    pace = Pace()
    assert pace.seconds_for(1, now=0.0) == FIRST_GUESS_SECONDS
    for second in range(10):
        pace.ended(float(second))
    assert pace.seconds_for(1, now=10.0) == pytest.approx(1.0)
    assert pace.seconds_for(1000, now=10.0) == 60.0
    assert pace.seconds_for(1, now=100.0) == FIRST_GUESS_SECONDS
