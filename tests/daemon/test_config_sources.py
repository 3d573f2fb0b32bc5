"""Settings from a file, the environment and flags: who wins, and what every refusal names."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from aqua_daemon import cli
from aqua_daemon.config import DEFAULTS, LARGEST_POOL_BYTES
from aqua_daemon.config_sources import BY_DEFAULT, Settings, flag_of, in_toml, read_settings
from aqua_daemon.config_sources import toml_word as word_of
from aqua_daemon.config_words import ConfigError, format_bytes
from tests.nodes import MIB, REPOSITORY, environment, running_node, short_directory

NODE = {"shm_gpus": "8"}
SHIPPED = REPOSITORY / "deploy" / "aqua-daemon.toml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "aqua-daemon.toml"


def read(
    flags: Mapping[str, str] | None = None, /, *, path: Path | None = None, **variables: str
) -> Settings:
    given = NODE if flags is None else flags
    nowhere = Path("/nowhere/aqua-daemon.toml")
    return read_settings(given, path=path, environment=variables, default_path=nowhere)


def test_flags_win_over_variables_and_they_over_the_file(file: Path) -> None:
    """Each source gives way to the next; where each value comes from is kept."""
    file.write_text('term_seconds = 2\nkeepers = "external"\nshm_gpu_bytes = "32MiB"\n')
    variables = {"AQUA_DAEMON_TERM_SECONDS": "3", "AQUA_DAEMON_SHM_GPU_BYTES": "64MiB"}
    found = read({**NODE, "term_seconds": "4"}, path=file, **variables)
    assert found.config.term_seconds == 4
    assert found.config.shm_gpu_bytes == 64 * MIB
    assert not found.config.spawns_keepers
    assert found.origins["term_seconds"] == "--term-seconds"
    assert found.origins["shm_gpu_bytes"] == "AQUA_DAEMON_SHM_GPU_BYTES"
    assert found.origins["keepers"] == f"{file}:keepers"
    assert found.origins["metrics"] == BY_DEFAULT


def test_the_clients_variable_names_the_socket_too(file: Path) -> None:
    """AQUA_SOCKET wins over the file, the daemon's own variable over it; empty is not set."""
    file.write_text('socket = "/tmp/f.sock"\n')
    assert read(path=file).config.socket == "/tmp/f.sock"
    assert read(path=file, AQUA_SOCKET="").config.socket == "/tmp/f.sock"
    assert read(path=file, AQUA_SOCKET="/tmp/c.sock").config.socket == "/tmp/c.sock"
    both = {"AQUA_SOCKET": "/tmp/c.sock", "AQUA_DAEMON_SOCKET": "/tmp/d.sock"}
    assert read(path=file, **both).config.socket == "/tmp/d.sock"


def test_the_service_managers_directory_gives_way_to_what_a_person_wrote(file: Path) -> None:
    """STATE_DIRECTORY, the first of several, wins over the default alone."""
    assert read().config.state_dir == Path("/var/lib/aqua")
    assert read(STATE_DIRECTORY="/var/lib/a:/var/lib/b").config.state_dir == Path("/var/lib/a")
    file.write_text('state_dir = "/srv/aqua"\n')
    assert read(path=file, STATE_DIRECTORY="/var/lib/a").config.state_dir == Path("/srv/aqua")
    found = read({**NODE, "state_dir": "/tmp/s"}, path=file).config.state_dir
    assert found == Path("/tmp/s")


def test_a_file_may_be_absent_only_where_nobody_named_it(tmp_path: Path) -> None:
    """The default file is read if it exists; one that was asked for must."""
    default = tmp_path / "default.toml"
    settings = read_settings(NODE, environment={}, default_path=default)
    assert set(settings.origins.values()) == {BY_DEFAULT, "--shm-gpus"}
    default.write_text("term_seconds = 3\n")
    settings = read_settings(NODE, environment={}, default_path=default)
    assert settings.config.term_seconds == 3
    with pytest.raises(ConfigError, match=r"config = .*there is no such file.*--config"):
        read(path=tmp_path / "missing.toml")


def test_gpus_may_be_a_list_in_the_file(file: Path) -> None:
    """As one flag each is on the command line."""
    uuids = [f"GPU-0123456{n}-89ab-cdef-0123-456789abcdef" for n in (1, 2)]
    file.write_text(f"gpu = {uuids}\n")
    found = read({}, path=file)
    assert found.config.gpus == tuple(uuids)
    assert tomllib.loads(in_toml(found))["gpu"] == uuids


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ("term_seconds = 0", "term_seconds", "give 0.5 to 600 seconds"),
        ('keepers = "mine"', "keepers", "give one of spawn, external"),
        ("metrics_any_address = 1", "metrics_any_address", "give one of true, false"),
        ("colour = 'blue'", "colour", "no such setting; there are socket"),
        ("[daemon]\nsocket = '/a'", "daemon", "no such setting|give a string"),
        ("socket = ['/a']", "socket", "give a string, a number, true or false"),
        ("term_seconds = 2026-01-01", "term_seconds", "give a string, a number"),
        ("gpu = [1]", "gpu", "or a list"),
        ("state_dir = 'x'", "state_dir", "give an absolute path"),
    ],
)
def test_a_refusal_names_the_place_in_the_file(
    file: Path, content: str, key: str, message: str
) -> None:
    """Setting, value, what is allowed, and file and key."""
    file.write_text(content + "\n")
    with pytest.raises(ConfigError, match=message) as caught:
        read(path=file)
    assert str(caught.value).endswith(f"(given in {file}:{key})")
    assert caught.value.key == key


@pytest.mark.parametrize("content", [b"socket = \n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_what_is_no_toml_is_refused(file: Path, content: bytes) -> None:
    """With the file's name and what the parser says."""
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config = .*can't be read as TOML") as caught:
        read(path=file)
    assert str(file) in str(caught.value)


def test_a_refusal_names_the_variable_or_the_flag() -> None:
    """The same words as in a file, and where to look."""
    with pytest.raises(ConfigError, match=r"600 seconds \(given in AQUA_DAEMON_TERM_SECONDS\)$"):
        read(AQUA_DAEMON_TERM_SECONDS="0")
    with pytest.raises(ConfigError, match=r"no such setting.*\(given in AQUA_DAEMON_COLOUR\)$"):
        read(AQUA_DAEMON_COLOUR="blue")
    with pytest.raises(ConfigError, match=r"such as 64MiB or 1GiB \(given in --shm-gpu-bytes\)$"):
        read({**NODE, "shm_gpu_bytes": "lots"})


@pytest.mark.parametrize(
    ("value", "word"), [(True, "true"), (False, "false"), (8, "8"), (2.5, "2.5"), ("a", "a")]
)
def test_values_of_a_file_are_the_words_of_a_flag(value: object, word: str) -> None:
    """So that there is one rule for what a setting may be."""
    assert word_of("x", value) == word


def shipped_settings() -> Iterator[tuple[str, object]]:
    """Every `# key = value` of the shipped file."""
    for line in SHIPPED.read_text().splitlines():
        if re.fullmatch(r"# [a-z_]+ = \S.*", line):
            yield from tomllib.loads(line.removeprefix("# ")).items()


def test_the_shipped_file_documents_every_setting_with_its_default() -> None:
    """No key is missing, none is there twice, and no default is another one in the code."""
    shipped = [(key, word_of(key, value)) for key, value in shipped_settings()]
    assert len(shipped) == len(dict(shipped))
    assert dict(shipped) == DEFAULTS


def test_the_shipped_file_is_a_file_that_changes_nothing() -> None:
    """As it is shipped, and with every default written out."""
    plain = read(path=SHIPPED)
    assert set(plain.origins.values()) == {BY_DEFAULT, "--shm-gpus"}


def test_each_setting_of_the_shipped_file_says_what_it_is() -> None:
    """A comment of its own before each key."""
    lines = SHIPPED.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"# [a-z_]+ = \S.*", line):
            assert re.match(r"# \S+ .{12}", lines[number - 1]), line


RANGE = re.compile(r"give (?:a whole number from )?(\S+ to [^\s,]+)")
ANY_SIZE = f"0 to {format_bytes(LARGEST_POOL_BYTES)}"  # which says nothing


def refusal_of(key: str) -> str:
    """What is said of a word that is no figure; empty: it is one."""
    try:
        read({**NODE, key: "?"})
    except ConfigError as error:
        return str(error)
    return ""


def test_the_shipped_file_states_the_range_of_each_figure() -> None:
    """From where to where, as the refusal says it."""
    paragraphs = SHIPPED.read_text().replace("\n# ", " ").split("\n\n")
    comments = {word: one for one in paragraphs for word in re.findall(r"[a-z_]+(?= = )", one)}
    found = {key: RANGE.search(refusal_of(key)) for key in DEFAULTS}
    ranges = {key: one[1] for key, one in found.items() if one and one[1] != ANY_SIZE}
    assert len(ranges) > 12
    assert [key for key, range_ in ranges.items() if range_ not in comments[key]] == []


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aqua_daemon", *words],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_check_config_prints_what_is_in_force_and_from_where(file: Path) -> None:
    """Every setting with its source, as a file that brings the same about; nothing is started."""
    file.write_text('shm_gpus = 2\nhost_pool_bytes = "1GiB"\n')
    found = run("--config", str(file), "--check-config", "--lend-to-own-gpu", AQUA_DAEMON_GROUP="")
    assert (found.returncode, found.stderr) == (0, "")
    printed = tomllib.loads(found.stdout)
    assert set(printed) == set(DEFAULTS)
    assert (printed["shm_gpus"], printed["host_pool_bytes"]) == (2, "1GiB")
    assert printed["tenant_quota_bytes"] == "512MiB"
    origins = dict(re.findall(r"^(\w+) = .*?  # (.*)$", found.stdout, re.MULTILINE))
    assert origins["shm_gpus"] == f"{file}:shm_gpus"
    assert origins["lend_to_own_gpu"] == "--lend-to-own-gpu"
    assert origins["group"] == "AQUA_DAEMON_GROUP"
    assert origins["tenant_quota_bytes"] == "default, worked out"
    again = file.with_name("again.toml")
    again.write_text(found.stdout)
    assert read({}, path=again).config == read({"lend_to_own_gpu": "true"}, path=file).config


def test_check_config_refuses_what_the_daemon_would_refuse(file: Path) -> None:
    """Exit status 2, the reason on stderr, nothing on stdout; also with the file's fault alone."""
    file.write_text("shm_gpus = 65\n")
    found = run("--config", str(file), "--check-config")
    assert (found.returncode, found.stdout) == (cli.USAGE, "")
    assert f"give a whole number from 1 to 64 (given in {file}:shm_gpus)" in found.stderr


def test_a_daemon_serves_what_the_file_says() -> None:
    """Read when it starts, as the unit starts it: no flag but the file's."""
    with short_directory() as directory:
        described = directory / "aqua-daemon.toml"
        described.write_text('host_pool_bytes = "7MiB"\n')
        with running_node(directory, gpus=1, config=str(described)) as node:
            assert node.scrape()["aqua_host_pool_bytes"] == 7 * MIB


def test_every_setting_has_its_flag() -> None:
    """What can be set in a file can be tried on the command line."""
    known = cli.serving_parser().format_help()
    assert all(flag_of(key) in known for key in DEFAULTS)
