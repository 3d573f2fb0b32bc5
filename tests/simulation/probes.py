"""Links measured at random: keepers that answer, late or never, and what the judge wants of a request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aqua_daemon.core.events import Event, LinkProbed
from aqua_daemon.core.instructions import AnswerLinkProbe, ProbeLink
from aqua_daemon.core.link_figures import LinkOutcome, LinkSample
from aqua_daemon.core.model import RequestId
from aqua_daemon.core.sizes import PROBE_SECONDS
from tests.simulation.judge import require
from tests.simulation.stage import Stage

_SLACK = 0.15  # a tick, and half of one


def measure(order: ProbeLink, stage: Stage, submit: Callable[[Event], None]) -> None:
    """What the keepers of a link say of it: figures, a refusal, nothing, or too late."""
    chance = stage.chance
    if chance.happens(0.1):
        return
    rate = chance.between(5e9, 400e9)
    samples = tuple(LinkSample(nbytes=one, seconds=one / rate) for one in order.sizes)
    failed = LinkOutcome(pair=order.pair, problem="it can't be opened")
    outcome = failed if chance.happens(0.2) else LinkOutcome(pair=order.pair, samples=samples)
    told = LinkProbed(request_id=order.request_id, outcome=outcome)
    stage.agenda.after(chance.latency(pauses=0.3), partial(submit, told))


class Probes:
    """Judges requests to measure."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._under_way: dict[RequestId, float] = {}  # since when

    def ordered(self, order: ProbeLink) -> None:
        """One request at a time, of several links at most."""
        self._under_way.setdefault(order.request_id, self._stage.now)
        self.look()

    def answered(self, answer: AnswerLinkProbe) -> None:
        """Each link with figures or a reason, in time."""
        self.look()
        self._under_way.pop(answer.request_id, None)
        for outcome in answer.outcomes:
            has_one = bool(outcome.samples) is not bool(outcome.problem)
            require(has_one, "a link has figures and a problem, or neither: {}", outcome)
            self._stage.count("links measured" if outcome.samples else "links not measured")

    def look(self) -> None:
        """Nobody waits longer than a keeper that hangs is waited for."""
        require(len(self._under_way) <= 1, "measured at the same time: {}", self._under_way)
        for request_id, since in self._under_way.items():
            late = self._stage.now - since > PROBE_SECONDS + _SLACK
            require(not late, "{} waits since {}", request_id, since)
