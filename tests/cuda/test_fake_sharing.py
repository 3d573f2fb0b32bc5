"""The fake driver's two ways to share memory between real processes: legacy handles and VMM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.cuda_program import Program
from tests.fakes.fake_cuda.description import GIB, MIB, ExporterDeath
from tests.fakes.fake_cuda.results import CUresult
from tests.fakes.topologies import mixed_models, one_with_mig

INVALID_CONTEXT = CUresult.CUDA_ERROR_INVALID_CONTEXT
INVALID_VALUE = CUresult.CUDA_ERROR_INVALID_VALUE
NOT_PEERS = CUresult.CUDA_ERROR_PEER_ACCESS_UNSUPPORTED
SLAB = "p = ok(d.cuMemAlloc(4 << 20)); h = handle_of(p)"
PHYSICAL = "m = ok(d.cuMemCreate(4 << 20, properties(0), 0))"
EXPORT = "ok(d.cuMemExportToShareableHandle(m, kind, 0))"
KIND = "kind = d.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR"
MAP = (
    "va = ok(d.cuMemAddressReserve(4 << 20, 0, 0, 0)); ok(d.cuMemMap(va, 4 << 20, 0, m, 0));"
    "ok(d.cuMemSetAccess(va, 4 << 20, [access(0)], 1))"
)
UNMAP = "ok(d.cuMemUnmap(va, 4 << 20)); ok(d.cuMemAddressFree(va, 4 << 20))"


@pytest.fixture
def node(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=2, memory=4 * GIB)


@pytest.fixture
def keeper(node: FakeCudaNode) -> Iterator[Program]:
    with Program(node.environment(), "use_device(0)", KIND) as program:
        yield program


@pytest.fixture
def client(node: FakeCudaNode) -> Iterator[Program]:
    with Program(node.environment(CUDA_VISIBLE_DEVICES="1"), "use_device(0)", KIND) as program:
        yield program


def opened(client: Program, handle: str) -> None:
    client.run(f"q = ok(open_handle({handle!r}))")


def test_a_handle_opens_the_same_bytes_elsewhere(
    node: FakeCudaNode, keeper: Program, client: Program
) -> None:
    """Both ways, from another GPU, even one that hides the lender; and it costs no context there."""
    keeper.run(f"{SLAB}; ok(d.cuMemsetD8(p, 5, 8))")
    opened(client, keeper.ask("h"))
    assert client.ask("read(q, 9)") == "05" * 8 + "00"
    client.run("ok(d.cuMemcpyHtoD(int(q) + 8, b'hi', 2))")
    assert bytes.fromhex(keeper.ask("read(int(p) + 8, 2)")) == b"hi"
    assert node.used_bytes(node.uuids[0]) == 504 * MIB
    assert node.mapped_by(node.allocations()[0].number) == [client.pid]
    assert client.ask("ok(d.cuMemGetAddressRange(q))[1]") == 4 * MIB


def test_a_handle_is_of_the_whole_allocation(keeper: Program, client: Program) -> None:
    """An interior pointer's is the same, and opens at the beginning."""
    keeper.run(f"{SLAB}; ok(d.cuMemsetD8(p, 5, 1))")
    assert keeper.ask("handle_of(int(p) + (1 << 20)) == h")
    opened(client, keeper.ask("h"))
    assert client.ask("read(q, 1)") == "05"


def test_what_does_not_open(node: FakeCudaNode, keeper: Program, client: Program) -> None:
    """One's own handle, other bytes, other flags, and without a context."""
    keeper.run(SLAB)
    handle = keeper.ask("h")
    assert keeper.ask("open_handle(h)") == [INVALID_CONTEXT, None]
    assert client.ask("open_handle('00' * 64)[0]") == INVALID_VALUE
    assert client.ask(f"open_handle({handle!r}, 0)[0]") == INVALID_VALUE
    with Program(node.environment(), "ok(d.cuInit(0))") as bare:
        assert bare.ask(f"open_handle({handle!r})[0]") == INVALID_CONTEXT


def test_one_mapping_a_context_counted(node: FakeCudaNode, keeper: Program) -> None:
    """Opened again it is where it was; only as many closes unmap it; another device has its own."""
    keeper.run(SLAB)
    handle = keeper.ask("h")
    with Program(node.environment(), "use_device(1)") as client:
        opened(client, handle)
        assert client.ask(f"int(open_handle({handle!r})[1]) == int(q)")
        client.run(f"one = ok(d.cuCtxGetCurrent()); use_device(0); r = ok(open_handle({handle!r}))")
        assert client.ask("int(q) != int(r)")
        closes = "[int(d.cuIpcCloseMemHandle(q)[0]) for _ in range(3)]"
        assert client.ask(closes) == [0, 0, INVALID_VALUE]
        assert client.ask("d.cuMemcpyDtoH(bytearray(1), q, 1)[0]") == INVALID_VALUE
        assert client.ask("d.cuMemFree(r)[0]") == INVALID_VALUE
        assert node.mapped_by(node.allocations()[0].number) == [client.pid]


@pytest.mark.parametrize("end", ["close", "kill"])
def test_free_while_mapped_is_seen(
    node: FakeCudaNode, keeper: Program, client: Program, end: str
) -> None:
    """The bytes stay used, and readable, until the importer closes them or is gone."""
    keeper.run(f"{SLAB}; ok(d.cuMemsetD8(p, 5, 8))")
    opened(client, keeper.ask("h"))
    keeper.run("ok(d.cuMemFree(p))")
    [freed] = node.freed_while_mapped
    assert (freed.uuid, freed.nbytes, freed.mapped_by) == (node.uuids[0], 4 * MIB, (client.pid,))
    assert node.used_bytes(node.uuids[0]) == 504 * MIB
    assert client.ask("read(q, 2)") == "0505"
    if end == "close":
        client.run("ok(d.cuIpcCloseMemHandle(q))")
    else:
        client.kill()
    assert node.used_bytes(node.uuids[0]) == 500 * MIB


def test_a_freed_allocations_handle_fails(keeper: Program, client: Program) -> None:
    """Where the node says so; the new one's handle is another, at whatever address."""
    keeper.run(f"{SLAB}; ok(d.cuMemFree(p)); old = h; {SLAB}")
    assert client.ask(f"open_handle({keeper.ask('old')!r})[0]") == INVALID_VALUE
    opened(client, keeper.ask("h"))


def test_a_freed_allocations_handle_may_alias_the_next(tmp_path: Path) -> None:
    """Where the node says so: the same bytes as handle, another allocation behind it."""
    node = fake_cuda_node(tmp_path, gpus=1, memory=4 * GIB, freed_handle="aliases")
    with Program(node.environment(), "use_device(0)") as keeper:
        keeper.run(f"{SLAB}; ok(d.cuMemFree(p)); old = h; {SLAB}; ok(d.cuMemsetD8(p, 9, 1))")
        assert keeper.ask("old == h")
        with Program(node.environment(), "use_device(0)") as client:
            opened(client, keeper.ask("old"))
            assert client.ask("read(q, 1)") == "09"


@pytest.mark.parametrize("stays", [True, False])
def test_the_exporters_death(tmp_path: Path, *, stays: bool) -> None:
    """As the node says the mapping stays, or its bytes are gone and the context with them."""
    death: ExporterDeath = "mapping_stays" if stays else "mapping_ends"
    node = fake_cuda_node(tmp_path, gpus=1, memory=4 * GIB, exporter_death=death)
    with (
        Program(node.environment(), "use_device(0)", SLAB) as keeper,
        Program(node.environment(), "use_device(0)") as client,
    ):
        keeper.run("ok(d.cuMemsetD8(p, 5, 8))")
        opened(client, keeper.ask("h"))
        keeper.kill()
        assert node.used_bytes(node.uuids[0]) == 504 * MIB
        assert node.bytes_by_pid(node.uuids[0]) == {client.pid: 504 * MIB}
        if stays:
            assert client.ask("read(q, 2)") == "0505"
        else:
            lost = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
            assert client.ask("d.cuMemcpyDtoH(bytearray(2), q, 2)[0]") == lost
            assert client.ask("d.cuCtxSynchronize()[0]") == lost
            assert client.ask("ctypes.string_at(int(q), 2).hex()") == "0000"


def test_no_peer_no_mapping(tmp_path: Path) -> None:
    """Across models that cannot reach each other neither kind of handle maps."""
    node = fake_cuda_node(tmp_path, topology=mixed_models())
    with Program(node.environment(), "use_device(0)", KIND) as keeper:
        keeper.run(SLAB)
        for ordinal, wanted in ((1, 0), (3, NOT_PEERS)):
            with Program(node.environment(), f"use_device({ordinal})") as client:
                assert client.ask(f"open_handle({keeper.ask('h')!r})[0]") == wanted
        keeper.run(f"{PHYSICAL}; {MAP}")
        assert keeper.ask("d.cuMemSetAccess(va, 4 << 20, [access(1)], 1)[0]") == 0
        far = "d.cuMemSetAccess(va, 4 << 20, [access(3)], 1)[0]"
        assert keeper.ask(far) == CUresult.CUDA_ERROR_INVALID_DEVICE


def test_a_mig_gpu_exports_nothing(tmp_path: Path) -> None:
    """Its legacy handles are not supported."""
    node = fake_cuda_node(tmp_path, topology=one_with_mig())
    with Program(node.environment(), "use_device(2); p = ok(d.cuMemAlloc(8))") as keeper:
        assert keeper.ask("d.cuIpcGetMemHandle(p)") == [CUresult.CUDA_ERROR_NOT_SUPPORTED, None]


def test_a_descriptor_shares_memory_without_a_context(node: FakeCudaNode) -> None:
    """Created, exported, imported, mapped and read with no context of the exporter's."""
    with Program(node.environment(), "ok(d.cuInit(0))", KIND) as keeper:
        keeper.run(f"{PHYSICAL}; send_descriptor({EXPORT})")
        assert (node.contexts(), node.used_bytes(node.uuids[0])) == ([], 4 * MIB)
        descriptor = keeper.receive_descriptor()
        with Program(node.environment(), "use_device(0)", KIND) as client:
            client.send_descriptor(descriptor)
            client.run(
                "m = ok(d.cuMemImportFromShareableHandle(receive_descriptor(), kind))\n"
                f"{MAP}; ok(d.cuMemsetD8(va, 6, 8))"
            )
            keeper.run(MAP)
            assert keeper.ask("ctypes.string_at(int(va), 2).hex()") == "0606"
        os.close(descriptor)


def test_physical_memory_lives_as_long_as_anybody_has_it(node: FakeCudaNode) -> None:
    """A handle, a mapping, or a descriptor, even one in flight; freed nowhere while used."""
    used = node.used_bytes
    with Program(node.environment(), "ok(d.cuInit(0))", KIND) as keeper:
        keeper.run(f"{PHYSICAL}; {MAP}; f = {EXPORT}; ok(d.cuMemRelease(m)); {UNMAP}")
        assert used(node.uuids[0]) == 4 * MIB
        keeper.run("send_descriptor(f); os.close(f)")
        assert used(node.uuids[0]) == 4 * MIB
        descriptor = keeper.receive_descriptor()
        keeper.kill()
    assert used(node.uuids[0]) == 4 * MIB
    with Program(node.environment(), "ok(d.cuInit(0))", KIND) as client:
        client.send_descriptor(descriptor)
        os.close(descriptor)
        client.run("f = receive_descriptor(); m = ok(d.cuMemImportFromShareableHandle(f, kind))")
        client.run(f"os.close(f); {MAP}; ok(d.cuMemRelease(m))")
        assert used(node.uuids[0]) == 4 * MIB
        client.run(UNMAP)
        assert used(node.uuids[0]) == 0
    assert node.freed_while_mapped == []


def test_a_mapping_needs_access_and_room(keeper: Program) -> None:
    """Before it is given access, copies fail; mapped twice, unmapped in part, or freed mapped."""
    keeper.run(f"{PHYSICAL}; va = ok(d.cuMemAddressReserve(8 << 20, 0, 0, 0))")
    keeper.run("ok(d.cuMemMap(va, 4 << 20, 0, m, 0))")
    assert keeper.ask("d.cuMemsetD8(va, 0, 8)[0]") == INVALID_VALUE
    keeper.run("ok(d.cuMemSetAccess(va, 4 << 20, [access(0)], 1)); ok(d.cuMemsetD8(va, 1, 8))")
    for call in (
        "cuMemMap(va, 4 << 20, 0, m, 0)",
        "cuMemMap(int(va) + (6 << 20), 4 << 20, 0, m, 0)",
        "cuMemUnmap(va, 2 << 20)",
        "cuMemAddressFree(va, 8 << 20)",
        "cuMemSetAccess(va, 8 << 20, [access(0)], 1)",
        "cuMemCreate(1 << 20, properties(0), 0)",
        "cuIpcGetMemHandle(va)",
        "cuMemRelease(99)",
        "cuMemImportFromShareableHandle(0, kind)",
        "cuMemExportToShareableHandle(ok(d.cuMemCreate(2<<20, properties(0, exportable=False), 0)), kind, 0)",
    ):
        assert keeper.ask(f"d.{call}[0]") == INVALID_VALUE, call
    keeper.run("ok(d.cuMemUnmap(va, 4 << 20)); ok(d.cuMemAddressFree(va, 8 << 20))")


def test_granularity_is_two_mebibytes(keeper: Program) -> None:
    """As on every GPU since Volta."""
    minimum = "d.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM"
    assert keeper.ask(f"ok(d.cuMemGetAllocationGranularity(properties(0), {minimum}))") == 2 * MIB
