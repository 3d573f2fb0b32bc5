"""A node whose keeper is killed again and again: it rests, says so, and an admin wakes it."""

from __future__ import annotations

import json

from tests.end_to_end.test_aquactl_drain import aquactl
from tests.nodes import MIB, Node, running_node, wait_until

REST_SECONDS = 300


def troubles(node: Node) -> set[str]:
    return {gpu["trouble"] for gpu in json.loads(aquactl(node, "status", "--json").stdout)["gpus"]}


def is_lent(node: Node) -> bool:
    return node.scrape()['aqua_lendable_bytes{gpu="SHM-0"}'] > 0


def kill_keeper(node: Node) -> None:
    """And wait for the next one, which finds nothing wrong."""
    ends = 'aqua_keeper_ends_total{gpu="SHM-0"}'
    before = node.scrape()[ends]
    node.kill_keeper()
    wait_until(lambda: node.scrape()[ends] == before + 1, what="its end is noticed")
    unknown = 'aqua_pool_bytes{gpu="SHM-0",state="unknown"}'
    wait_until(lambda: node.scrape()[unknown] == 0, seconds=20.0, what="the next one is heard")


def test_a_gpu_whose_keepers_keep_ending_rests_until_it_is_undrained() -> None:
    """The first end is nothing; after the second nothing is lent, status says why and what to type."""
    with running_node(gpus=2, gpu_bytes=64 * MIB, rest_seconds=REST_SECONDS) as node:
        wait_until(lambda: is_lent(node), what="it is lent")
        kill_keeper(node)
        wait_until(lambda: is_lent(node), what="it is lent again")
        assert troubles(node) == {""}
        kill_keeper(node)
        (trouble,) = troubles(node)
        assert trouble.startswith("2 of its keepers have ended within an hour: it lends nothing")
        assert "aquactl undrain" in trouble
        assert not is_lent(node)
        assert node.scrape()['aqua_gpu_trouble{gpu="SHM-0"}'] == 1
        assert aquactl(node, "undrain", "--all").stdout == "SHM-0, SHM-1: lent again\n"
        wait_until(lambda: is_lent(node), what="it is lent again")
        assert troubles(node) == {""}
