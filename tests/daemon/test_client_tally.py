"""Clients' own figures: what is new is added once, whoever comes and goes."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import pytest
from aqua_protos import presence_pb2

from aqua_client.counters import FETCH_BOUNDS_NANOSECONDS, Counters
from aqua_client.counters import TIERS as CLIENT_TIERS
from aqua_client.wire_frames import keepalive_frame
from aqua_daemon.adapters.client_tally import OTHER_REASON, ClientTally, links_used
from aqua_daemon.adapters.wire import frames
from aqua_daemon.adapters.wire.figures import (
    FETCH_BUCKETS_SECONDS,
    FETCH_TIERS,
    MOST_REASONS,
    ClientFigures,
    FetchDurations,
    client_figures,
)
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.events import Event, LinksUsed
from aqua_daemon.core.model import SessionId
from tests.daemon.samples import ROOM, SESSION_ID
from tests.nodes import REPOSITORY

OTHER_SESSION = SessionId("6f" * 16)


def done(nbytes: int, **fallbacks: int) -> ClientFigures:
    """A client that has moved so many bytes each way, in one fetch each of so many nanoseconds."""
    counts = (nbytes, *[0] * len(FETCH_BUCKETS_SECONDS))
    return ClientFigures(
        offload_bytes={"peer": nbytes, "host": 2 * nbytes},
        fetch_bytes={"peer": 3 * nbytes, "host": 4 * nbytes},
        evacuated_bytes=5 * nbytes,
        promoted_bytes=6 * nbytes,
        fallbacks=fallbacks,
        fetch_durations={"peer": FetchDurations(counts=counts, sum_nanoseconds=6 * nbytes)},
    )


@pytest.fixture
def tally() -> ClientTally:
    made = ClientTally()
    made.greeted(SESSION_ID, None)
    return made


def test_what_is_new_is_added(tally: ClientTally) -> None:
    """Absolute figures come again and again; each byte counts once."""
    for nbytes in (10, 10, 25):
        tally.said(SESSION_ID, done(nbytes, no_room=nbytes))
    total = tally.totals()
    assert total.offload_bytes == {"peer": 25, "host": 50}
    assert total.fetch_bytes == {"peer": 75, "host": 100}
    assert total.evacuated_bytes == 125
    assert total.promoted_bytes == 150
    assert total.fallbacks["no_room"] == 25
    assert total.fetch_durations["peer"].counts[0] == 25
    assert total.fetch_durations["peer"].sum_nanoseconds == 150


def test_sessions_add_up_and_stay_counted(tally: ClientTally) -> None:
    """Two clients are a sum, which does not fall when one of them is over."""
    tally.greeted(OTHER_SESSION, None)
    tally.said(SESSION_ID, done(10))
    tally.said(OTHER_SESSION, done(3))
    tally.forget(SESSION_ID)
    assert tally.totals().evacuated_bytes == 65
    tally.said(SESSION_ID, done(100))  # of a session that is over
    assert tally.totals().evacuated_bytes == 65


def test_a_session_that_comes_again_is_not_counted_twice(tally: ClientTally) -> None:
    """To the same daemon: its own memory counts, whatever the greeting says."""
    tally.said(SESSION_ID, done(10))
    tally.greeted(SESSION_ID, None)
    tally.said(SESSION_ID, done(12))
    assert tally.totals().evacuated_bytes == 60


def test_a_new_daemon_counts_from_what_was_heard_before() -> None:
    """Counters begin at 0, and only what nobody has heard yet is added."""
    tally = ClientTally()
    tally.greeted(SESSION_ID, done(10, no_room=4))
    assert tally.totals().evacuated_bytes == 0
    tally.said(SESSION_ID, done(12, no_room=5))
    assert tally.totals().evacuated_bytes == 10
    assert tally.totals().fallbacks["no_room"] == 1


def test_figures_that_fall_take_nothing_back(tally: ClientTally) -> None:
    """A client that lies or counts anew changes nothing until it is past what it had said."""
    tally.said(SESSION_ID, done(10, no_room=3))
    tally.said(SESSION_ID, done(1))
    assert tally.totals().evacuated_bytes == 50
    tally.said(SESSION_ID, done(11, no_room=3))
    assert tally.totals().evacuated_bytes == 55
    assert tally.totals().fallbacks["no_room"] == 3


def test_unknown_reasons_are_other(tally: ClientTally) -> None:
    """A client can't make labels, nor have the daemon remember its words."""
    for number in range(100):
        tally.said(SESSION_ID, done(1, **{f"r{number}": 1, "x": number}))
    fallbacks = tally.totals().fallbacks
    assert set(fallbacks) == set(ClientTally().totals().fallbacks)
    assert fallbacks[OTHER_REASON] == 100


def test_a_client_without_figures_counts_nothing(tally: ClientTally) -> None:
    """An older release says nothing of what it does."""
    tally.said(SESSION_ID, None)
    assert tally.totals() == ClientTally().totals()


def test_totals_that_were_read_do_not_change(tally: ClientTally) -> None:
    """A scrape's figures are of one moment."""
    before = tally.totals()
    tally.said(SESSION_ID, done(10))
    assert before.evacuated_bytes == 0


def test_every_reason_of_the_client_has_its_name() -> None:
    """Whatever literal the client gives as a reason is counted as that, not as `other`."""
    named: set[str] = set()
    for path in (REPOSITORY / "aqua_client").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            # What an informer decides goes nowhere: it is no fallback.
            if isinstance(call, ast.Call) and ast.unparse(call.func) != "Nothing":
                words = [one.value for one in call.keywords if one.arg == "reason"]
                words += call.args if re.search(r"\bShortage\b", ast.unparse(call.func)) else []
                named |= {str(one.value) for one in words if isinstance(one, ast.Constant)}
    assert len(named) > 10
    assert named - {"", "closed"} <= set(ClientTally().totals().fallbacks)


def test_the_clients_frame_is_understood() -> None:
    """What the library counts arrives as it was, buckets and all."""
    counters = Counters()
    counters.peer_out_bytes, counters.host_out_bytes = 1, 2
    counters.peer_in_bytes, counters.host_in_bytes, counters.evacuated_bytes = 3, 4, 5
    counters.count_fallback("breaker")
    counters.fetch_durations["mixed"].count(200_000)
    payload = keepalive_frame(1, (), ROOM, counters.figures())  # type: ignore[arg-type] # the same fields
    frame = frames.client_frame(payload)
    assert isinstance(frame, frames.Keepalive)
    said = frame.figures
    assert said is not None
    assert (said.offload_bytes, said.fetch_bytes) == (
        {"peer": 1, "host": 2},
        {"peer": 3, "host": 4},
    )
    assert (said.evacuated_bytes, said.fallbacks) == (5, {"breaker": 1})
    assert said.fetch_durations["mixed"].counts[1] == 1
    assert said.fetch_durations["mixed"].sum_nanoseconds == 200_000


def test_both_sides_mean_the_same_buckets_and_tiers() -> None:
    """They are agreed on in the frame's description, not sent."""
    assert [round(one * 10**9) for one in FETCH_BUCKETS_SECONDS] == [*FETCH_BOUNDS_NANOSECONDS]
    assert FETCH_TIERS == CLIENT_TIERS


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (presence_pb2.ClientFigures(peer_offload_bytes=-1), "peer_offload_bytes is -1"),
        (presence_pb2.ClientFigures(evacuated_bytes=2**63 - 1), "evacuated_bytes"),
        (presence_pb2.ClientFigures(fallbacks={"no_room": -1}), "fallbacks is -1"),
        (presence_pb2.ClientFigures(fallbacks={"x" * 200: 1}), "printable"),
        (
            presence_pb2.ClientFigures(fallbacks={f"r{n}": 1 for n in range(MOST_REASONS + 1)}),
            "at most 64",
        ),
        (
            presence_pb2.ClientFigures(
                fetch_durations={"peer": presence_pb2.FetchDurations(counts=[1])}
            ),
            "send 10",
        ),
    ],
)
def test_bad_figures_are_refused(message: presence_pb2.ClientFigures, match: str) -> None:
    """As every other message of a client."""
    with pytest.raises(InvalidRequest, match=match):
        client_figures(message)


def test_a_tier_of_a_later_release_is_left_out() -> None:
    """It is no reason to refuse the rest."""
    message = presence_pb2.ClientFigures(
        evacuated_bytes=1, fetch_durations={"moon": presence_pb2.FetchDurations()}
    )
    assert client_figures(message) == replace(ClientFigures(evacuated_bytes=1), fetch_durations={})


def test_what_is_new_of_links_is_told_once(tally: ClientTally) -> None:
    """As the client counts it, over the wire, to an event; in no sum, whatever names it has."""
    told: list[Event] = []
    tally.on_links = links_used(told.append)
    counters = Counters()
    for nanoseconds in (2_000_000, 1_000_000):
        counters.count_link("SHM-1", 2**20, nanoseconds)
        for _ in range(2):
            keepalive = presence_pb2.ClientFrame.FromString(
                keepalive_frame(1, (), ROOM, counters.figures())  # type: ignore[arg-type] # as above
            ).keepalive
            tally.said(SESSION_ID, client_figures(keepalive.figures))
    uses = [use for event in told if isinstance(event, LinksUsed) for use in event.uses]
    assert [(one.fetches, one.nbytes, one.seconds) for one in uses] == [
        (1, 2**20, 0.002),
        (1, 2**20, 0.001),
    ]
    assert tally.totals().fetched_from == {}


@pytest.mark.parametrize(
    "said",
    [
        {"a b": presence_pb2.LinkUse()},
        {"SHM-1": presence_pb2.LinkUse(nbytes=-1)},
        {f"SHM-{n}": presence_pb2.LinkUse() for n in range(65)},
    ],
)
def test_links_that_can_not_be_are_refused(said: dict[str, presence_pb2.LinkUse]) -> None:
    """Names that are none, figures below 0, more GPUs than a node has."""
    message = presence_pb2.ClientFigures()
    for name, use in said.items():
        message.fetched_from[name].CopyFrom(use)
    with pytest.raises(InvalidRequest):
        client_figures(message)
