"""The settings that say what is lent of each GPU, and when memory moves between tenants.

Covers each one's default and range. Does not cover the rules that they are for (core.lending,
core.balancing, core.links).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aqua_daemon.config_words import (
    ConfigError,
    format_bytes,
    one_of,
    parse_bytes,
    parse_seconds,
    parse_truth,
)
from aqua_daemon.core.model import GpuUuid, LendingPolicy
from aqua_daemon.core.sizes import GIB, HOST_BYTES_PER_SECOND, MIB

LENDING_DEFAULTS: Mapping[str, str] = {
    "lending": LendingPolicy.AUTO.value,
    "lending_of": "",  # as `lending` says
    "settle_seconds": "30",
    "newcomer_seconds": "10",
    "ramp_seconds": "5",
    "rebalance_seconds": "5",
    "rest_seconds": "30",
    "lend_over_pcie": "false",
    "host_bytes_per_second": format_bytes(int(HOST_BYTES_PER_SECOND)),
}
# Below, a slab of 256 MiB takes minutes; above, no way to host memory is.
SLOWEST_HOST_BYTES, FASTEST_HOST_BYTES = MIB, 1024 * GIB
POLICIES = tuple(policy.value for policy in LendingPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class LendingConfig:
    """What is lent, and when it moves."""

    lending: LendingPolicy  # of GPUs that `lending_of` does not name
    lending_of: Mapping[GpuUuid, LendingPolicy]
    settle_seconds: float
    newcomer_seconds: float
    ramp_seconds: float
    rebalance_seconds: float
    rest_seconds: float
    lend_over_pcie: bool
    host_bytes_per_second: int  # what all evacuations together get of the way to host memory


def read_lending(words: Mapping[str, str]) -> LendingConfig:
    """Each from its word.

    Raises:
        ConfigError: the first that is not what it may be.
    """
    return LendingConfig(
        lending=LendingPolicy(one_of("lending", words, POLICIES)),
        lending_of=_policies(words["lending_of"]),
        settle_seconds=parse_seconds("settle_seconds", words["settle_seconds"]),
        newcomer_seconds=parse_seconds("newcomer_seconds", words["newcomer_seconds"]),
        ramp_seconds=parse_seconds("ramp_seconds", words["ramp_seconds"]),
        rebalance_seconds=parse_seconds("rebalance_seconds", words["rebalance_seconds"]),
        rest_seconds=parse_seconds("rest_seconds", words["rest_seconds"]),
        lend_over_pcie=parse_truth("lend_over_pcie", words),
        host_bytes_per_second=parse_bytes(
            "host_bytes_per_second",
            words["host_bytes_per_second"],
            SLOWEST_HOST_BYTES,
            FASTEST_HOST_BYTES,
        ),
    )


def _policies(text: str) -> dict[GpuUuid, LendingPolicy]:
    found: dict[GpuUuid, LendingPolicy] = {}
    for part in filter(None, text.split(",")):
        gpu, _, policy = part.strip().partition("=")
        if not gpu or gpu in found or policy not in POLICIES:
            allowed = (
                f"give each GPU once, as UUID=POLICY; a policy is one of {', '.join(POLICIES)}"
            )
            raise ConfigError("lending_of", text, allowed)
        found[GpuUuid(gpu)] = LendingPolicy(policy)
    return found
