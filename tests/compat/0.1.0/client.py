"""A server of release 0.1.0, reduced to what it does with AQUA: park, fetch, compare, all the time.

    python client.py SEED

A line on stdin is answered by one of JSON: `look` compares all that is parked and says how things
stand; `grow` parks what needs a slab of its own, and says where it went. Runs on any release.
"""

import json
import select
import sys
import warnings

import torch

import aqua_client

MIB = 2**20
PARKED, BRIEF, LARGE = 6, (1, 2, 5), 9  # tensors of MiB; in MiB, one after the other; MiB

warnings.simplefilter("ignore", aqua_client.AquaWarning)
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(int(sys.argv[1]))


def noise(mebibytes: int) -> torch.Tensor:
    """Bytes that nobody else has."""
    return torch.randint(0, 256, (mebibytes * MIB,), dtype=torch.uint8, generator=generator)


def is_intact(handle: aqua_client.OffloadedTensor, tensor: torch.Tensor) -> bool:
    """Whether the bytes are those that went."""
    return torch.equal(handle.fetch(), tensor)


def step(number: int) -> bool:
    """What a server does with one conversation; returns whether its bytes came back."""
    tensor = passing[number % len(passing)]
    handle = aqua_client.offload(tensor)
    try:
        return is_intact(handle, tensor)
    finally:
        handle.release()


def answer(line: str) -> dict[str, object]:
    """What a line of stdin asks."""
    if line.strip() == "grow":
        handle = aqua_client.offload(large)
        found = {"tier": handle.tier, "reason": handle.reason, "intact": is_intact(handle, large)}
        handle.release()
        return found
    intact = sum(is_intact(handle, tensor) for handle, tensor in parked)
    tiers = sorted({handle.tier for handle, _ in parked})
    return {"intact": intact == PARKED, "tiers": tiers, "steps": steps, "wrong": wrong}


passing, large = [noise(mebibytes) for mebibytes in BRIEF], noise(LARGE)
parked = [(aqua_client.offload(tensor), tensor) for tensor in (noise(1) for _ in range(PARKED))]
steps = wrong = 0
print(json.dumps({"version": aqua_client.__version__}), flush=True)
while True:
    if select.select([sys.stdin], [], [], 0.02)[0]:
        line = sys.stdin.readline()
        if not line:
            break
        print(json.dumps({**answer(line), "stats": aqua_client.stats()}), flush=True)
    wrong += not step(steps)
    steps += 1
