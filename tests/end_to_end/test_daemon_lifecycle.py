"""A daemon's life as an operator sees it: start, ready, stop, crash, the next one."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from aqua_protos.health_pb2 import HealthCheckRequest, HealthCheckResponse
from aqua_protos.health_pb2_grpc import HealthStub

from aqua_client.errors import AquaError
from tests.end_to_end.borrower import borrowing
from tests.nodes import MIB, Node, environment, read_line, running_node, short_directory, wait_until

STOP_SECONDS = 10.0  # ten times what is promised: only a hang fails
SERVING = int(HealthCheckResponse.SERVING)


def health(node: Node) -> int:
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        return int(HealthStub(channel).Check(HealthCheckRequest(), timeout=10).status)


def sockets_of(node: Node) -> set[str]:
    return {path.name for path in node.directory.iterdir() if path.is_socket()}


def words(node: Node) -> list[str]:
    return [sys.executable, "-m", "aqua_daemon", *node.flags]


def test_a_ready_daemon_serves() -> None:
    """Healthy, its sockets for owner and group only, every GPU whole and free in the metrics."""
    with running_node(gpus=3, gpu_bytes=32 * MIB) as node:
        assert health(node) == SERVING
        for path in (node.socket, f"{node.socket}.presence"):
            assert stat.S_IMODE(Path(path).stat().st_mode) == 0o660
        metrics = node.scrape()
        for number in range(3):
            free = f'aqua_pool_bytes{{gpu="SHM-{number}",state="free"}}'
            assert metrics[free] == 32 * MIB
        assert metrics["aqua_sessions"] == metrics["aqua_scrape_stale"] == 0


def test_every_line_it_logs_is_json() -> None:
    """Lines that a machine reads, from the start to the stop, and none on stdout but the first."""
    with running_node(gpus=1) as node:
        node.daemon.send_signal(signal.SIGTERM)
        out, _ = node.daemon.communicate(timeout=STOP_SECONDS)
        assert out == ""
        lines = [json.loads(line) for line in node.log().splitlines()]
        assert {"time", "level", "logger"} <= set.intersection(*(set(line) for line in lines))
        assert "KeeperAttached" in [line.get("event") for line in lines]


def test_the_journal_is_told_the_priority_of_each_line() -> None:
    """Where systemd says that standard error is its journal; it takes the number away again."""
    with short_directory() as directory:
        log = directory / "daemon.log"
        log.touch()
        journal = f"{log.stat().st_dev}:{log.stat().st_ino}"
        with running_node(directory, gpus=1, variables={"JOURNAL_STREAM": journal}) as node:
            assert node.terminate_daemon() == 0
            lines = node.log().splitlines()
    assert lines
    assert [line for line in lines if re.match(r"<[3-7]>\{", line) is None] == []


def test_it_may_open_as_many_files_as_it_is_allowed() -> None:
    """A session is three of them: the usual soft limit would end what the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with running_node(gpus=1) as node:
            assert resource.prlimit(node.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_detaches_at_once(number: signal.Signals) -> None:
    """Clients are told, the sockets go, the status is 0, and the keeper keeps the slab."""
    with running_node() as node, borrowing(node) as borrower:
        slab = borrower.borrow(4 * MIB)
        slab.bytes[:6] = b"intact"
        keeper = node.keeper_pid()
        started_at = time.monotonic()
        node.daemon.send_signal(number)
        assert node.daemon.wait(STOP_SECONDS) == 0
        print(f"{number.name} to exit: {time.monotonic() - started_at:.3f} s")
        assert sockets_of(node) == {"aqua.sock.keeper-shm"}
        wait_until(lambda: "detached (restarting)" in borrower.told, what="the client is told")
        assert node.keeper_pid() == keeper
        assert slab.bytes[:6] == b"intact"


def test_a_stop_waits_for_nobody() -> None:
    """A hung keeper and a call that waits for it do not keep the daemon from leaving."""
    with running_node(gpus=2) as node, borrowing(node) as borrower:
        keeper = node.keeper_pid()
        os.kill(keeper, signal.SIGSTOP)
        failed: list[AquaError] = []

        def borrow() -> None:
            try:
                borrower.borrow(4 * MIB)
            except AquaError as error:
                failed.append(error)

        waiting = threading.Thread(target=borrow)
        waiting.start()
        try:
            allocating = 'aqua_leases{state="allocating"}'
            wait_until(lambda: node.scrape()[allocating] == 1, what="the call waits")
            started_at = time.monotonic()
            assert node.terminate_daemon() == 0
            print(f"SIGTERM to exit: {time.monotonic() - started_at:.3f} s")
            waiting.join(STOP_SECONDS)
            assert len(failed) == 1
        finally:
            os.kill(keeper, signal.SIGCONT)
            waiting.join(STOP_SECONDS)


def test_a_log_that_nobody_reads_holds_nobody_up() -> None:
    """With its stderr a pipe that is full, it starts, lends, takes back and stops as ever."""
    with running_node(gpus=2) as node:
        node.terminate_daemon()
        reading, writing = full_pipe()
        process = subprocess.Popen(
            words(node), env=environment(), stdout=subprocess.PIPE, stderr=writing, text=True
        )
        try:
            assert process.stdout is not None
            assert json.loads(read_line(process.stdout, seconds=20))["event"] == "ready"
            with borrowing(node) as borrower:
                for _ in range(3):
                    borrower.give_back(borrower.borrow(4 * MIB))
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_SECONDS) == 0
        finally:
            process.kill()
            process.communicate()
            os.close(reading)
            os.close(writing)


def full_pipe() -> tuple[int, int]:
    """Both ends; whoever writes waits."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"\n" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    return reading, writing


def test_the_next_daemon_adopts_what_a_killed_one_left() -> None:
    """Same keeper, same lease, same bytes; the stale sockets are replaced; the client re-attaches."""
    with running_node() as node, borrowing(node) as borrower:
        slab = borrower.borrow(4 * MIB)
        slab.bytes[:6] = b"intact"
        keeper = node.keeper_pid()
        node.kill_daemon()
        assert {"aqua.sock", "aqua.sock.presence"} <= sockets_of(node)
        node.start_daemon()
        assert node.keeper_pid() == keeper
        assert node.scrape()['aqua_leases{state="leased"}'] == 1
        wait_until(lambda: borrower.told.count("attached") == 2, what="the client is back")
        assert slab.bytes[:6] == b"intact"
        another = borrower.borrow(4 * MIB)
        assert another.grant.lease_id != slab.grant.lease_id
        borrower.give_back(slab)
        borrower.give_back(another)


def test_a_second_daemon_is_refused_and_the_first_goes_on() -> None:
    """Exit status 1, naming the process to stop; nothing of the first one's is touched."""
    with running_node(gpus=1) as node:
        inode = Path(node.socket).stat().st_ino
        second = subprocess.run(
            words(node),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert (second.returncode, second.stdout) == (1, "")
        assert f"process {node.pid} holds {node.socket}.lock" in second.stderr
        assert Path(node.socket).stat().st_ino == inode
        assert health(node) == SERVING


def test_a_metrics_port_in_use_is_refused_before_anything_is_started() -> None:
    """Exit status 1 and what to change; no keeper is left behind, no socket either."""
    with running_node(gpus=1) as node, short_directory() as directory:
        taken = node.metrics_url.removeprefix("http://").removesuffix("/metrics")
        flags = ["--shm-gpus", "1", "--socket", str(directory / "s"), "--metrics", taken]
        second = subprocess.run(
            [sys.executable, "-m", "aqua_daemon", *flags],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert second.returncode == 1
        assert f"metrics can't be served at {taken}" in second.stderr
        assert "--metrics" in second.stderr
        assert {path.name for path in directory.iterdir()} == {"s.lock"}


def test_a_keeper_that_was_killed_is_replaced() -> None:
    """The daemon stays, notes the loss, starts another keeper, and lends again."""
    with running_node(gpus=2) as node, borrowing(node) as borrower:
        borrower.borrow(4 * MIB)
        node.kill_keeper()
        wait_until(lambda: any(told.startswith("lost 1") for told in borrower.told), seconds=20)
        borrower.slabs.pop().bytes.close()
        assert node.scrape()["aqua_sessions"] == 1
        lendable = 'aqua_lendable_bytes{gpu="SHM-1"}'
        wait_until(lambda: node.scrape()[lendable] > 0, seconds=20, what="a new keeper")
        borrower.give_back(borrower.borrow(4 * MIB))


def test_external_keepers_are_used_and_never_started() -> None:
    """Ready without a keeper, granting nothing; one that comes later is found."""
    with running_node(gpus=2, gpu_bytes=32 * MIB, keepers="external") as node:
        assert not Path(node.keeper_socket).exists()
        free = 'aqua_pool_bytes{gpu="SHM-0",state="free"}'
        assert node.scrape()[free] == 0
        flags = ["--shm-gpus", "2", "--shm-gpu-bytes", "32MiB", "--socket", node.keeper_socket]
        keeper = subprocess.Popen(
            [sys.executable, "-m", "aqua_daemon", "keeper", *flags],
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: node.scrape()[free] == 32 * MIB, seconds=20, what="it is found")
            assert node.keeper_pid() == keeper.pid
        finally:
            keeper.terminate()
            keeper.wait(10)


def test_a_stop_while_keepers_are_awaited_is_heard() -> None:
    """SIGTERM before the node is ready ends it with 0, and nobody was told that it is ready."""
    with short_directory() as directory:
        path = directory / "made" / "s"
        flags = ["--shm-gpus", "1", "--socket", str(path), "--keepers", "external"]
        daemon = subprocess.Popen(
            [sys.executable, "-m", "aqua_daemon", *flags, "--metrics", "127.0.0.1:0"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            wait_until(path.is_socket, seconds=20, what="it listens, in a directory that it made")
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
            daemon.terminate()
            out, _ = daemon.communicate(timeout=STOP_SECONDS)
        finally:
            daemon.kill()
        assert (daemon.returncode, out) == (0, "")


def test_the_longest_path_that_is_accepted_serves() -> None:
    """A node works at a socket path of the greatest length, with all that is named after it."""
    with short_directory() as directory:
        deep = directory / ("x" * (96 - len(str(directory)) - len("//aqua.sock")))
        with running_node(deep, gpus=2) as node, borrowing(node) as borrower:
            assert len(os.fsencode(node.socket)) == 96
            borrower.give_back(borrower.borrow(4 * MIB))


def test_nobody_reading_stdout_is_no_reason_to_stop() -> None:
    """A daemon whose starter went away serves all the same."""
    with short_directory() as directory:
        path = directory / "s"
        flags = ["--shm-gpus", "1", "--socket", str(path), "--keepers", "external"]
        reading, writing = os.pipe()
        os.close(reading)
        daemon = subprocess.Popen(
            [sys.executable, "-m", "aqua_daemon", *flags, "--metrics", "127.0.0.1:0"],
            env=environment(),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writing)
        try:
            assert daemon.stderr is not None
            assert "not every keeper" in read_line(daemon.stderr, seconds=30)
            assert daemon.poll() is None
            daemon.terminate()
            daemon.communicate(timeout=STOP_SECONDS)
        finally:
            daemon.kill()
        assert daemon.returncode == 0


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_clients_that_come_and_go_leave_no_descriptors_behind() -> None:
    """Daemon and keeper hold as many after thirty sessions with a lease each as after one."""
    with running_node(gpus=2) as node:

        def come_and_go() -> None:
            with borrowing(node) as borrower:
                borrower.give_back(borrower.borrow(4 * MIB))

        def held() -> tuple[int, int]:
            return descriptors_of(node.pid), descriptors_of(node.keeper_pid())

        come_and_go()
        wait_until(lambda: node.scrape()["aqua_sessions"] == 0, what="the first one is forgotten")
        after_one = held()
        for _ in range(30):
            come_and_go()
        wait_until(
            lambda: all(now <= then for now, then in zip(held(), after_one, strict=True)),
            what=f"as few descriptors as after one: {held()}, {after_one}",
        )
