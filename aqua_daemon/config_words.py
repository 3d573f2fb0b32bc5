"""How the words of a setting become its value, and what is said of those that can't.

Covers sizes, seconds, whole numbers and choices. Does not cover which settings there are (config)
nor who gave them (config_sources).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from aqua_daemon.core.sizes import GIB, MIB

LARGEST_SECONDS = 600.0
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": MIB, "GiB": GIB, "TiB": 2**40}
_TRUTHS = {"true": True, "false": False}


class ConfigError(ValueError):
    """A setting is not what it may be: the message names it, its value, and what is allowed.

    Where it is known who gave it (a flag, a variable, a place in a file), it names that too.
    """

    def __init__(self, key: str, value: object, allowed: str, *, origin: str = "") -> None:
        given = f" (given in {origin})" if origin else ""
        super().__init__(f"{key} = {str(value)!r}: {allowed}{given}")
        self.key = key
        self._value = value
        self._allowed = allowed

    def given_in(self, origin: str) -> ConfigError:
        """The same, naming where the value comes from."""
        return ConfigError(self.key, self._value, self._allowed, origin=origin)


def parse_bytes(key: str, text: str, lowest: int, highest: int) -> int:
    """`64MiB`, `1GiB` or a plain number of bytes.

    Raises:
        ConfigError: another form, or outside the range.
    """
    found = re.fullmatch(r"(\d{1,19}) ?([KMGT]iB|B|)", text.strip(), re.ASCII)
    examples = "64MiB or 1GiB" if highest >= _UNITS["GiB"] else "64MiB"
    allowed = f"give {format_bytes(lowest)} to {format_bytes(highest)}, such as {examples}"
    if found is None:
        raise ConfigError(key, text, allowed)
    nbytes = int(found[1]) * _UNITS[found[2]]
    if not lowest <= nbytes <= highest:
        raise ConfigError(key, text, allowed)
    return nbytes


def parse_seconds(key: str, text: str, lowest: float = 0.0) -> float:
    """Seconds, whole or not.

    Raises:
        ConfigError: no number, or outside the range.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not lowest <= seconds <= LARGEST_SECONDS:
        raise ConfigError(key, text, f"give {lowest:g} to {LARGEST_SECONDS:g} seconds")
    return seconds


def format_bytes(nbytes: int) -> str:
    """The shortest exact form that `parse_bytes` reads back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if nbytes and nbytes % _UNITS[unit] == 0:
            return f"{nbytes // _UNITS[unit]}{unit}"
    return str(nbytes)


def parse_whole(key: str, text: str, lowest: int, highest: int) -> int:
    """A whole number. Raises ConfigError: another form, or outside the range."""
    digits = text.removeprefix("-") if lowest < 0 else text
    if not text.isascii() or not digits.isdigit() or not lowest <= int(text) <= highest:
        raise ConfigError(key, text, f"give a whole number from {lowest} to {highest}")
    return int(text)


def parse_number(key: str, text: str, lowest: float, highest: float) -> float:
    """A number, whole or not. Raises ConfigError: another form, or outside the range."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not lowest <= number <= highest:
        raise ConfigError(key, text, f"give a number from {lowest:g} to {highest:g}")
    return number


def one_of(key: str, words: Mapping[str, str], choices: tuple[str, ...]) -> str:
    """One of a few words. Raises ConfigError: another."""
    if words[key] not in choices:
        raise ConfigError(key, words[key], f"give one of {', '.join(choices)}")
    return words[key]


def parse_truth(key: str, words: Mapping[str, str]) -> bool:
    """`true` or `false`. Raises ConfigError: neither."""
    return _TRUTHS[one_of(key, words, tuple(_TRUTHS))]
