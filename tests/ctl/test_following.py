"""Reading the node's story page by page."""

from __future__ import annotations

import json

import pytest
from aqua_protos import broker_pb2

from aqua_daemon.ctl.documents import event_document
from aqua_daemon.ctl.following import Place, page
from aqua_daemon.ctl.screens import event_line

EVENT = broker_pb2.EventLine(seconds_ago=5.0, text="it happened", tenant="uid-1000", number=3)
HERE = Place(epoch="one", cursor=2)


def reply(epoch: str, *, partial: bool = False) -> broker_pb2.GetEventsReply:
    return broker_pb2.GetEventsReply(epoch=epoch, cursor=3, partial=partial, events=[EVENT])


@pytest.mark.parametrize(
    ("place", "answer", "remark"),
    [
        (Place(), reply("one"), ""),
        (Place(), reply("one", partial=True), ""),
        (HERE, reply("one"), ""),
        (HERE, reply("one", partial=True), "some events are missing"),
        (HERE, reply("two"), "another daemon"),
        (HERE, reply("two", partial=True), "another daemon"),
    ],
)
def test_a_reader_is_told_what_it_could_not_know(
    place: Place, answer: broker_pb2.GetEventsReply, remark: str
) -> None:
    """A gap and a new daemon are said, the beginning is not; the cursor is the reply's."""
    found = page(place, answer)
    assert remark in found.remark
    assert bool(found.remark) == bool(remark)
    assert found.events == (EVENT,)
    assert found.place == Place(epoch=answer.epoch, cursor=3)


def test_an_event_has_the_time_of_the_wall() -> None:
    """Five seconds before now, for people and for machines."""
    assert event_line(EVENT, now=5.0) == event_line(
        broker_pb2.EventLine(text="it happened"), now=0.0
    )
    found = json.loads(json.dumps(event_document(EVENT, now=1000.0)))
    assert found["time"] == 995.0
    assert (found["schema"], found["tenant"], found["number"]) == (1, "uid-1000", 3)
