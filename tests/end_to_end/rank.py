"""One rank of a group of processes: each parks its own tensors for a GPU of its own.

Imported by spawned children, or run by `python -m torch.distributed.run -m tests.end_to_end.rank`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 2**20
TENSORS = 6
LOOK, END = "look", "end"
WORLD_SIZE = 4


class Rank:
    """What a rank has parked, and whether it is whole."""

    def __init__(self, rank: int, init_method: str) -> None:
        os.environ["AQUA_HOME_GPU"] = f"SHM-{rank}"
        import torch
        import torch.distributed as dist

        import aqua_client

        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method, rank=rank, world_size=WORLD_SIZE)
        self._kept = [_noise(rank, number) for number in range(TENSORS)]
        self._handles = [aqua_client.offload(one) for one in self._kept]

    def exchange(self) -> bool:
        """Whether each rank's first tensor, fetched there, is what all others know it to be."""
        import torch
        import torch.distributed as dist

        fetched = self._handles[0].fetch()
        everybodys = [torch.empty_like(fetched) for _ in range(WORLD_SIZE)]
        dist.all_gather(everybodys, fetched)
        return all(torch.equal(one, _noise(rank, 0)) for rank, one in enumerate(everybodys))

    def look(self) -> dict[str, object]:
        """Park one more, compare all, and say where they are."""
        import torch

        import aqua_client

        again = aqua_client.offload(self._kept[0])
        pairs = zip([*self._handles, again], [*self._kept, self._kept[0]], strict=True)
        leases = aqua_client.stats()["leases"]
        assert isinstance(leases, Mapping)
        return {
            "intact": all(torch.equal(handle.fetch(), one) for handle, one in pairs),
            "tiers": {handle.tier for handle in self._handles},
            "gpus": set(leases),
            "bytes": sum(lease["bytes"] for lease in leases.values()),
        }


def spawned(rank: int, init_method: str, parent: Connection, socket: str) -> None:
    """The main function of a spawned child: it looks as often as it is asked."""
    os.environ.update(AQUA_SOCKET=socket, AQUA_CONNECT_SECONDS="10", GLOO_SOCKET_IFNAME="lo")
    mine = Rank(rank, init_method)
    parent.send(mine.exchange())
    while parent.recv() == LOOK:
        parent.send(mine.look())


def _noise(rank: int, number: int) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(rank * TENSORS + number)
    return torch.randint(0, 256, (MIB,), dtype=torch.uint8, generator=generator)


def main() -> None:
    """As one of a group that was launched."""
    import torch.distributed as dist

    mine = Rank(int(os.environ["RANK"]), "env://")
    assert mine.exchange()
    assert mine.look()["intact"]
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
