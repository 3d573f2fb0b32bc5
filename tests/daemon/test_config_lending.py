"""What is lent of each GPU, as settings: defaults, forms, and refusals that name what is allowed."""

from __future__ import annotations

import pytest

from aqua_daemon.assembly import broker_settings
from aqua_daemon.config import read_config
from aqua_daemon.config_lending import LendingConfig
from aqua_daemon.config_words import ConfigError
from aqua_daemon.core.model import GpuUuid, LendingPolicy


def read(**given: str) -> LendingConfig:
    return read_config({"shm_gpus": "2", **given}, environment={}).lending


def test_the_defaults_are_those_of_the_rules() -> None:
    """Idle memory is lent after half a minute; a new process has ten seconds of quiet."""
    assert read() == LendingConfig(
        lending=LendingPolicy.AUTO,
        lending_of={},
        settle_seconds=30.0,
        newcomer_seconds=10.0,
        ramp_seconds=5.0,
        rebalance_seconds=5.0,
        rest_seconds=30.0,
        lend_over_pcie=False,
        host_bytes_per_second=8 * 2**30,
    )


def test_single_gpus_may_have_a_policy_of_their_own() -> None:
    """Named by UUID, in any number; spaces after commas are of people."""
    found = read(lending="offered", lending_of="SHM-0=never, SHM-1=auto")
    assert found.lending is LendingPolicy.OFFERED
    assert found.lending_of == {
        GpuUuid("SHM-0"): LendingPolicy.NEVER,
        GpuUuid("SHM-1"): LendingPolicy.AUTO,
    }


def test_the_broker_is_told_the_rate_of_evacuations() -> None:
    """In bytes a second, from words such as those of every size."""
    config = read_config({"shm_gpus": "2", "host_bytes_per_second": "512MiB"}, environment={})
    assert broker_settings(config, ()).host_bytes_per_second == 512 * 2**20


@pytest.mark.parametrize(
    ("key", "word", "allowed"),
    [
        ("lending", "sometimes", "auto, offered, never"),
        ("lending_of", "SHM-0", "UUID=POLICY"),
        ("lending_of", "=never", "UUID=POLICY"),
        ("lending_of", "SHM-0=lent", "auto, offered, never"),
        ("lending_of", "SHM-0=never,SHM-0=auto", "each GPU once"),
        ("settle_seconds", "-1", "0 to 600 seconds"),
        ("newcomer_seconds", "soon", "0 to 600 seconds"),
        ("rebalance_seconds", "601", "0 to 600 seconds"),
        ("rest_seconds", "601", "0 to 600 seconds"),
        ("lend_over_pcie", "yes", "true, false"),
        ("host_bytes_per_second", "0", "1MiB to 1TiB"),
        ("host_bytes_per_second", "fast", "1MiB to 1TiB"),
    ],
)
def test_what_is_no_such_setting_is_refused_with_what_is(key: str, word: str, allowed: str) -> None:
    """The message names the setting, its value and what it may be."""
    with pytest.raises(ConfigError) as caught:
        read(**{key: word})
    assert f"{key} = {word!r}: " in str(caught.value)
    assert allowed in str(caught.value)
