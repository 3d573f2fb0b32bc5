"""What doctor writes down: read from texts of the kernel and systemd, and from the real machine."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from aqua_daemon.ctl.doctor.examining import (
    cgroups,
    examine,
    holder_of,
    look_at_socket,
    metrics_flag,
    open_files_limit,
    proc_options,
    units_of,
)
from aqua_daemon.ctl.doctor.machine import Cgroups, Holder, Unit
from aqua_daemon.ctl.doctor.nvidia import driver_version, examine_nvidia

LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max processes             515244               515244               processes
Max open files            {}                   524288               files
"""
SHOWN = """Id=aqua-daemon.service
LoadState=loaded
ActiveState=active
UnitFileState=enabled

Id=aqua-keeper@shm.service
LoadState=loaded
ActiveState=inactive
UnitFileState=
"""
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Release Build\n"


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ("proc /proc proc rw,nosuid,relatime 0 0\n", ("", "")),
        ("proc /proc proc rw,hidepid=2 0 0\n", ("2", "")),
        ("proc /proc proc rw,gid=0,hidepid=invisible 0 0\n", ("invisible", "root")),
        ("proc /proc proc rw,hidepid=2 0 0\nproc /proc proc rw 0 0\n", ("", "")),
        ("tmpfs /tmp tmpfs rw,hidepid=2 0 0\n", ("", "")),
    ],
)
def test_what_proc_hides_is_in_its_mount(mounts: str, found: tuple[str, str]) -> None:
    """The mount on top counts."""
    assert proc_options(mounts) == found


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ("0::/user.slice\n", Cgroups.UNIFIED),
        ("12:memory:/\n1:name=systemd:/\n0::/\n", Cgroups.LEGACY),
        ("3:memory:/\n", Cgroups.LEGACY),
        ("", Cgroups.NONE),
    ],
)
def test_the_hierarchies_are_in_a_processs_own_list(own: str, found: Cgroups) -> None:
    """Only the unified one alone is v2."""
    assert cgroups(own) is found


def test_units_are_read_as_systemctl_shows_them() -> None:
    """Blocks with a blank line between them; a unit without a file is not enabled."""
    assert units_of(SHOWN) == (
        Unit(name="aqua-daemon.service", load="loaded", active="active", enabled="enabled"),
        Unit(name="aqua-keeper@shm.service", load="loaded", active="inactive", enabled=""),
    )
    assert units_of("") == ()


@pytest.mark.parametrize(("soft", "found"), [("1024", 1024), ("unlimited", None)])
def test_the_limit_of_open_files_is_the_soft_one(soft: str, found: int | None) -> None:
    """As /proc/PID/limits lists it."""
    assert open_files_limit(LIMITS.format(soft)) == found
    assert open_files_limit("") is None


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["aqua-daemon", "--metrics", "127.0.0.1:9", "--x"], "127.0.0.1:9"),
        (["aqua-daemon", "--metrics=[::1]:9"], "[::1]:9"),
        (["aqua-daemon", "--metrics"], None),
        (["aqua-daemon"], None),
        ([], None),
    ],
)
def test_the_address_of_the_metrics_is_what_the_daemon_was_told(
    arguments: list[str], found: str | None
) -> None:
    """In both forms of a flag."""
    assert metrics_flag(arguments) == found


class Answering(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200 if self.body else 404)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def web_server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'aqua_build_info{version="1"} 1\n', Holder.DAEMON),
        (b"node_exporter_build_info 1\n", Holder.ANOTHER),
        (b"", Holder.ANOTHER),
    ],
)
def test_who_serves_the_metrics_is_told_by_what_it_says(
    web_server: HTTPServer, monkeypatch: pytest.MonkeyPatch, body: bytes, found: Holder
) -> None:
    """A page that is not ours, or none, is another program's."""
    monkeypatch.setattr(Answering, "body", body)
    assert holder_of(f"127.0.0.1:{web_server.server_port}", seconds=5) is found


def test_an_address_without_a_web_server() -> None:
    """Nobody, somebody who says nothing, and one that can't be known."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert holder_of(address, seconds=5) is Holder.NOBODY
        listener.listen()
        assert holder_of(address, seconds=0.1) is Holder.ANOTHER
    assert holder_of("127.0.0.1:0", seconds=5) is Holder.UNKNOWN


def test_the_socket_is_looked_at_where_it_lies(tmp_path: Path) -> None:
    """Missing, a plain file, a socket with its mode and group."""
    path = tmp_path / "aqua.sock.presence"
    assert not look_at_socket(path).is_there
    path.touch()
    assert not look_at_socket(path).is_socket
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        found = look_at_socket(path)
    assert (found.is_socket, found.mode, found.owner) == (True, 0o660, os.getuid())


def test_the_driver_is_known_by_its_files(tmp_path: Path) -> None:
    """Its version, and the nodes that matter; NVML is not asked without a driver."""
    proc, dev = tmp_path / "proc", tmp_path / "dev"
    (proc / "driver" / "nvidia").mkdir(parents=True)
    dev.mkdir()
    for name in ("nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "null"):
        (dev / name).touch()
    found = examine_nvidia(seconds=0.1, proc=proc, dev=dev)
    assert found.driver == ""
    paths = tuple(node.path for node in found.nodes)
    assert paths == ("/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia12", "/dev/nvidiactl")
    assert found.gpus == ()
    version = proc / "driver" / "nvidia" / "version"
    version.write_text(DRIVER)
    assert driver_version(version) == "570.86.15"


def test_this_machine_can_be_examined_without_a_daemon(tmp_path: Path) -> None:
    """Every fact is found out, or written down as unknown; nothing raises."""
    found = examine(tmp_path / "aqua.sock", seconds=1.0, metrics="127.0.0.1:0")
    assert found.kernel == os.uname().release
    assert found.daemon.state is None
    assert "no daemon at" in found.daemon.silence
    assert found.caller.uid == os.geteuid()
    assert not found.socket.is_there
