"""What is read, in which order, and how much KV that makes."""

from __future__ import annotations

from dataclasses import replace

from aqua_client.demo.plan import FULL, QUICK, Plan
from aqua_client.demo.text import piece, whole_text
from tests.demo.stores import TINY


def test_text_begins_with_the_declaration_and_not_with_its_notice() -> None:
    """The lines that name text and licence are not read as text."""
    assert whole_text().startswith(b"IN CONGRESS, July 4, 1776.")
    assert b"public domain" not in whole_text()


def test_text_is_plain_ascii_of_some_length() -> None:
    """One byte a letter, and enough of them that conversations read different things."""
    text = whole_text()
    assert text.isascii()
    assert len(text) > 10_000


def test_a_conversation_reads_on_where_it_stopped() -> None:
    """The pieces of its turns, put together, are one stretch of the text."""
    turns = [piece(TINY, conversation=1, turn=turn) for turn in range(3)]
    read = bytes(token for turn in turns for token in turn)
    assert len(read) == TINY.prompt_bytes + 2 * TINY.piece_bytes
    assert read in whole_text()


def test_conversations_read_different_texts() -> None:
    """No two conversations of the full plan begin alike."""
    prompts = {
        tuple(piece(FULL, conversation=number, turn=0)) for number in range(FULL.conversations)
    }
    assert len(prompts) == FULL.conversations


def test_the_text_goes_round() -> None:
    """A conversation that reads past the end goes on at the beginning."""
    long = replace(TINY, prompt_bytes=len(whole_text()))
    last = piece(long, conversation=long.conversations - 1, turn=0)
    assert len(last) == len(whole_text())
    assert sorted(last) == sorted(whole_text())
    assert whole_text()[:10] in bytes(last)


def test_each_round_gives_each_conversation_one_turn() -> None:
    """Orders differ between rounds, and every round is whole."""
    order = TINY.order()
    size = TINY.conversations
    rounds = [order[start : start + size] for start in range(0, len(order), size)]
    assert len(rounds) == TINY.turns
    assert all(sorted(one) == list(range(size)) for one in rounds)
    assert rounds[0] != rounds[1]


def test_the_order_repeats() -> None:
    """Both runs serve in the same order."""
    assert FULL.order() == FULL.order()


def test_plans_need_more_kv_than_their_budget_and_fit_a_conversation() -> None:
    """Otherwise nothing would be parked, or nothing could be served."""
    for plan in (FULL, QUICK, TINY):
        assert plan.final_kv_bytes > 2 * plan.kv_budget_bytes
        assert 2 * _largest_conversation(plan) < plan.kv_budget_bytes


def _largest_conversation(plan: Plan) -> int:
    return plan.tokens_after(plan.turns - 1) * plan.shape.kv_bytes_per_token
