"""What can happen at a step: a client does something, or something breaks.

`Weather` draws one act a step. Its odds are chosen so that in 500 steps most kinds happen.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from functools import partial
from itertools import accumulate

from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.events import LeasesReleased, RevokeAcknowledged, SessionReattached
from aqua_daemon.core.instructions import Answer, AnswerKeepalive, SendRevoke, TellLost
from aqua_daemon.core.model import (
    LeaseId,
    ProcessIdentity,
    RequestId,
    SafetyClass,
    SessionId,
)
from aqua_daemon.core.sizes import MIB
from tests.simulation.clients import Client
from tests.simulation.connection import Connection
from tests.simulation.node import Node
from tests.simulation.owners import Owners
from tests.simulation.truth import Process

_SLAB_MIB = (4, 4, 8, 16)


class Weather:
    """Chooses and carries out one act at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stage = node.stage
        self._owners = Owners(node.stage, node.oracle)
        acts: dict[Callable[[], None], float] = {
            partial(self._with_client, self._acquire): 16,
            partial(self._with_client, self._offload): 22,
            partial(self._with_client, self._fetch): 8,
            partial(self._with_client, self._forget_item): 6,
            partial(self._with_client, self._release): 5,
            partial(self._with_client, self._hold_in_host): 4,
            partial(self._with_client, self._claim_of_others): 1.5,
            partial(self._with_client, self._say_goodbye): 0.6,
            partial(self._with_client, self._offer): 1.2,
            partial(self._with_client, self._reclaim): 3,
            partial(self._with_client, self._fork): 2,
            partial(self._with_client, self._stop): 1.2,
            partial(self._with_client, self._break_presence): 1.2,
            partial(self._with_client, self._die): 1.4,
            partial(self._with_client, self._unstick): 2,
            self._change_use: 5,
            self._start_client: 1.2,
            self._lose_keeper: 0.35,
            self._detach_keeper: 0.8,
            self._restart: 0.6,
            self._impersonate: 0.8,
            node.admins.drain: 0.4,
            node.admins.undrain: 2.0,
            node.admins.measure: 1.0,
            node.admins.quiesce: 0.8,
        }
        self._acts = tuple(acts)
        self._odds = tuple(accumulate(acts.values()))

    def act(self) -> None:
        """One act."""
        draw = self._stage.chance.between(0.0, self._odds[-1])
        self._acts[min(bisect(self._odds, draw), len(self._acts) - 1)]()

    def _with_client(self, act: Callable[[Client], None]) -> None:
        ready = [client for client in self._node.clients if client.is_ready]
        if ready:
            act(self._stage.chance.pick(ready))

    # --- what clients do ---------------------------------------------------------------------

    def _class(self) -> SafetyClass:
        return self._stage.chance.pick((SafetyClass.STORE, SafetyClass.STORE, SafetyClass.CACHE))

    def _acquire(self, client: Client) -> None:
        client.acquire(self._stage.chance.pick(_SLAB_MIB) * MIB, self._class())

    def _offload(self, client: Client) -> None:
        nbytes = int(self._stage.chance.between(1, 3 * MIB))
        if client.holdings.put(nbytes, self._class()):
            self._stage.count("offloads to peers")

    def _fetch(self, client: Client) -> None:
        if client.holdings.items:
            client.holdings.read(self._stage.chance.pick(list(client.holdings.items)))

    def _forget_item(self, client: Client) -> None:
        if client.holdings.items:
            client.holdings.forget(self._stage.chance.pick(list(client.holdings.items)))

    def _release(self, client: Client) -> None:
        held = [i for i, held in client.holdings.slabs.items() if not held.is_fenced]
        if held:
            self._stage.count("releases")
            count = min(len(held), self._stage.chance.pick((1, 1, 2)))
            client.release(tuple(held[:count]))

    def _hold_in_host(self, client: Client) -> None:
        client.hold_in_host(int(self._stage.chance.between(1, 12 * MIB)))

    def _claim_of_others(self, client: Client) -> None:
        """Give back what is not one's own: it must have no effect."""
        if client.session_id is None:
            return
        others = [i for c in self._node.living() if c is not client for i in c.holdings.slabs]
        chance = self._stage.chance
        lease_id = chance.pick(others) if others else LeaseId(chance.new_id())
        kind = LeasesReleased if chance.happens(0.5) else RevokeAcknowledged
        event = kind(
            session_id=client.session_id,
            request_id=RequestId(chance.new_id()),
            lease_ids=(lease_id,),
            host_room=None,
        )
        self._stage.count("claims of others' leases")
        client.caller.call(event, _ignore, seconds=1.0)

    def _say_goodbye(self, client: Client) -> None:
        self._stage.count("goodbyes")
        client.say_goodbye()

    # --- what owners do ----------------------------------------------------------------------

    def _change_use(self) -> None:
        gpu = self._stage.chance.pick(list(self._node.gpus.values()))
        pids = [c.process.identity.pid for c in self._node.living()]
        if pids:
            # Few owners a GPU: one that was there is likelier than a new one.
            there = [pid for pid in pids if pid in gpu.owners]
            again = there and self._stage.chance.happens(0.8)
            self._owners.change_use(gpu, self._stage.chance.pick(there if again else pids))
            self._node.report_soon(gpu.uuid)

    def _offer(self, client: Client) -> None:
        gpu = self._stage.chance.pick(list(self._node.gpus.values()))
        nbytes = int(self._stage.chance.between(0, gpu.total_bytes // MIB)) * MIB
        self._owners.offer(client, gpu.uuid, nbytes)

    def _reclaim(self, client: Client) -> None:
        pid = client.process.identity.pid
        gpus = list(self._node.gpus.values())
        mine = [gpu for gpu in gpus if pid in gpu.owners]
        gpu = self._stage.chance.pick(mine or gpus)
        nbytes = self._stage.chance.pick((2, 8, 32, 96)) * MIB
        self._owners.reclaim(client, gpu, nbytes)

    # --- what breaks -------------------------------------------------------------------------

    def _fork(self, client: Client) -> None:
        child = client.fork(self._node.new_pid())
        self._stage.count("forks")
        self._stage.tell("process {} forks", client.process.identity.pid)
        end = partial(self._node.end_child, client, child)
        self._stage.agenda.after(self._stage.chance.between(0.2, 12.0), end)

    def _stop(self, client: Client) -> None:
        client.process.is_stopped = True
        self._stage.count("stops")
        self._stage.tell("process {} is stopped", client.process.identity.pid)
        longest = 2.2 * self._node.scenario.settings.term_seconds
        seconds = self._stage.chance.between(0.05, longest)
        self._stage.agenda.after(seconds, client.go_on)

    def _break_presence(self, client: Client) -> None:
        self._stage.count("presence connections broken")
        longest = 1.5 * self._node.scenario.settings.term_seconds
        away = self._stage.chance.pick((0.05, 0.5, longest))
        client.break_presence(self._stage.chance.between(0.0, away))

    def _die(self, client: Client) -> None:
        self._stage.count("deaths")
        if any(child.is_alive and child.mapped for child in client.process.children):
            self._stage.count("deaths with a child that maps slabs")
        self._node.kill_client(client)

    def _unstick(self, client: Client) -> None:
        client.unstick()

    def _start_client(self) -> None:
        if len(self._node.living()) < self._node.scenario.clients:
            self._node.start_client()

    def _lose_keeper(self) -> None:
        self._node.kill_keeper(int(self._stage.chance.between(0, len(self._node.keepers))))

    def _detach_keeper(self) -> None:
        if self._node.daemon is not None:
            link = self._stage.chance.pick(self._node.daemon.links)
            if link.is_attached and link.keeper.is_alive:
                link.detach()

    def _restart(self) -> None:
        self._node.kill_daemon()

    def _impersonate(self) -> None:
        """A process claims the session of another: same pid and uid at most, never its start."""
        daemon, chance = self._node.daemon, self._stage.chance
        if daemon is None or not daemon.connections:
            return
        session_id = chance.pick(list(daemon.connections))
        victim = self._node.families.get(session_id)
        if victim is None:
            return
        real = victim.identity
        identity = ProcessIdentity(
            pid=real.pid, start_ticks=real.start_ticks + 1, uid=real.uid + chance.pick((0, 1))
        )
        self._stage.count("impostors")
        impostor = _Impostor(Process(identity, victim.tenant))
        connection = Connection(impostor, self._stage)
        holdings = next(c.holdings for c in self._node.clients if c.process is victim)
        event = SessionReattached(
            session_id=session_id,
            request_id=RequestId(chance.new_id()),
            tenant=victim.tenant,
            process=identity,
            home_gpu=None,
            is_admin=False,
            uses=holdings.uses(),
            host_room=holdings.host_room(),
        )
        connection.up.send(partial(daemon.hello, connection, event))


class _Impostor:
    """Opens a presence connection in another's name, and is told nothing."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def welcomed(self, connection: Connection, session_id: SessionId) -> None:
        """Welcomes are sent ahead of the broker's word, so they say nothing."""

    def refused(self, connection: Connection) -> None:
        """As it must be."""

    def pushed(self, order: SendRevoke | TellLost | AnswerKeepalive) -> None:
        """Nothing may be told to it."""

    def closed(self, connection: Connection) -> None:
        """As it must be."""


def _ignore(answer: Answer | BrokerError | None) -> None:
    """What comes of it shows in the books."""
