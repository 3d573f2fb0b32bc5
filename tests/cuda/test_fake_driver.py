"""The fake driver's contexts, allocations and devices, in real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.cuda_program import Program
from tests.fakes.fake_cuda.description import GIB, MIB
from tests.fakes.fake_cuda.results import CUresult
from tests.fakes.topologies import hgx_h100, mixed_models

NOT_INITIALIZED = CUresult.CUDA_ERROR_NOT_INITIALIZED
INVALID_CONTEXT = CUresult.CUDA_ERROR_INVALID_CONTEXT
INVALID_VALUE = CUresult.CUDA_ERROR_INVALID_VALUE
OUT_OF_MEMORY = CUresult.CUDA_ERROR_OUT_OF_MEMORY
ILLEGAL_ADDRESS = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
UNAVAILABLE = CUresult.CUDA_ERROR_DEVICE_UNAVAILABLE


@pytest.fixture
def node(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=8, memory=4 * GIB)


@pytest.fixture
def program(node: FakeCudaNode) -> Iterator[Program]:
    with Program(node.environment(), "use_device(0)") as started:
        yield started


def test_nothing_works_before_init(node: FakeCudaNode) -> None:
    """Every call but cuInit says so, and none gives a value."""
    with Program(node.environment()) as program:
        assert program.ask("[d.cuDeviceGetCount(), d.cuMemGetInfo()]") == [
            [NOT_INITIALIZED, None],
            [NOT_INITIALIZED, None, None],
        ]
        assert program.ask("d.cuInit(0)[0], d.cuDeviceGetCount()") == [0, [0, 8]]


def test_memory_needs_a_current_context(node: FakeCudaNode) -> None:
    """Until a thread has one, there and in each other thread."""
    with Program(node.environment(), "ok(d.cuInit(0))") as program:
        assert program.ask("d.cuMemAlloc(4096)[0]") == INVALID_CONTEXT
        program.run("use_device(0)")
        assert program.ask("d.cuMemAlloc(4096)[0]") == 0
        program.run(
            "import threading\n"
            "seen = []\n"
            "other = threading.Thread(target=lambda: seen.append(int(d.cuMemAlloc(4096)[0])))\n"
            "other.start(); other.join()"
        )
        assert program.ask("seen") == [INVALID_CONTEXT]


def test_a_context_costs_the_device_once_a_process(node: FakeCudaNode, program: Program) -> None:
    """Retained again it is the same; released as often it is gone, with what was allocated."""
    gpu = node.uuids[0]
    assert node.used_bytes(gpu) == 500 * MIB
    program.run("ok(d.cuMemAlloc(2 << 20)); again = ok(d.cuDevicePrimaryCtxRetain(0))")
    assert program.ask("int(again) == int(ok(d.cuCtxGetCurrent()))")
    with Program(node.environment(), "use_device(0)") as other:
        assert {context.pid for context in node.contexts()} == {program.pid, other.pid}
        assert node.used_bytes(gpu) == 1002 * MIB
    program.run("ok(d.cuDevicePrimaryCtxRelease(0))")
    assert node.used_bytes(gpu) == 502 * MIB
    program.run("ok(d.cuDevicePrimaryCtxRelease(0))")
    assert (node.used_bytes(gpu), node.contexts(), node.contexts_made) == (0, [], 2)
    assert program.ask("d.cuMemAlloc(4096)[0]") == INVALID_CONTEXT


def test_memory_is_counted_in_granules_and_runs_out(node: FakeCudaNode, program: Program) -> None:
    """What is asked for is rounded up to 2 MiB; what does not fit is refused and takes nothing."""
    program.run("p = ok(d.cuMemAlloc((2 << 20) + 1))")
    assert node.used_bytes(node.uuids[0]) == 504 * MIB
    assert program.ask("ok(d.cuMemGetInfo())") == [4096 * MIB - 504 * MIB, 4096 * MIB]
    assert program.ask("ok(d.cuMemGetAddressRange(int(p) + 77))[1]") == 2 * MIB + 1
    assert program.ask("d.cuMemAlloc(3593 << 20)[0]") == OUT_OF_MEMORY
    assert node.used_bytes(node.uuids[0]) == 504 * MIB
    assert program.ask("[int(d.cuMemFree(p)[0]), int(d.cuMemFree(p)[0])]") == [0, INVALID_VALUE]
    assert node.used_bytes(node.uuids[0]) == 500 * MIB


def test_a_whole_gpu_costs_nothing_until_it_is_touched(tmp_path: Path) -> None:
    """141 GiB are one sparse file; zeros written over what was touched give it back."""
    node = fake_cuda_node(tmp_path, gpus=1, memory=141 * GIB)
    with Program(node.environment(), "use_device(0); p = ok(d.cuMemAlloc(140 << 30))") as program:
        path = tmp_path / "allocations" / str(node.allocations()[0].number)
        assert (path.stat().st_size, path.stat().st_blocks) == (140 * GIB, 0)
        program.run("ok(d.cuMemsetD8(int(p) + (70 << 30) + 5, 9, 1 << 20))")
        assert path.stat().st_blocks > 0
        assert program.ask("read(int(p) + (70 << 30) + 4, 3)") == "000909"
        program.run("ok(d.cuMemsetD8(p, 0, 140 << 30))")
        assert path.stat().st_blocks == 0
        assert program.ask("read(int(p) + (70 << 30) + 4, 3)") == "000000"


def test_copies_stay_in_their_allocation(program: Program) -> None:
    """A range that reaches past the end, or is not mapped, is an error and changes nothing."""
    program.run("p, q = ok(d.cuMemAlloc(2 << 20)), ok(d.cuMemAlloc(2 << 20))")
    program.run("ok(d.cuMemsetD8(p, 7, 2 << 20)); ok(d.cuMemcpyDtoD(q, int(p) + 1, 64))")
    assert program.ask("read(q, 65)") == "07" * 64 + "00"
    past_the_end = ["d.cuMemsetD8(p, 1, (2 << 20) + 1)", "d.cuMemcpyDtoD(q, int(p) + 1, 2 << 20)"]
    for call in [*past_the_end, "d.cuMemcpyDtoH(bytearray(8), 4096, 8)", "d.cuMemsetD8(0, 1, 1)"]:
        assert program.ask(f"{call}[0]") == INVALID_VALUE
    assert program.ask("read(int(q) + 63, 2)") == "0700"
    program.run("ok(d.cuMemcpyHtoD(p, b'abcd', 4)); ok(d.cuMemcpy(q, p, 4))")
    assert bytes.fromhex(program.ask("read(q, 4)")) == b"abcd"
    program.run("ok(d.cuMemsetD32(q, 0x01020304, 3))")
    assert program.ask("read(q, 13)") == "04030201" * 3 + "07"


def test_new_memory_shows_the_last_tenants_bytes(node: FakeCudaNode) -> None:
    """Unless they were scrubbed, another process finds them: so a keeper must."""
    environment = node.environment()
    for scrub, seen in (("0", "00" * 8), ("88", "58" * 8)):
        with Program(environment, "use_device(0); p = ok(d.cuMemAlloc(2 << 20))") as first:
            first.run(f"ok(d.cuMemsetD8(p, {scrub}, 2 << 20)); ok(d.cuMemFree(p))")
        with Program(environment, "use_device(0); p = ok(d.cuMemAlloc(2 << 20))") as second:
            assert second.ask("read(p, 8)") == seen


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_what_a_process_had_goes_with_it(node: FakeCudaNode, ends: str) -> None:
    """Its contexts and allocations, at the next look of anybody."""
    with Program(node.environment(), "use_device(3); ok(d.cuMemAlloc(64 << 20))") as program:
        assert node.bytes_by_pid(node.uuids[3]) == {program.pid: 564 * MIB}
        if ends == "killed":
            program.kill()
            assert node.used_bytes(node.uuids[3]) == 0
    assert (node.used_bytes(node.uuids[3]), node.contexts(), node.allocations()) == (0, [], [])
    assert list((node.directory / "allocations").iterdir()) == []


def test_a_forked_child_has_no_driver_and_keeps_the_memory(node: FakeCudaNode) -> None:
    """Its calls fail; its parent's bytes stay used until it ends too."""
    with Program(node.environment(), "use_device(0); p = ok(d.cuMemAlloc(2 << 20))") as parent:
        parent.run(
            "ours, theirs = os.pipe()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    codes = [int(d.cuInit(0)[0]), int(d.cuMemAlloc(4096)[0])]\n"
            "    os.write(theirs, repr(codes).encode())\n"
            "    import signal; signal.pause()"
        )
        assert parent.ask("eval(os.read(ours, 100))") == [NOT_INITIALIZED, NOT_INITIALIZED]
        child = parent.ask("child")
        parent.kill()
        assert node.used_bytes(node.uuids[0]) == 502 * MIB
        os.kill(child, 9)
        while Path(f"/proc/{child}").exists():  # nobody but init reaps it
            if (Path(f"/proc/{child}/stat").read_text()).split(")")[1].split()[0] == "Z":
                break
        assert node.used_bytes(node.uuids[0]) == 0


def test_books_survive_kills_at_any_moment(node: FakeCudaNode) -> None:
    """Processes killed in the middle of allocating leave nothing, and block nobody."""
    loop = "\nwhile True: ok(d.cuMemFree(ok(d.cuMemAlloc(2 << 20))))"
    for _ in range(3):
        busy = [Program(node.environment(), "use_device(0)") for _ in range(2)]
        for program in busy:
            program.begin(loop)
        seen = 0
        while seen < 20:
            seen += len(node.allocations()) + 1
        for program in busy:
            program.kill()
            program.close()
    assert (node.used_bytes(node.uuids[0]), node.allocations()) == (0, [])


def test_visible_devices_are_named_by_ordinal_or_uuid(node: FakeCudaNode) -> None:
    """In the order named, up to the first unknown one; none at all is an error of cuInit."""
    count = "[int(d.cuInit(0)[0]), d.cuDeviceGetCount()[1]]"
    uuids = "[ok(d.cuDeviceGetUuid(o)).bytes.hex() for o in range(ok(d.cuDeviceGetCount()))]"
    chosen = f"5,{node.uuids[2]},9,1"
    with Program(node.environment(CUDA_VISIBLE_DEVICES=chosen), "ok(d.cuInit(0))") as program:
        wanted = [node.uuids[index].removeprefix("GPU-").replace("-", "") for index in (5, 2)]
        assert program.ask(uuids) == wanted
    with Program(node.environment(CUDA_VISIBLE_DEVICES="")) as program:
        assert program.ask(count) == [CUresult.CUDA_ERROR_NO_DEVICE, None]


def test_ordinals_may_differ_from_nvmls(tmp_path: Path) -> None:
    """As CUDA's fastest-first order does."""
    node = fake_cuda_node(tmp_path, topology=mixed_models(), cuda_order=(3, 4, 0, 1, 2, 5, 6))
    with Program(node.environment(), "ok(d.cuInit(0))") as program:
        assert program.ask("ok(d.cuDeviceGetName(64, 0)).split(b'\\0')[0].decode()") == (
            "NVIDIA GeForce RTX 4090"
        )
        assert program.ask("[ok(d.cuDeviceCanAccessPeer(0, o)) for o in range(7)]") == [
            0, 1, 0, 0, 0, 0, 0,
        ]  # fmt: skip
        bus = program.ask("ok(d.cuDeviceGetPCIBusId(32, 2)).split(b'\\0')[0].decode()")
        assert program.ask(f"int(ok(d.cuDeviceGetByPCIBusId({bus.encode()!r})))") == 2


@pytest.mark.parametrize("mode", ["exclusive_process", "prohibited"])
def test_compute_modes_refuse_contexts(tmp_path: Path, mode: str) -> None:
    """Exclusive: to all but the first process; prohibited: to all."""
    plain = hgx_h100(gpus=1)
    gpu = replace(plain.gpus[0], compute_mode=mode)  # type: ignore[arg-type]  # both are modes
    node = fake_cuda_node(tmp_path, topology=replace(plain, gpus=(gpu,)))
    retained = "d.cuDevicePrimaryCtxRetain(0)[0]"
    first_code = 0 if mode == "exclusive_process" else UNAVAILABLE
    with Program(node.environment(), "ok(d.cuInit(0))") as first:
        assert first.ask(retained) == first_code
        with Program(node.environment(), "ok(d.cuInit(0))") as second:
            assert second.ask(retained) == UNAVAILABLE


def test_a_gpu_that_is_gone_fails_every_call(node: FakeCudaNode, program: Program) -> None:
    """New contexts and old memory alike; the others go on."""
    program.run("p = ok(d.cuMemAlloc(2 << 20))")
    node.remove_gpu(node.uuids[0])
    assert program.ask("[int(d.cuMemsetD8(p, 0, 8)[0]), int(d.cuMemAlloc(8)[0])]") == [999, 999]
    with Program(node.environment(), "ok(d.cuInit(0))") as other:
        assert other.ask("ok(d.cuDeviceGetCount())") == 7
        other.run("use_device(0); ok(d.cuMemAlloc(2 << 20))")


def test_mps_catches_whoever_does_not_hide_from_it(tmp_path: Path) -> None:
    """A pipe directory without a server hides, also one set by putenv as a C library sees it."""
    node = fake_cuda_node(tmp_path / "node", gpus=1, mps=True)
    hidden = f"os.putenv('CUDA_MPS_PIPE_DIRECTORY', '{tmp_path}'); use_device(0)"
    with (
        Program(node.environment(), "use_device(0)") as caught,
        Program(node.environment(), hidden) as free,
    ):
        through_mps = {context.pid: context.through_mps for context in node.contexts()}
        assert through_mps == {caught.pid: True, free.pid: False}


def test_a_call_fails_as_ordered_until_it_is_taken_back(
    node: FakeCudaNode, program: Program
) -> None:
    """Running processes see it at once."""
    node.fail("cuMemAlloc", OUT_OF_MEMORY)
    assert program.ask("d.cuMemAlloc(4096)") == [OUT_OF_MEMORY, None]
    node.fail("cuMemAlloc", None)
    assert program.ask("d.cuMemAlloc(4096)[0]") == 0


def test_pinned_host_memory_is_counted(program: Program) -> None:
    """Registered once, unregistered once, freed once; and it can be copied to and from."""
    program.run("h = ok(d.cuMemHostAlloc(4096, 0)); p = ok(d.cuMemAlloc(4096))")
    program.run("ctypes.memset(h, 3, 4096); ok(d.cuMemcpyHtoD(p, h, 4096))")
    assert program.ask("read(p, 2)") == "0303"
    program.run("b = (ctypes.c_char * 8192)(); a = ctypes.addressof(b)")
    codes = "[int(r[0]) for r in (d.cuMemHostRegister(a, 8192, 0), d.cuMemHostRegister(a, 1, 0),"
    codes += " d.cuMemHostUnregister(a), d.cuMemHostUnregister(a), d.cuMemFreeHost(h),"
    codes += " d.cuMemFreeHost(h))]"
    assert program.ask(codes) == [0, 712, 0, 713, 0, INVALID_VALUE]


def test_an_allocation_with_its_handle_takes_less_than_two_milliseconds(program: Program) -> None:
    """So that thousands of lease cycles fit into a test."""
    program.run(
        "import time\n"
        "times = []\n"
        "for _ in range(50):\n"
        "    began = time.perf_counter()\n"
        "    p = ok(d.cuMemAlloc(32 << 20)); handle_of(p)\n"
        "    times.append(time.perf_counter() - began)\n"
        "    ok(d.cuMemFree(p))"
    )
    assert program.ask("min(times)") < 0.002


def test_a_call_may_fail_at_its_third_time_and_for_one_process_alone(
    node: FakeCudaNode, program: Program
) -> None:
    """And then until the order is taken back; what is called otherwise goes on."""
    node.fail("cuMemAlloc", OUT_OF_MEMORY, pid=program.pid, first_call=3)
    codes = "[int(d.cuMemAlloc(4096)[0]) for _ in range(4)]"
    assert program.ask(codes) == [0, 0, OUT_OF_MEMORY, OUT_OF_MEMORY]
    with Program(node.environment(), "use_device(0)") as other:
        assert other.ask(codes) == [0, 0, 0, 0]


def test_a_context_that_is_killed_stays_dead_until_its_process_ends(node: FakeCudaNode) -> None:
    """Every call that touches it has the code; other GPUs' contexts and new processes work."""
    uuid = node.uuids[0]
    with Program(
        node.environment(), "first = use_device(0); p = ok(d.cuMemAlloc(4096))"
    ) as program:
        program.run("second = use_device(1); ok(d.cuCtxSetCurrent(first))")
        node.kill_context(ILLEGAL_ADDRESS, gpu=uuid, function="cuMemsetD8", first_call=2)
        fill = "int(d.cuMemsetD8(p, 0, 4096)[0])"
        assert [program.ask(fill) for _ in range(3)] == [0, ILLEGAL_ADDRESS, ILLEGAL_ADDRESS]
        node.fail("cuMemsetD8", None)
        calls = "d.cuMemFree(p), d.cuCtxSynchronize(), d.cuMemGetInfo(), d.cuMemAlloc(4096)"
        assert program.ask(f"[int(r[0]) for r in ({calls})]") == [ILLEGAL_ADDRESS] * 4
        assert program.ask("int(d.cuCtxSetCurrent(second)[0])") == 0
        assert program.ask("int(d.cuCtxSynchronize()[0])") == 0
        assert len(node.allocations()) == 1
    assert node.allocations() == []
    with Program(node.environment(), "use_device(0)") as program:
        assert program.ask("int(d.cuCtxSynchronize()[0])") == 0
