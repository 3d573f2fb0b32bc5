"""Worker processes that a program forks while it pages: a data loader's, again and again."""

from __future__ import annotations

import pytest

from tests.end_to_end.programs import PARKING, running_program
from tests.end_to_end.test_client_deaths import PROMISE_SECONDS, held_bytes
from tests.nodes import MIB, running_node, wait_until

LOADING = (
    PARKING
    + """
import threading
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, row):
        told = 0
        for call in (handles[0].fetch, handles[0].release, aqua_client.stats,
                     lambda: aqua_client.offload(noise(row))):
            try:
                call()
            except aqua_client.ForkedChild:
                told += 1
        with aqua_client.Client() as anew:
            whole = torch.equal(anew.offload(noise(row)).fetch(), noise(row))
        return torch.tensor([told, whole])

def work(seed):
    tensor = noise(seed).repeat(6)
    try:
        assert torch.equal(aqua_client.offload(tensor).fetch(), tensor)
        has_begun.release()
        while not is_over.is_set():
            assert torch.equal(aqua_client.offload(tensor).fetch(), tensor)
    except BaseException as fault:
        faults.append(repr(fault))

is_over, faults = threading.Event(), []
has_begun = threading.Semaphore(0)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
for thread in threads:
    thread.start()
# What torch sets up at a function's first call takes a lock of the C library's, `__exit_funcs_lock`, which
# a child forked just then has for ever (glibc leaves it as it was).
for _ in threads:
    has_begun.acquire()
say(**state())
sys.stdin.readline()
rows = []
for _ in range(3):
    loader = DataLoader(Rows(), batch_size=2, num_workers=2, multiprocessing_context="fork")
    rows += [row.tolist() for batch in loader for row in batch]
is_over.set()
for thread in threads:
    thread.join()
say(rows=rows, faults=faults, intact=intact(), **state())
"""
)


@pytest.mark.limit(120)
def test_a_data_loaders_workers_are_told_and_the_program_goes_on() -> None:
    """Forked while threads park and fetch and an owner takes its GPU back; every byte is exact."""
    with (
        running_node(gpus=4, gpu_bytes=64 * MIB) as node,
        running_program(node, source=LOADING) as program,
    ):
        gpus = program.first["gpus"]
        assert isinstance(gpus, list)
        owner = node.start_load(gpus[0], 60 * MIB)
        answer = program.ask()
        assert answer["rows"] == [[4, 1]] * 24
        assert answer["faults"] == []
        assert answer["intact"] is True
        node.await_loaded(owner)
        program.process.wait(PROMISE_SECONDS)
        assert program.process.returncode == 0
        wait_until(lambda: held_bytes(node) == 0, seconds=PROMISE_SECONDS, what="all is free")
