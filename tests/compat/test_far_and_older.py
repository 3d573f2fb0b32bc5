"""What is said where two releases do not know the same: nothing is left out silently."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import aqua_client
from tests.compat.releases import CLIENT, Release
from tests.end_to_end.programs import running_program
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import MIB, running_node, short_directory


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """One that answers in a protocol of the future."""
    with (
        short_directory() as directory,
        FakeDaemon(str(directory / "aqua.sock"), way="grpc") as made,
    ):
        made.protocol = 99
        yield made


def test_a_server_goes_to_host_memory_beside_a_daemon_of_a_far_release(daemon: FakeDaemon) -> None:
    """It is warned once, its bytes are safe, and the reason says what is wrong."""
    with aqua_client.connect(socket=daemon.path) as client:
        with pytest.warns(aqua_client.AquaWarning, match="protocol"):
            parked = client.offload(torch.arange(MIB))
        assert (parked.tier, parked.reason) == ("host", "protocol")
        assert torch.equal(parked.fetch(), torch.arange(MIB))
        assert client.stats()["fallbacks"] == {"protocol": 1}


def test_a_server_that_refuses_host_memory_is_told_what_to_do(daemon: FakeDaemon) -> None:
    """Starting a daemon would not help."""
    with (
        aqua_client.connect(socket=daemon.path, fallback="error") as client,
        pytest.raises(aqua_client.BrokerUnreachable, match="to neighbouring releases") as caught,
    ):
        client.offload(torch.arange(MIB))
    assert caught.value.reason == "protocol"


def test_quotas_that_an_older_daemon_does_not_know_are_not_half_set(
    old: Release, new: Release
) -> None:
    """The bytes are not set either, and whom to upgrade is said; what it knows can be set."""
    with running_node(gpus=2, variables=old.variables, is_steady=False) as node:
        words = ("-m", "aqua_daemon.ctl", "quota")
        where = ("--socket", node.socket)
        refused = new.run(*words, "set", "uid-7", "8MiB", "--leases", "3", *where)
        assert refused.returncode == 1
        assert "(version 0.1.0) does not know quotas of leases and sessions" in refused.stderr
        assert f"upgrade it to this aquactl's version, {new.version}" in refused.stderr
        refused = new.run(*words, "set", "uid-7", "--weight", "2", *where)
        assert "does not know weights and priorities of tenants" in refused.stderr
        assert new.run(*words, "get", "uid-7", *where).returncode == 1  # it has none
        assert new.run(*words, "set", "uid-7", "8MiB", *where).returncode == 0
        shown = new.run(*words, "get", *where).stdout.splitlines()
        assert [line.split() for line in shown if "uid-7" in line] == [
            ["uid-7", "8", "0", "-", "-", "1"]
        ]
        assert "a process:" not in "".join(shown)


def test_an_older_daemon_can_not_be_drained_and_says_so(old: Release, new: Release) -> None:
    """Nothing is asked back there; whom to upgrade is said."""
    with running_node(gpus=2, variables=old.variables, is_steady=False) as node:
        refused = new.run("-m", "aqua_daemon.ctl", "drain", "--all", "--socket", node.socket)
        assert refused.returncode == 1
        assert "(version 0.1.0) does not know Drain" in refused.stderr


@pytest.mark.limit(120)
def test_a_client_of_the_older_release_leaves_a_drained_gpu(old: Release, new: Release) -> None:
    """It does not know the reason, and evacuates all the same; not a byte is wrong."""
    with (
        running_node(gpus=2, gpu_bytes=96 * MIB, is_steady=False) as node,
        running_program(node, tensors=1, source=CLIENT, variables=old.variables) as program,
    ):
        assert program.ask()["tiers"] == ["peer"]
        drained = new.run(
            "-m", "aqua_daemon.ctl", "drain", "--all", "--deadline", "30", "--socket", node.socket
        )
        assert drained.returncode == 0, drained.stderr
        assert drained.stdout.endswith("nothing is lent there any more\n")
        found = program.ask()
        assert (found["intact"], found["wrong"], found["tiers"]) == (True, 0, ["host"])
