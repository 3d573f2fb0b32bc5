"""`make bench`: starts a node, measures, prints the tables and keeps the figures as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.benchmarks import fragmentation, leases, machine, paging, pools
from tests.nodes import MIB, running_node


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    chosen = parser.parse_args()
    document = machine.description()
    with running_node(gpus=8, gpu_bytes=256 * MIB) as node:
        lease_figures = leases.measure(node)
        paging_figures = paging.measure(node.socket)
        pool_figures = pools.measure(node.socket)
    fragmentation_figures = fragmentation.measure()
    document |= {
        "leases": leases.document(lease_figures),
        "paging": paging.document(paging_figures),
        "pools": pools.document(pool_figures),
        "fragmentation": fragmentation.document(fragmentation_figures),
    }
    print(json.dumps({key: document[key] for key in ("date", "processor", "cores", "packages")}))
    print(*leases.table(lease_figures), "", *paging.table(paging_figures), sep="\n")
    print("", *pools.table(pool_figures), sep="\n")
    print("", *fragmentation.table(fragmentation_figures), sep="\n")
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
