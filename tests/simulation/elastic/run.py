"""One elastic run: storms, each followed by a time in which load is steady and shares are judged."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.model import BrokerSettings, GpuUuid, RevokeReason
from aqua_daemon.core.sizes import REST_SECONDS, reserve_bytes
from tests.simulation.chance import Chance
from tests.simulation.daemon import BrokerLike
from tests.simulation.elastic.patterns import Breathing
from tests.simulation.elastic.scenario import ElasticScenario, elastic_scenario_for
from tests.simulation.elastic.shares import Shares
from tests.simulation.elastic.weather import Household
from tests.simulation.judge import require
from tests.simulation.node import Node
from tests.simulation.run import Outcome, audit, everybody_leaves, heal, outcome_of, pass_time

_LOOK_SECONDS = 0.25
_LOOKS_PER_AUDIT = 12
_STEADY_PERIODS = 8  # of rebalancing, until everybody has its share
_RETRY_SECONDS = 8.0  # of refused requests, deadlines, and what comes back after them
_CALL_SECONDS = 10.0  # a reclaim that is under way limits what is lent when it arrives
_BREATH_SECONDS = 4.0
_BREATHS = 4


def simulate_elastic(seed: int, steps: int) -> Outcome:
    """Run one elastic node through so many storms, or to the first promise that does not hold."""
    scenario = elastic_scenario_for(Chance(seed))
    node = Node(seed, partial(_broker, scenario), scenario.node)
    play = partial(ElasticRun(node, scenario).play, steps)
    return outcome_of(node, play, seed=seed, steps=steps, family="--elastic ")


class ElasticRun:
    """The phases of one run."""

    def __init__(self, node: Node, scenario: ElasticScenario) -> None:
        self._node = node
        self._settings = scenario.node.settings
        self._household = Household(node, scenario)
        self._shares = Shares(scenario, node.oracle)
        self._looks = 0

    def play(self, rounds: int) -> None:
        """Storms and steady times in turn; at last everybody leaves."""
        for _ in range(rounds):
            self._storm()
            self._steady()
            self._household.let_go()
            self._breathe()
            self._household.change()
        heal(self._node)
        everybody_leaves(self._node)

    def _storm(self) -> None:
        chance = self._node.stage.chance
        chance.is_calm = False
        if chance.happens(0.15):
            self._node.kill_daemon()
        until = self._node.stage.now + chance.between(10.0, 40.0)
        while self._node.stage.now < until:
            self._household.storm(_LOOK_SECONDS)
            self._live(_LOOK_SECONDS)

    def _steady(self) -> None:
        stage = self._node.stage
        stage.chance.is_calm = True
        stage.tell("load is steady")
        self._household.hold()
        self._live(_CALL_SECONDS)
        self._household.offer_all()
        settings = self._settings
        seconds = max(settings.settle_seconds, settings.newcomer_seconds)
        seconds += REST_SECONDS + _STEADY_PERIODS * settings.rebalance_seconds + _RETRY_SECONDS
        self._live(seconds)
        self._shares.check(self._household.wanted_bytes())
        stage.count("shares judged")
        before = self._asked_back()
        self._live(REST_SECONDS)
        moved = self._asked_back() - before
        require(moved == 0, "{} leases were moved although nothing had changed", moved)
        self._shares.check(self._household.wanted_bytes())

    def _breathe(self) -> None:
        """An owner's use oscillates by less than what lies between granting and revoking."""
        node = self._node
        lender = node.stage.chance.pick(self._household.lenders)
        used = lender.pattern.bytes_at(node.stage.now)
        swing = int(0.45 * reserve_bytes(lender.gpu.total_bytes))
        lender.pattern = Breathing(
            middle_bytes=used, swing_bytes=swing, period_seconds=_BREATH_SECONDS
        )
        self._live(3 * _BREATH_SECONDS + self._settings.settle_seconds)
        key = (lender.gpu.uuid, RevokeReason.RESERVE)
        before = node.oracle.moves.asked_back[key]
        self._live(_BREATHS * _BREATH_SECONDS)
        moved = node.oracle.moves.asked_back[key] - before
        require(moved == 0, "{} leases were moved by breathing", moved)
        node.stage.count("owners breathed")
        lender.hold()

    def _asked_back(self) -> int:
        return self._node.oracle.moves.asked_back.total()

    def _live(self, seconds: float) -> None:
        until = self._node.stage.now + seconds
        while self._node.stage.now < until:
            self._household.look()
            pass_time(self._node, _LOOK_SECONDS)
            self._looks += 1
            if self._looks % _LOOKS_PER_AUDIT == 0:
                audit(self._node)


def _broker(
    scenario: ElasticScenario, settings: BrokerSettings, now: float, drained: Iterable[GpuUuid]
) -> BrokerLike:
    return Broker(settings, now=now, strict=True, quotas=scenario.quotas, drained=drained)
