"""Settings: what is read, what is worked out, and what every refusal names."""

from __future__ import annotations

import grp
import os
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from aqua_daemon import config
from aqua_daemon.adapters.call_limits import CallLimits
from aqua_daemon.adapters.presence_link import PresenceLimits
from aqua_daemon.config import DaemonConfig, checked_socket, read_config
from aqua_daemon.config_limits import LARGEST_LIMIT, LIMIT_DEFAULTS
from aqua_daemon.config_words import ConfigError, format_bytes, parse_bytes
from aqua_daemon.core.model import BrokerSettings
from aqua_daemon.core.sizes import GIB, MIB
from aqua_daemon.keeper import program

NODE = {"shm_gpus": "8"}


def read(**given: str) -> DaemonConfig:
    return read_config({**NODE, **given}, environment={})


def test_defaults_serve_a_node_on_the_standard_socket() -> None:
    """Naming the GPUs is enough; all else has a default."""
    found = read()
    assert found.socket == "/run/aqua/aqua.sock"
    assert found.presence_socket == "/run/aqua/aqua.sock.presence"
    assert found.keeper_socket == "/run/aqua/aqua.sock.keeper-shm"
    assert found.lock == "/run/aqua/aqua.sock.lock"
    assert (found.metrics_host, found.metrics_port) == ("127.0.0.1", 22782)
    assert found.spawns_keepers
    assert not found.lend_to_own_gpu
    assert found.term_seconds == 10.0


def test_the_default_metrics_port_is_nobody_elses() -> None:
    """It lies outside the exporters' list (9100 to 9999) and the kernel's ephemeral ports."""
    port = read().metrics_port
    lowest_ephemeral = int(
        Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0]
    )
    assert not 9100 <= port <= 9999
    assert 1024 < port < max(lowest_ephemeral, 32768)


def test_flags_win_over_the_environment_and_it_over_the_defaults() -> None:
    """AQUA_SOCKET is heard, unless a flag says otherwise."""
    environment = {"AQUA_SOCKET": "/tmp/e.sock"}
    assert read_config(NODE, environment=environment).socket == "/tmp/e.sock"
    given = {**NODE, "socket": "/tmp/f.sock"}
    assert read_config(given, environment=environment).socket == "/tmp/f.sock"
    assert read_config(NODE, environment={"AQUA_SOCKET": ""}).socket == "/run/aqua/aqua.sock"
    assert config.default_socket(environment) == "/tmp/e.sock"


def test_a_config_cannot_be_changed() -> None:
    """What was checked stays as it was checked."""
    with pytest.raises(FrozenInstanceError):
        read().shm_gpus = 9  # type: ignore[misc] # that it is refused is the point


def test_host_pool_is_half_of_the_memory_available_at_start() -> None:
    """Half of MemAvailable, give or take what moved between two looks at it."""
    half = config.available_bytes() // 2
    assert read().host_pool_bytes == pytest.approx(half, rel=0.2)
    assert read().tenant_host_bytes == pytest.approx(half, rel=0.2)


def test_a_tenants_limits_follow_the_nodes_unless_given() -> None:
    """A tenant may hold all GPUs and all of the pool by default, and less when told so."""
    found = read(host_pool_bytes="1GiB", shm_gpu_bytes="64MiB")
    assert (found.tenant_host_bytes, found.tenant_quota_bytes) == (GIB, 8 * 64 * MIB)
    found = read(tenant_host_bytes="0", tenant_quota_bytes="32MiB")
    assert (found.tenant_host_bytes, found.tenant_quota_bytes) == (0, 32 * MIB)


def test_available_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    """MemAvailable, in KiB there and in bytes here; a kernel without it is an error that says so."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:     64 kB\n")
    assert config.available_bytes(meminfo) == 64 * 1024
    meminfo.write_text("MemTotal: 100 kB\n")
    with pytest.raises(ConfigError, match=r"host_pool_bytes.*MemAvailable"):
        config.available_bytes(meminfo)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("64MiB", 64 * MIB),
        ("1GiB", GIB),
        ("1024", 1024),
        ("3KiB", 3072),
        ("7B", 7),
        ("2 MiB", 2 * MIB),
    ],
)
def test_sizes_are_read_with_their_unit(text: str, nbytes: int) -> None:
    """Binary units and plain bytes, and `format_bytes` writes what is read back."""
    assert parse_bytes("x", text, 0, 2**60) == nbytes
    assert parse_bytes("x", format_bytes(nbytes), 0, 2**60) == nbytes


@pytest.mark.parametrize("text", ["", "64MB", "1.5GiB", "-1", "MiB", "1e9", "٣MiB", "9" * 40])
def test_other_forms_of_sizes_are_refused(text: str) -> None:
    """Decimal units, fractions, signs and what is no number: the message says what is read."""
    with pytest.raises(ConfigError, match="1KiB to 1GiB, such as 64MiB"):
        parse_bytes("x", text, 1024, GIB)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("shm_gpus", "0", "1 to 64"),
        ("shm_gpus", "65", "1 to 64"),
        ("shm_gpus", "eight", "1 to 64"),
        ("gpu", "GPU-0", "a UUID as `nvidia-smi -L`"),
        ("gpu", "GPU-00000000-0000-0000-0000-000000000000", "either this or shm_gpus"),
        ("handles", "both", "legacy, vmm"),
        ("shm_gpu_bytes", "1MiB", "16MiB to 4TiB"),
        ("shm_gpu_bytes", "33MiB", "multiple of 2MiB"),
        ("keepers", "mine", "spawn, external"),
        ("lend_to_own_gpu", "yes", "true, false"),
        ("term_seconds", "nan", "0.5 to 600"),
        ("term_seconds", "0", "0.5 to 600"),
        ("term_seconds", "soon", "0.5 to 600"),
        ("host_pool_bytes", "lots", "0 to"),
        ("socket", "aqua.sock", "absolute"),
        ("socket", "/tmp/" + "x" * 100, "105 bytes; a Unix socket allows 96"),
        ("metrics", "127.0.0.1", "ADDRESS:PORT"),
        ("metrics", "127.0.0.1:65536", "65535"),
        ("metrics", "127.0.0.1:-1", "65535"),
        ("metrics", "node7:9000", "numeric address"),
        ("metrics", "0.0.0.0:9000", "--metrics-any-address"),
        ("metrics", "[::]:9000", "--metrics-any-address"),
        ("group", "no-such-group", "a group of this machine"),
        ("admin_group", "no-such-group", "a group of this machine"),
        ("colour", "blue", "no such setting"),
    ],
)
def test_a_refusal_names_setting_value_and_range(key: str, value: str, allowed: str) -> None:
    """Whoever reads the message knows what to type instead."""
    with pytest.raises(ConfigError) as caught:
        read(**{key: value})
    assert str(caught.value).startswith(f"{key} = {value!r}: ")
    assert allowed in str(caught.value)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"metrics": "127.0.0.1:0"}, ("127.0.0.1", 0)),
        ({"metrics": "localhost:80"}, ("127.0.0.1", 80)),
        ({"metrics": "[::1]:80"}, ("::1", 80)),
        ({"metrics": "127.9.9.9:80"}, ("127.9.9.9", 80)),
        ({"metrics": "10.1.2.3:80", "metrics_any_address": "true"}, ("10.1.2.3", 80)),
    ],
)
def test_metrics_stay_on_loopback_unless_told(
    given: dict[str, str], expected: tuple[str, int]
) -> None:
    """Any loopback address and port is taken; another address only with the flag."""
    found = read(**given)
    assert (found.metrics_host, found.metrics_port) == expected


def test_the_longest_socket_path_fits_with_every_suffix() -> None:
    """A path of the greatest length is accepted, and so are all addresses made from it."""
    path = "/" + "x" * 95
    found = read(socket=path)
    for address in (found.socket, found.presence_socket, found.keeper_socket):
        assert len(address.encode()) <= config.LONGEST_ADDRESS_BYTES
    with pytest.raises(ConfigError, match="97 bytes"):
        read(socket=path + "x")
    assert checked_socket("/" + "x" * 106, suffix="") == "/" + "x" * 106


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "15000000"}, 15.0),
        ({"WATCHDOG_USEC": "15000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "15000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_service_managers_words_are_read(
    environment: dict[str, str], seconds: float | None
) -> None:
    """Whom to notify, and how often, if that is meant for this process."""
    found = read_config(NODE, environment={**environment, "NOTIFY_SOCKET": "@n"})
    assert (found.notify_socket, found.watchdog_seconds) == ("@n", seconds)


def test_the_slab_sizes_are_the_keepers() -> None:
    """The daemon promises clients what the keepers of either kind make."""
    shm, cuda = read(), read_config({}, environment={})
    assert (shm.smallest_slab_bytes, shm.largest_slab_bytes) == (
        program.SMALLEST_SHM_SLAB_BYTES,
        program.LARGEST_SHM_SLAB_BYTES,
    )
    assert (cuda.smallest_slab_bytes, cuda.largest_slab_bytes) == (
        program.SMALLEST_CUDA_SLAB_BYTES,
        program.LARGEST_CUDA_SLAB_BYTES,
    )


def test_without_stand_ins_the_cuda_gpus_are_lent() -> None:
    """All of them, or those that are named; each has a keeper and a socket of its own."""
    found = read_config({"socket": "/tmp/a.sock"}, environment={})
    assert (found.shm_gpus, found.gpus, found.handles) == (0, (), "legacy")
    assert found.tenant_quota_bytes == config.LARGEST_POOL_BYTES
    named = tuple(f"GPU-{number:08x}-89ab-cdef-0123-456789abcdef" for number in range(2))
    found = read_config({"gpu": ",".join(named), "handles": "vmm"}, environment={})
    assert (found.gpus, found.handles) == (named, "vmm")
    assert found.keeper_socket_of(named[1]) == f"/run/aqua/aqua.sock.keeper-{named[1]}"


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"keepers": "external"}, "name each GPU whose keeper runs"),
        ({"gpu": "SHM-0"}, "a UUID as"),
        (
            {
                "gpu": "GPU-01234567-89ab-cdef-0123-456789abcdef,GPU-01234567-89ab-cdef-0123-456789abcdef"
            },
            "once",
        ),
        ({"socket": "/tmp/" + "x" * 60}, "65 bytes; a Unix socket allows 59"),
    ],
)
def test_wrong_words_about_cuda_gpus_are_refused(given: dict[str, str], allowed: str) -> None:
    """Before anything is started, with what would be right."""
    with pytest.raises(ConfigError, match=allowed):
        read_config(given, environment={})


def test_the_limits_are_those_of_the_parts_that_hold_them() -> None:
    """What the file calls the default is what a part that is told nothing goes by."""
    limits = read_config({"shm_gpus": "2"}, environment={}).limits
    calls, presence = CallLimits(), PresenceLimits()
    assert (limits.calls_per_process, limits.calls_per_uid) == (
        calls.under_way_per_process,
        calls.under_way_per_uid,
    )
    assert (limits.calls_per_second_per_process, limits.calls_per_second_per_uid) == (
        calls.per_second_per_process,
        calls.per_second_per_uid,
    )
    assert limits.connections_per_uid == presence.connections_per_uid
    assert limits.sessions_per_process == presence.sessions_per_process
    core = {field.name: field.default for field in fields(BrokerSettings)}
    assert limits.tenant_quota_leases == core["tenant_quota_leases"]
    assert limits.tenant_quota_sessions == core["tenant_quota_sessions"]


@pytest.mark.parametrize("key", LIMIT_DEFAULTS)
@pytest.mark.parametrize("word", ["0", "-1", "1.5", "many", f"{LARGEST_LIMIT + 1}"])
def test_a_limit_is_a_whole_number_above_nothing(key: str, word: str) -> None:
    """Nothing at all is what `aquactl quota set` can say of one tenant, not a node's default."""
    with pytest.raises(ConfigError, match=f"{key} = '{word}': give a whole number from 1 to"):
        read_config({"shm_gpus": "2", key: word}, environment={})


def test_the_group_that_stands_for_unknown_ones_makes_no_admins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every group of a user namespace that is not mapped here has its number."""
    ours = grp.getgrgid(os.getgid())
    assert read(admin_group=ours.gr_name).admin_group == ours.gr_name
    (tmp_path / "overflowgid").write_text(f"{ours.gr_gid}\n")
    monkeypatch.setattr(config, "_OVERFLOW_GID", tmp_path / "overflowgid")
    with pytest.raises(ConfigError, match="can't name here"):
        read(admin_group=ours.gr_name)


def test_standard_error_is_the_journals_only_where_systemd_says_so() -> None:
    """It names the file by device and inode; a redirected one is another."""
    found = os.fstat(2)
    stream = f"{found.st_dev}:{found.st_ino}"
    for words, is_journal in (
        ({}, False),
        ({"JOURNAL_STREAM": "1:2"}, False),
        ({"JOURNAL_STREAM": stream}, True),
    ):
        assert read_config(NODE, environment=words).logs_to_journal is is_journal
