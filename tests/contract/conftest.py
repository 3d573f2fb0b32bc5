"""The places that every test of the contract runs in, one after another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.places import Place, cuda_place, fake_cuda_place, shm_place

PLACES = (
    "shm",
    "fake-legacy",
    "fake-vmm",
    pytest.param("cuda-legacy", marks=pytest.mark.gpu),
    pytest.param("cuda-vmm", marks=pytest.mark.gpu),
)
GPUS = {"legacy": 2, "vmm": 1}  # of the made-up driver: lending to others, and to itself


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A running node whose memory is of one sort."""
    sort, _, handles = str(request.param).partition("-")
    match sort:
        case "shm":
            found = shm_place()
        case "fake":
            found = fake_cuda_place(handles, gpus=GPUS[handles])
        case _:
            found = cuda_place(handles, request.getfixturevalue("cuda_device"))
    with found as made:
        yield made
