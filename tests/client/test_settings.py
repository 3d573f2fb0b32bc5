"""Settings: read from the environment, checked, and refused with a message that helps."""

from __future__ import annotations

import dataclasses

import pytest

from aqua_client.errors import InvalidSetting
from aqua_client.settings import ClientSettings, Fallback, parse_bytes

GIB = 2**30


def test_defaults_need_no_environment() -> None:
    """An empty environment gives the documented defaults."""
    settings = ClientSettings.from_environment({})
    assert settings.socket_path == "/run/aqua/aqua.sock"
    assert settings.presence_path == "/run/aqua/aqua.sock.presence"
    assert (settings.home_gpu, settings.sub_tenant) == (None, "")
    assert settings.fallback is Fallback.HOST
    assert settings.host_limit_bytes > 0
    assert (settings.connect_seconds, settings.call_seconds) == (0.5, 0.5)
    assert settings.acquire_seconds == 2.0


def test_every_key_is_read() -> None:
    """Each key of the environment lands in its field."""
    settings = ClientSettings.from_environment(
        {
            "AQUA_SOCKET": "/tmp/a.sock",
            "AQUA_HOME_GPU": "SHM-3",
            "AQUA_TENANT": "team-a",
            "AQUA_FALLBACK": "error",
            "AQUA_HOST_LIMIT": "4GiB",
            "AQUA_CONNECT_SECONDS": "0.1",
            "AQUA_CALL_SECONDS": "0.2",
            "AQUA_ACQUIRE_SECONDS": "3",
        }
    )
    assert settings.socket_path == "/tmp/a.sock"
    assert (settings.home_gpu, settings.sub_tenant) == ("SHM-3", "team-a")
    assert settings.fallback is Fallback.ERROR
    assert settings.host_limit_bytes == 4 * GIB
    assert (settings.connect_seconds, settings.call_seconds) == (0.1, 0.2)
    assert settings.acquire_seconds == 3.0


def test_empty_values_mean_the_default() -> None:
    """A key that is set to nothing counts as not set."""
    keys = ("AQUA_SOCKET", "AQUA_HOME_GPU", "AQUA_TENANT", "AQUA_FALLBACK", "AQUA_CALL_SECONDS")
    limit = {"AQUA_HOST_LIMIT": "1GiB"}  # the default moves with the machine
    unset = ClientSettings.from_environment(limit)
    assert ClientSettings.from_environment({**dict.fromkeys(keys, ""), **limit}) == unset


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("AQUA_SOCKET", "/tmp/" + "x" * 100, "98 bytes"),
        ("AQUA_HOME_GPU", "GPU 1", "letters, digits"),
        ("AQUA_HOME_GPU", "-1", "letters, digits"),
        ("AQUA_TENANT", "x" * 65, "at most 64"),
        ("AQUA_TENANT", "a/b", "letters, digits"),
        ("AQUA_FALLBACK", "disk", "host or error"),
        ("AQUA_HOST_LIMIT", "-1", "4GiB"),
        ("AQUA_HOST_LIMIT", "4 gigs", "4GiB"),
        ("AQUA_HOST_LIMIT", "1.5GiB", "whole number"),
        ("AQUA_CALL_SECONDS", "soon", "number of seconds"),
        ("AQUA_CALL_SECONDS", "0", "more than 0"),
        ("AQUA_CALL_SECONDS", "nan", "more than 0"),
        ("AQUA_CONNECT_SECONDS", "-1", "more than 0"),
        ("AQUA_ACQUIRE_SECONDS", "inf", "at most 60"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(key: str, value: str, allowed: str) -> None:
    """The error names the key, its value and what would be right."""
    with pytest.raises(InvalidSetting) as caught:
        ClientSettings.from_environment({key: value})
    message = str(caught.value)
    assert key in message
    assert allowed in message
    assert value in message or str(float(value)) in message


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("0", 0), ("1048576", 2**20), ("512MiB", 2**29), ("4 GiB", 4 * GIB), ("2kib", 2048)],
)
def test_sizes_are_read_with_and_without_unit(text: str, nbytes: int) -> None:
    """Bytes, or binary units in any case."""
    assert parse_bytes("AQUA_HOST_LIMIT", text) == nbytes


def test_settings_are_frozen() -> None:
    """Nobody changes settings that others hold."""
    settings = ClientSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.home_gpu = "SHM-1"  # type: ignore[misc]  # that is what is tested


def test_settings_made_by_hand_are_checked_too() -> None:
    """`replace` can't make what the environment could not."""
    with pytest.raises(InvalidSetting, match="AQUA_HOST_LIMIT"):
        dataclasses.replace(ClientSettings(), host_limit_bytes=-1)
