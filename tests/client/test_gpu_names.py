"""Naming GPUs: a UUID is taken as it is, a CUDA device of torch is translated."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from aqua_client.errors import InvalidRequest
from aqua_client.gpu_names import uuid_of


@dataclass
class Properties:
    uuid: str


class FakeTorch:
    """The few words of torch that tell a device's UUID."""

    def __init__(self, uuids: list[str]) -> None:
        self.cuda = self
        self.uuids = uuids

    def is_available(self) -> bool:
        return bool(self.uuids)

    def current_device(self) -> int:
        return 1

    def device_count(self) -> int:
        return len(self.uuids)

    def get_device_properties(self, device: int) -> Properties:
        return Properties(self.uuids[device])


@pytest.mark.parametrize("name", ["SHM-3", "GPU-1b2c"])
def test_a_uuid_is_taken_as_it_is(name: str) -> None:
    """The daemon knows it by that name."""
    assert uuid_of(name) == name


@pytest.mark.parametrize(
    ("device", "uuid"), [("cuda:0", "GPU-a"), ("cuda:1", "GPU-b"), (0, "GPU-a"), ("cuda", "GPU-b")]
)
def test_a_cuda_device_is_translated_at_the_edge(
    monkeypatch: pytest.MonkeyPatch, device: object, uuid: str
) -> None:
    """Ordinals are this process's own; on the wire there are UUIDs only."""
    monkeypatch.setitem(sys.modules, "torch", FakeTorch(["a", "b"]))
    assert uuid_of(device) == uuid


@pytest.mark.parametrize(
    ("device", "uuids", "why"),
    [
        ("cpu", ["a"], "names no GPU"),
        ("cuda:x", ["a"], "names no GPU"),
        ("", ["a"], "names no GPU"),
        (-1, ["a"], "names no GPU"),
        ("cuda:3", ["a"], "sees 1 CUDA devices"),
        ("cuda:0", [], "no CUDA device"),
    ],
)
def test_what_names_no_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: object, uuids: list[str], why: str
) -> None:
    """The message says what would."""
    monkeypatch.setitem(sys.modules, "torch", FakeTorch(uuids))
    with pytest.raises(InvalidRequest, match=why):
        uuid_of(device)


def test_without_torch_only_names_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is imported to find out."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(InvalidRequest, match="UUID"):
        uuid_of("cuda:0")
    assert "torch" not in sys.modules
