"""One run: steps under faults, then a quiet phase, then everybody leaves."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.simulation.faults import Weather
from tests.simulation.judge import require
from tests.simulation.leaks import strings_in
from tests.simulation.node import MakeBroker, Node, real_broker

_AUDIT_EVERY = 10
_INTEGRITY_EVERY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one run went."""

    seed: int
    steps: int
    counts: Counter[str]
    failure: str  # empty: every promise held
    where: str
    story: tuple[str, ...]
    family: str = ""  # of scenarios, as an option of the command

    @property
    def replay(self) -> str:
        """The command that does exactly this again."""
        return f"python -m tests.simulation {self.family}--seed {self.seed} --steps {self.steps}"


def simulate(seed: int, steps: int, make_broker: MakeBroker = real_broker) -> Outcome:
    """Run one node to its end, or to the first promise that does not hold."""
    node = Node(seed, make_broker)
    return outcome_of(node, partial(_play, node, steps), seed=seed, steps=steps)


def outcome_of(
    node: Node, play: Callable[[], None], *, seed: int, steps: int, family: str = ""
) -> Outcome:
    """What came of *play* on *node*: its counts, and the first promise that did not hold."""
    failure = where = ""
    try:
        play()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is what a run is to find
        failure = f"{type(error).__name__}: {error}"
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
    return Outcome(
        seed=seed,
        steps=steps,
        counts=node.stage.story.counts,
        failure=failure,
        where=where,
        story=tuple(node.stage.story.last_lines()) if failure else (),
        family=family,
    )


def _play(node: Node, steps: int) -> None:
    _stormy(node, steps)
    heal(node)
    everybody_leaves(node)


def _stormy(node: Node, steps: int) -> None:
    weather = Weather(node)
    mean_seconds = node.scenario.step_seconds
    for step in range(1, steps + 1):
        weather.act()
        pause = node.stage.chance.rng.expovariate(1.0) * mean_seconds
        if node.stage.chance.happens(0.02):
            pause += node.stage.chance.between(0.5, 3.0)
        pass_time(node, pause)
        if step % _AUDIT_EVERY == 0:
            audit(node)
        if step % _INTEGRITY_EVERY == 0 and node.daemon is not None:
            node.daemon.broker.check_integrity()


def pass_time(node: Node, seconds: float) -> None:
    """Let time pass, in pieces after each of which the clock is looked at."""
    until = node.stage.now + seconds
    while node.stage.now < until:
        node.stage.agenda.run_until(min(until, node.stage.now + 0.25))
        if node.daemon is not None:
            node.oracle.look_at_the_clock()


def audit(node: Node) -> None:
    """Compare whole states, if there is a daemon to ask."""
    if node.daemon is not None:
        node.audit.during(node.daemon.broker.snapshot(node.stage.now))


def heal(node: Node) -> None:
    """No more faults: who lives answers, children of the dead end. Everything must heal."""
    node.stage.chance.is_calm = True
    node.stage.tell("the faults are over")
    for client in node.clients:
        client.go_on()
        for child in client.process.children:
            if child.is_alive:
                node.end_child(client, child)
    settings = node.scenario.settings
    # A break that is healing, the grace of a restart, a term until what is not named is asked for,
    # another half for the keepalives that carry it, and the time of one revoke; or of the reclaims.
    seconds = 4.0 + settings.restart_grace_seconds + 2.5 * settings.term_seconds + 4.0
    until = node.stage.now + seconds
    while node.stage.now < max(until, node.oracle.reclaims.last_by()):
        for client in node.clients:
            client.unstick()
        pass_time(node, 0.5)
    node.start_daemon()
    daemon = node.daemon
    if daemon is None:
        return
    node.audit.after_quiet(daemon.broker.snapshot(node.stage.now))
    daemon.broker.check_integrity()
    waiting = [key for key in daemon.waiting if key[0] in daemon.connections]
    require(not waiting, "calls that were never answered: {}", waiting)
    for client in node.living():
        for number in list(client.holdings.items):
            client.holdings.read(number)


def everybody_leaves(node: Node) -> None:
    """Half say goodbye, half die: nothing may be left of either."""
    daemon = node.daemon
    if daemon is None:
        return
    for number, client in enumerate(node.living()):
        if number % 2:
            client.say_goodbye()
    pass_time(node, 1.0)
    for client in node.living():
        node.kill_client(client)
    # Deadlines that were noted may be forgotten only when they come.
    pass_time(node, 3.0 + 1.2 * node.scenario.settings.term_seconds)
    snapshot = daemon.broker.snapshot(node.stage.now)
    node.audit.at_end(snapshot)
    daemon.broker.check_integrity()
    # Ids that may not come back are kept on purpose, a bounded number of them.
    remembered = strings_in(daemon.broker, but=("ended", "over", "unseen"))
    left = [session_id for session_id in node.families if session_id in remembered]
    require(not left, "the broker still remembers sessions {}", left)
