"""Where each setting comes from: the file, the environment, the flags, in rising priority.

Covers reading /etc/aqua/aqua-daemon.toml and AQUA_DAEMON_* variables, refusing what is no setting,
saying of every refusal where the value was given, and printing what is in force. Does not cover
what a value may be (config) nor the flags' form (cli).

Two variables have names of their own: AQUA_SOCKET, which clients read too, and STATE_DIRECTORY,
which the service manager sets, so that it gives way to everything that a person wrote.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aqua_daemon.config import (
    DEFAULTS,
    WORKED_OUT,
    DaemonConfig,
    read_config,
)
from aqua_daemon.config_words import ConfigError, format_bytes

DEFAULT_PATH = Path("/etc/aqua/aqua-daemon.toml")
PREFIX = "AQUA_DAEMON_"
BY_DEFAULT = "default"
_LISTS = frozenset({"gpu", "lending_of"})  # may be arrays in the file; words are joined by commas
_BARE = re.compile(r"true|false|\d+(\.\d+)?", re.ASCII)  # what TOML writes without quotes


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is in force, and for each setting its words and who gave them."""

    config: DaemonConfig
    words: Mapping[str, str]
    origins: Mapping[str, str]


def read_settings(
    flags: Mapping[str, str],
    *,
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    default_path: Path = DEFAULT_PATH,
) -> Settings:
    """Gather all sources and check them; the file at *default_path* need not be there.

    Raises:
        ConfigError: the first setting that is unknown or out of range, and where it was given.
    """
    environment = os.environ if environment is None else environment
    words, origins = dict(DEFAULTS), dict.fromkeys(DEFAULTS, BY_DEFAULT)
    for key, word, origin in (
        *_from_manager(environment),
        *_from_file(path, default_path),
        *_from_environment(environment),
        *((key, word, flag_of(key)) for key, word in flags.items()),
    ):
        if key not in DEFAULTS:
            allowed = f"no such setting; there are {', '.join(DEFAULTS)}"
            raise ConfigError(key, word, allowed, origin=origin)
        words[key], origins[key] = word, origin
    try:
        config = read_config(words, environment=environment)
    except ConfigError as error:
        raise error.given_in(origins.get(error.key, BY_DEFAULT)) from None
    return Settings(config=config, words=words, origins=origins)


def flag_of(key: str) -> str:
    """The flag that sets it."""
    return f"--{key.replace('_', '-')}"


def in_toml(settings: Settings) -> str:
    """What is in force, as a file that would bring it about, with each setting's source."""
    lines = [(f"{key} = {_toml_value(settings, key)}", _origin(settings, key)) for key in DEFAULTS]
    width = max(len(line) for line, _origin in lines)
    return "".join(f"{line:<{width}}  # {origin}\n" for line, origin in lines)


def toml_word(key: str, value: object) -> str:
    """A file's value as the word that a flag would give.

    Raises:
        ConfigError: a table, a date, or a list where none can be.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case list() if key in _LISTS and all(isinstance(item, str) for item in value):
            return ",".join(value)
        case _:
            kinds = "a string, a number, true or false"
            raise ConfigError(key, value, f"give {kinds}" + (" or a list" * (key in _LISTS)))


def _from_manager(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    directories = environment.get("STATE_DIRECTORY", "")
    if directories:
        yield "state_dir", directories.split(":")[0], "STATE_DIRECTORY"


def _from_file(path: Path | None, default_path: Path) -> Iterator[tuple[str, str, str]]:
    chosen = default_path if path is None else path
    try:
        content = tomllib.loads(chosen.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path is None:
            return
        raise ConfigError("config", chosen, "there is no such file", origin="--config") from None
    except (OSError, ValueError) as error:
        raise ConfigError("config", chosen, f"it can't be read as TOML: {error}") from error
    for key, value in content.items():
        origin = f"{chosen}:{key}"
        try:
            yield key, toml_word(key, value), origin
        except ConfigError as error:
            raise error.given_in(origin) from None


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    if environment.get("AQUA_SOCKET"):
        yield "socket", environment["AQUA_SOCKET"], "AQUA_SOCKET"
    for name, word in environment.items():
        if name.startswith(PREFIX):
            yield name.removeprefix(PREFIX).lower(), word, name


def _origin(settings: Settings, key: str) -> str:
    is_worked_out = key in WORKED_OUT and not settings.words[key]
    return settings.origins[key] + (", worked out" if is_worked_out else "")


def _toml_value(settings: Settings, key: str) -> str:
    word = settings.words[key]
    if key in WORKED_OUT and not word:
        word = format_bytes(getattr(settings.config, key))
    if key in _LISTS and "," in word:
        return json.dumps(word.split(","))
    return word if _BARE.fullmatch(word) else json.dumps(word)
