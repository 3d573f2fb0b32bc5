"""What is compared: who goes first, and where those are put who have to go."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aqua_client.scheduling import FairScheduler, FairSettings, Order, Swap
from tests.benchmarks.serving_model.engine import Hardware
from tests.benchmarks.serving_model.schedulers import FirstComeFirstServed, Scheduler

FCFS = "FCFS"
# NVLink 4 as measured on one pair of GPUs, and pinned host memory over PCIe 5, each way.
LINK_BYTES_PER_SECOND = {"leases": 375e9, "DRAM": 45e9}
RECOMPUTE = "recompute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A row of the table; without *settings* it is first come, first served."""

    name: str
    link: str = ""  # leases, DRAM, or recompute
    settings: FairSettings | None = None
    admits: bool = False  # it may refuse

    def scheduler(self, hardware: Hardware) -> Scheduler:
        """A new one."""
        if self.settings is None:
            return FirstComeFirstServed(hardware.block_tokens)
        return FairScheduler(replace(self.settings, block_tokens=hardware.block_tokens))

    def swap(self, hardware: Hardware) -> Swap | None:
        """What it is told of its link."""
        if self.settings is None:
            return None
        if self.link == RECOMPUTE:
            return Swap.by_recomputing(hardware.prompt_tokens_per_second)
        return Swap(
            bytes_per_token=hardware.bytes_per_token,
            store_bytes_per_second=LINK_BYTES_PER_SECOND[self.link],
            fetch_bytes_per_second=LINK_BYTES_PER_SECOND[self.link],
            writes_through=True,
            hidden_share=hardware.hidden_share,
        )


DEFAULTS = FairSettings()
ORDERS = {
    "oldest first (the default)": DEFAULTS,
    "fair, ageing 16": replace(DEFAULTS, order=Order.FAIR),
    "fewest tokens first (the paper's)": replace(
        DEFAULTS, order=Order.LEAST_SERVED, ageing_tokens_per_second=0.0
    ),
}
POLICIES = (
    Policy(name=FCFS),
    *(
        Policy(name=f"{name}, {link}", link=link, settings=settings)
        for name, settings in ORDERS.items()
        for link in (RECOMPUTE, *LINK_BYTES_PER_SECOND)
    ),
    Policy(
        name="oldest first, leases, refuses past capacity",
        link="leases",
        settings=DEFAULTS,
        admits=True,
    ),
)
