"""What two releases agree on, for every pair that may meet."""

from __future__ import annotations

import pytest
from aqua_protos.agreement import (
    SPOKEN,
    NoCommonProtocol,
    Protocols,
    agreed_protocol,
)

FIRST = Protocols.said(1, 0)  # 0.1.0, which names no newest


def agreed(theirs: Protocols, ours: Protocols = SPOKEN) -> int:
    return agreed_protocol(theirs, they="the client", we="this daemon", ours=ours)


def test_a_program_speaks_its_own_number_and_the_one_before() -> None:
    """Not more: what is two releases old is not kept alive by accident."""
    assert SPOKEN.newest - SPOKEN.oldest <= 1


@pytest.mark.parametrize(
    ("theirs", "ours", "protocol"),
    [
        (FIRST, FIRST, 1),
        (FIRST, Protocols(1, 2), 1),
        (Protocols(1, 2), FIRST, 1),
        (Protocols(1, 2), Protocols(1, 2), 2),
        (Protocols(1, 2), Protocols(2, 3), 2),
        (Protocols(2, 3), Protocols(1, 2), 2),
        (Protocols(1, 9), Protocols(1, 2), 2),
    ],
)
def test_neighbours_take_the_newest_that_both_speak(
    theirs: Protocols, ours: Protocols, protocol: int
) -> None:
    """Whichever of the two is the older one."""
    assert agreed(theirs, ours) == protocol


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        (
            Protocols(3, 4),
            Protocols(1, 2),
            "the client speaks protocol 3 to 4, this daemon 1 to 2: upgrade this daemon",
        ),
        (
            FIRST,
            Protocols(2, 3),
            "the client speaks protocol 1, this daemon 2 to 3: upgrade the client",
        ),
        (Protocols(0, 0), Protocols(1, 2), "speaks protocol 0, .*: upgrade the client"),
        (Protocols.said(2**32 - 1, 0), Protocols(1, 2), "upgrade this daemon .* at most one apart"),
    ],
)
def test_those_too_far_apart_are_told_both_numbers_and_whom_to_upgrade(
    theirs: Protocols, ours: Protocols, says: str
) -> None:
    """The older one, whoever refuses."""
    with pytest.raises(NoCommonProtocol, match=says):
        agreed(theirs, ours)


def test_nobody_agrees_on_no_protocol() -> None:
    """A first word that names none is no word of ours."""
    with pytest.raises(NoCommonProtocol):
        agreed(Protocols.said(0, 0), Protocols(0, 2))
