"""What befalls borrowers and lenders in a storm: they die, stop, get stuck, and others come."""

from __future__ import annotations

from functools import partial

from aqua_daemon.core.model import TenantName
from aqua_daemon.core.sizes import MIB, REVOKE_GRACE_SECONDS, STANDARD_REVOKE_SECONDS
from tests.simulation.elastic.borrowers import Borrower
from tests.simulation.elastic.lenders import Lender
from tests.simulation.elastic.patterns import Pattern, Steady, pattern_for
from tests.simulation.elastic.scenario import ElasticScenario
from tests.simulation.node import Node
from tests.simulation.truth import Gpu

_PRODUCERS = TenantName("uid-2000")
# A second, of each borrower.
_DIES = 0.01
_STOPS = 0.015
_STUCK = 0.01
_CHANGES = 0.03
_IS_VISITED = 0.02  # of each GPU


class Household:
    """Everybody who borrows or lends on one node."""

    def __init__(self, node: Node, scenario: ElasticScenario) -> None:
        self.borrowers: list[Borrower] = []
        self.lenders: list[Lender] = []
        self._node = node
        self._scenario = scenario
        for gpu in node.gpus.values():
            is_home = scenario.is_home_full and gpu.uuid in scenario.node.homes
            most = int(node.stage.chance.between(0.2, 0.8) * gpu.total_bytes)
            pattern = Steady(gpu.total_bytes) if is_home else pattern_for(node.stage.chance, most)
            self.lenders.append(Lender(node, gpu, node.start_client(_PRODUCERS), pattern))
        for tenant in scenario.node.tenants:
            for _ in range(node.stage.chance.pick((1, 1, 2))):
                self._new_borrower(tenant)

    def look(self) -> None:
        """Everybody follows its pattern."""
        for borrower in self.borrowers:
            borrower.look()
        for lender in self.lenders:
            lender.look()

    def storm(self, seconds: float) -> None:
        """Something may befall each of them, within so many seconds."""
        chance = self._node.stage.chance
        for borrower in list(self.borrowers):
            if chance.happens(_CHANGES * seconds):
                borrower.pattern = self._pattern()
            if not borrower.client.is_ready:
                continue
            if chance.happens(_DIES * seconds):
                self._die(borrower)
            elif chance.happens(_STOPS * seconds):
                self._stop(borrower)
            elif chance.happens(_STUCK * seconds):
                borrower.client.never_acknowledges = True
                self._node.stage.count("borrowers stuck")
        for lender in self.lenders:
            if not isinstance(lender.pattern, Steady) and chance.happens(_CHANGES * seconds):
                most = int(chance.between(0.2, 0.8) * lender.gpu.total_bytes)
                lender.pattern = pattern_for(chance, most)
            if chance.happens(_IS_VISITED * seconds):
                self._visit(lender.gpu)

    def hold(self) -> None:
        """From now on nothing changes; who is stuck stays so."""
        for borrower in self.borrowers:
            borrower.hold()
            borrower.client.go_on()
            if not borrower.client.never_acknowledges:
                borrower.client.unstick()
        for lender in self.lenders:
            lender.hold()

    def offer_all(self) -> None:
        """Nothing but use limits what is lent."""
        for lender in self.lenders:
            lender.offer_all()

    def let_go(self) -> None:
        """Nobody is stuck any more."""
        for borrower in self.borrowers:
            borrower.client.never_acknowledges = False
            borrower.client.unstick()

    def change(self) -> None:
        """Every borrower follows another pattern."""
        for borrower in self.borrowers:
            borrower.pattern = self._pattern()

    def wanted_bytes(self) -> dict[TenantName, int]:
        """What each tenant wants now."""
        wanted: dict[TenantName, int] = {}
        for borrower in self.borrowers:
            tenant = borrower.client.process.tenant
            wanted[tenant] = wanted.get(tenant, 0) + borrower.wanted_bytes
        return wanted

    def _die(self, borrower: Borrower) -> None:
        self._node.stage.count("deaths")
        self.borrowers.remove(borrower)
        self._node.kill_client(borrower.client)
        self._new_borrower(borrower.client.process.tenant)

    def _stop(self, borrower: Borrower) -> None:
        stage = self._node.stage
        stage.count("stops")
        borrower.client.process.is_stopped = True
        longest = 2 * (STANDARD_REVOKE_SECONDS + REVOKE_GRACE_SECONDS)
        stage.agenda.after(stage.chance.between(0.5, longest), borrower.client.go_on)

    def _visit(self, gpu: Gpu) -> None:
        """A process comes to a GPU, and goes."""
        nbytes = min(8 * MIB, gpu.free_bytes)
        if nbytes <= 0:
            return
        pid, stage = self._node.new_pid(), self._node.stage
        stage.count("visits")
        gpu.owners[pid] = nbytes
        self._node.report_soon(gpu.uuid)
        stage.agenda.after(stage.chance.between(1.0, 5.0), partial(self._leave, gpu, pid))

    def _leave(self, gpu: Gpu, pid: int) -> None:
        gpu.owners.pop(pid, None)
        self._node.report_soon(gpu.uuid)

    def _new_borrower(self, tenant: TenantName) -> None:
        client = self._node.start_client(tenant)
        self.borrowers.append(Borrower(client, self._pattern(), self._node.stage))

    def _pattern(self) -> Pattern:
        gpus = len(self._node.gpus) - self._scenario.is_home_full
        return pattern_for(self._node.stage.chance, gpus * self._scenario.node.gpu_bytes)
