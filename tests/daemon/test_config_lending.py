"""What is lent of each GPU, as settings: defaults, forms, and refusals that name what is allowed."""

from __future__ import annotations

import pytest

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
        rebalance_seconds=5.0,
        lend_over_pcie=False,
    )


def test_single_gpus_may_have_a_policy_of_their_own() -> None:
    """Named by UUID, in any number; spaces after commas are of people."""
    found = read(lending="offered", lending_of="SHM-0=never, SHM-1=auto")
    assert found.lending is LendingPolicy.OFFERED
    assert found.lending_of == {
        GpuUuid("SHM-0"): LendingPolicy.NEVER,
        GpuUuid("SHM-1"): LendingPolicy.AUTO,
    }


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
        ("lend_over_pcie", "yes", "true, false"),
    ],
)
def test_what_is_no_such_setting_is_refused_with_what_is(key: str, word: str, allowed: str) -> None:
    """The message names the setting, its value and what it may be."""
    with pytest.raises(ConfigError) as caught:
        read(**{key: word})
    assert f"{key} = {word!r}: " in str(caught.value)
    assert allowed in str(caught.value)
