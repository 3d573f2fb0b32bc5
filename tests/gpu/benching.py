"""One benchmark in a process of its own: parking tensors beside what else one could do with them.

    python -m tests.gpu.benching NAME [--quick]

The GPU lends to itself, so a slab is as near as memory can be: link rates are for several GPUs. With
`--quick` it is a rehearsal on stand-in GPUs, which has no rates to tell. What fails is told in its row,
and the rest goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager

import torch

import aqua_client
from tests.benchmarks.threads import one_thread
from tests.contract.places import Place, cuda_place, shm_place
from tests.gpu.benches import blocks, lender, paging, returns, serving, together
from tests.gpu.benches.timing import machine
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import QUICK, WHOLE
from tests.gpu.tasks import BENCHMARKS
from tests.nodes import wait_until

# What a lease costs is measured by itself: here all that is parked is to lie there.
ACQUIRE_SECONDS = 20.0


def main() -> int:
    """Measure one thing; 1 if some of it failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.benching")
    parser.add_argument("name", choices=[each.name for each in BENCHMARKS])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--known", nargs="*", default=[], help="rows that there are already")
    chosen = parser.parse_args()
    os.environ.setdefault("AQUA_ACQUIRE_SECONDS", f"{ACQUIRE_SECONDS:g}")
    what, _, kind = chosen.name.partition("-")
    plan = QUICK if chosen.quick else WHOLE
    with (
        one_thread(),
        _place(kind, quick=chosen.quick) as place,
        aqua_client.connect(socket=place.node.socket, home_gpu=place.home_gpu) as client,
    ):
        wait_until(lambda: client.stats()["attached"], seconds=20, what="attached")
        findings = Findings(known=frozenset(chosen.known))
        findings.figures("machine", machine(place.torch_device))
        if what in OF_A_PLACE:
            OF_A_PLACE[what](place, plan, findings)
        else:
            MEASURES[what](client, place.torch_device, plan, findings)
    return int(findings.failed > 0)


def _place(kind: str, *, quick: bool) -> AbstractContextManager[Place]:
    return shm_place() if quick else cuda_place(kind, torch.cuda.current_device())


OF_A_PLACE = {"lender": lender.measure, "returns": returns.measure}
MEASURES = {
    "paging": paging.measure,
    "blocks": blocks.measure,
    "both": together.both,
    "product": together.beside_a_product,
    **serving.MEASURES,
}

if __name__ == "__main__":
    sys.exit(main())
