"""The client's errors: one tree, as drawn, with reasons and figures."""

from __future__ import annotations

import inspect
import pickle

import pytest

from aqua_client import errors
from aqua_client.errors import (
    AquaError,
    BrokerUnreachable,
    HandleReleased,
    InsufficientMemory,
    InvalidRequest,
    InvalidSetting,
    NotAnOwner,
    Refused,
    UnsupportedTensor,
)

TREE = errors.__doc__ or ""
ALL = [one for _, one in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_in_the_tree_and_in_its_drawing(error: type[Exception]) -> None:
    """One `except AquaError` catches all, and the docstring shows each."""
    assert issubclass(error, AquaError)
    assert f"{error.__name__} " in TREE or f"{error.__name__}\n" in TREE


@pytest.mark.parametrize("error", ALL)
def test_every_error_survives_pickling(error: type[Exception]) -> None:
    """A worker can send its error to its parent."""
    copy = pickle.loads(pickle.dumps(error("what happened")))  # noqa: S301 - our own bytes
    assert type(copy) is error
    assert str(copy) == "what happened"


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (InvalidRequest, ValueError),
        (InvalidSetting, ValueError),
        (HandleReleased, ValueError),
        (UnsupportedTensor, TypeError),
        (UnsupportedTensor, ValueError),
    ],
)
def test_misuse_is_what_python_calls_it(error: type[Exception], builtin: type) -> None:
    """Code that expects the built-in error catches ours."""
    assert issubclass(error, builtin)


def test_no_room_names_both_figures() -> None:
    """The message says what was asked and what is left, in both tiers, and what to do."""
    error = InsufficientMemory(asked_bytes=100, peer_free_bytes=7, host_free_bytes=5)
    assert (error.asked_bytes, error.peer_free_bytes, error.host_free_bytes) == (100, 7, 5)
    for words in ("100 bytes", "7 bytes", "5 in host", "AQUA_HOST_LIMIT", "no_room"):
        assert words in str(error)


def test_reasons_stay_with_their_errors() -> None:
    """`reason` labels counters; without a message it is the message."""
    assert BrokerUnreachable(reason="breaker").reason == "breaker"
    assert "breaker" in str(BrokerUnreachable(reason="breaker"))
    assert Refused(reason="quota").reason == "quota"
    assert "quota" in str(Refused(reason="quota"))


def test_not_an_owner_is_a_refusal() -> None:
    """Who catches refusals catches this one."""
    error = NotAnOwner("not yours")
    assert isinstance(error, Refused)
    assert error.reason == "not_permitted"


def test_an_invalid_setting_says_what_is_allowed() -> None:
    """Key, value, allowed."""
    assert str(InvalidSetting.of("K", 3, "1 or 2")) == "K=3 is not allowed: 1 or 2"


def test_a_full_host_names_the_limit_that_was_met() -> None:
    """The daemon's ledger and the process's own limit are raised in different places."""
    assert "--host-pool-bytes" in str(InsufficientMemory(asked_bytes=1, reason="no_host_room"))
    assert "AQUA_HOST_LIMIT" in str(InsufficientMemory(asked_bytes=1, reason="no_daemon"))
