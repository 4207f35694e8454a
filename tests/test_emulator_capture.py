"""What a variant's own launcher launches in emulation: memory, arguments, and what a GPU
would refuse.
"""

import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from batchline import kernels
from batchline.bench.measure.compiled import compiler, pins
from batchline.bench.measure.emulator import capture
from batchline.bench.measure.emulator.launch import (
    KernelLaunch,
    LaunchRefused,
    read_entry,
    require_arguments,
    require_launchable,
)
from batchline.bench.measure.emulator.memory import INITIALISED, GlobalMemory
from batchline.bench.measure.emulator.storages import Storages

triton_compiled = pytest.mark.skipif(
    bool(compiler.why_cannot_compile("triton")), reason="needs Triton's compiler"
)
numba_compiled = pytest.mark.skipif(
    bool(compiler.why_cannot_compile("numba_cuda")), reason="needs Numba's compiler"
)
PTX = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.shared .align 4 .b8 own_$_0[256];
.shared .align 4 .f32 table[4][8];
.visible .entry a_kernel(
    .param .u64 .ptr .global .align 1 a_kernel_param_0,
    .param .align 64 .b8 a_kernel_param_1[128],
    .param .u32 a_kernel_param_2,
    .param .f32 a_kernel_param_3
)
.maxntid 256, 1, 1
.minnctapersm 2
{
    ret;
}
"""
LAUNCH = KernelLaunch(
    kernel="a_kernel",
    entry="a_kernel",
    ptx=PTX,
    architecture=90,
    grid=(4, 1, 1),
    block=(128, 1, 1),
    cluster=(1, 1, 1),
    dynamic_shared_bytes=1000,
    arguments=(bytes(8), bytes(128), bytes(4), bytes(4)),
    registers=32,
    config="",
)


def test_allocations_are_sorted_and_separate_where_they_touch():
    memory = GlobalMemory()
    memory.add(4096, 64, "second", False)
    memory.add(4000, 96, "first", True)
    memory.add(8000, 8, "third", False)
    assert memory.starts.tolist() == [4000, 4096, 8000]
    assert memory.ends.tolist() == [4096, 4160, 8008]
    assert memory.table.dtype == np.int64 and memory.table.flags.c_contiguous
    assert memory.table[:, 3].tolist() == [INITIALISED, 0, 0]
    assert memory.at(4095).name == "first" and memory.at(4096).name == "second"
    assert memory.at(3999) is None and memory.at(4160) is None
    memory.forget(4096)
    assert memory.at(4100) is None and memory.starts.tolist() == [4000, 8000]


@pytest.mark.parametrize("start, size", [(90, 11), (100, 1), (150, 60), (95, 500)])
def test_allocations_that_overlap_are_refused(start, size):
    memory = GlobalMemory()
    memory.add(100, 100, "there", False)
    with pytest.raises(ValueError, match="there"):
        memory.add(start, size, "new", False)


def test_a_variable_of_a_module_lasts_from_launch_to_launch():
    memory = GlobalMemory()
    count = memory.variable("a module", "count", 4, None)
    table = memory.variable("a module", "table", 4, b"\1\2\3\4")
    assert (count.tolist(), table.tolist()) == ([0] * 4, [1, 2, 3, 4])
    count[0] = 7
    assert memory.variable("a module", "count", 4, None)[0] == 7
    assert memory.variable("another", "count", 4, None)[0] == 0
    assert memory.at(count.ctypes.data).name == "the variable count"
    assert memory.at(count.ctypes.data).size_bytes == 4


def test_the_shadow_is_where_the_table_says():
    memory = GlobalMemory()
    shadow = memory.add(100, 16, "there", False).shadow
    memory.mark_initialised(104, 8)
    assert shadow.tolist() == [0] * 4 + [INITIALISED] * 8 + [0] * 4
    assert memory.table[0, 2] == shadow.ctypes.data
    with pytest.raises(ValueError, match="not allocated"):
        memory.mark_initialised(110, 8)


def test_a_shadow_of_what_is_not_touched_costs_nothing():
    memory = GlobalMemory()
    shadow = memory.add(2**40, 2**37, "128 GiB", False).shadow
    shadow[2**36] = INITIALISED
    assert shadow[2**36 - 1 : 2**36 + 2].tolist() == [0, INITIALISED, 0]


def test_storages_say_what_torch_has_written():
    storages = Storages(GlobalMemory())
    with storages:
        empty = torch.empty(4, 6)
        empty[1::2, 2:4].copy_(torch.ones(2, 2))
        zeros = torch.zeros(3)
        total = zeros + 1
        taken = torch.empty(5, dtype=torch.int32)
        torch.add(torch.ones_like(taken[:2]), 1, out=taken[:2])
    at = storages.memory.at
    expected = np.zeros((4, 6, 4), np.uint8)
    expected[1::2, 2:4] = INITIALISED
    assert (at(empty.data_ptr()).shadow.reshape(4, 6, 4) == expected).all()
    assert empty.isnan().sum() == 20
    assert at(zeros.data_ptr()).initialised and at(total.data_ptr()).initialised
    assert at(taken.data_ptr()).shadow.tolist() == [INITIALISED] * 8 + [0] * 12
    assert taken[2:].tolist() == [-1] * 3


def test_a_storage_that_was_given_up_keeps_its_memory():
    storages = Storages(GlobalMemory())
    with storages:
        places = {torch.empty(1000).data_ptr() for _ in range(5)}
    assert len(places) == len(storages.memory.allocations) == 5


def test_of_a_large_input_its_own_elements_are_written():
    held = torch.empty(2**28)
    window = held[2**27 :: 2**20][:3]
    storages = Storages(GlobalMemory())
    storages.add_input(window, "input 0")
    (one,) = storages.memory.allocations
    assert not one.initialised
    assert one.shadow[2**29 - 1 : 2**29 + 5].tolist() == [0] + [INITIALISED] * 4 + [0]
    assert one.shadow[2**29 + 2**22] == INITIALISED


def test_the_head_of_a_kernel_is_read():
    entry = read_entry(PTX)
    assert entry.name == "a_kernel" and entry.parameters == (8, 128, 4, 4)
    assert entry.required_threads is None and entry.most_threads == 256
    assert entry.static_shared_bytes == 256 + 4 * 4 * 8
    assert read_entry(PTX.replace("maxntid 256, 1", "reqntid 64, 2")).required_threads


def test_what_fits_is_launched():
    require_arguments(LAUNCH, read_entry(PTX))
    require_launchable(LAUNCH, read_entry(PTX))


def test_arguments_must_be_the_params():
    with pytest.raises(ValueError, match="8, 128, 4 bytes.*8, 128, 4, 4"):
        require_arguments(
            replace(LAUNCH, arguments=LAUNCH.arguments[:3]), read_entry(PTX)
        )


@pytest.mark.parametrize(
    "change, line",
    [
        ({"block": (512, 1, 1)}, "its PTX allows 256"),
        ({"block": (2048, 1, 1)}, "1 to 1024"),
        ({"block": (0, 1, 1)}, "1 to 1024"),
        ({"block": (1, 1, 128)}, "64 are allowed"),
        ({"grid": (1, 65536, 1)}, "65536 blocks in y"),
        ({"grid": (1, 1, 65536)}, "65536 blocks in z"),
        ({"grid": (2**31, 1, 1)}, "blocks in x"),
        ({"grid": (0, 1, 1)}, "0 blocks in x"),
        ({"cluster": (3, 1, 1)}, "in clusters of 3"),
        ({"cluster": (2, 1, 1), "architecture": 80}, "has none"),
        ({"dynamic_shared_bytes": 227 * 1024}, "at most 232448"),
        ({"registers": 255, "block": (256, 1, 1)}, None),
        ({"registers": 300, "block": (256, 1, 1)}, "and sm_90 has 65536"),
    ],
)
def test_a_launch_that_no_gpu_takes_is_refused_in_a_line(change, line):
    if line is None:
        require_launchable(replace(LAUNCH, **change), read_entry(PTX))
        return
    with pytest.raises(LaunchRefused, match=line) as refused:
        require_launchable(replace(LAUNCH, **change), read_entry(PTX))
    assert "\n" not in str(refused.value)


def test_static_shared_memory_has_a_limit_of_its_own():
    ptx = PTX.replace("[256]", "[50000]")
    with pytest.raises(LaunchRefused, match="49152 are allowed"):
        require_launchable(LAUNCH, read_entry(ptx))


def test_a_required_number_of_threads_is_required():
    ptx = PTX.replace(".maxntid 256, 1, 1", ".reqntid 64")
    with pytest.raises(LaunchRefused, match="its PTX requires 64"):
        require_launchable(LAUNCH, read_entry(ptx))


def launches_of(name, dtype, probe, architecture=90):
    """The inputs, the launches, and the memory as the last launch had it."""
    op, _, name = name.partition("/")
    variant = kernels.ops[op].variants[name]
    inputs = variant.op.probes[probe](getattr(torch, dtype), "cpu", 0)
    memories = []

    def execute(launch, memory):
        memories.append(memory)
        return SimpleNamespace(findings=())

    call = capture.emulate_call(variant, inputs, architecture, execute)
    return inputs, call, memories[-1]


def numbers(launch):
    return [int.from_bytes(one, "little", signed=True) for one in launch.arguments]


@triton_compiled
def test_triton_s_arguments_are_addresses_sizes_strides_and_scratch():
    (a, b), call, memory = launches_of("bmm/triton_tiled", "float16", "ragged")
    ((launch, _),) = call.launches
    given = numbers(launch)
    assert given[:2] == [a.data_ptr(), b.data_ptr()]
    assert given[2] == call.returned.data_ptr()
    assert given[3:6] == [17, 5, 19] and given[-2:] == [0, 0]
    assert launch.kernel == "_product_kernel" and "BLOCK_M=" in launch.config
    assert launch.grid == (2, 1, 1) and launch.block == (128, 1, 1)
    assert launch.registers and launch.dynamic_shared_bytes
    assert launch.ptx.count(".loc") > 50
    assert memory.at(given[0]).initialised and not memory.at(given[2]).initialised
    assert call.returned.isnan().all()


@triton_compiled
def test_addresses_in_a_table_lead_into_the_memory():
    gs, call, memory = launches_of(
        "grad_reduce_multi/triton_one_launch", "float16", "ragged"
    )
    ((launch, _),) = call.launches
    (table,) = (one for one in memory.allocations if "[7, 4] int64" in one.name)
    assert table.initialised and table.start in numbers(launch)
    for g in gs:
        assert memory.at(g.data_ptr()).name.startswith("input")


@triton_compiled
def test_two_launches_see_one_memory():
    _, call, memory = launches_of("grad_reduce/triton_two_stage", "float32", "ragged")
    (first, _), (second, _) = call.launches
    between = set(numbers(first)) & set(numbers(second)) - {0}
    assert any(memory.at(place) for place in between)


@triton_compiled
def test_memory_for_descriptors_made_by_the_kernel():
    _, call, _ = launches_of("bmm/triton_warp_specialized", "float16", "aligned_nt")
    ((launch, _),) = call.launches
    assert launch.block == (384, 1, 1)
    scratch = numbers(launch)[-2]
    assert scratch and scratch % 128 == 0


@numba_compiled
def test_numbas_arrays_are_addresses_sizes_and_strides_in_bytes():
    (a, b), call, _ = launches_of("bmm/numba_cuda_naive", "float32", "sliced")
    ((launch, _),) = call.launches
    strides = [4 * step for step in a.stride()]
    size = [a.numel(), 4, a.data_ptr(), *a.shape, *strides]
    assert numbers(launch)[:11] == [0, 0, *size]
    assert len(launch.arguments) >= 33 and ".loc" in launch.ptx


@numba_compiled
def test_numbas_addresses_as_integers_lead_into_the_memory():
    (a, b), call, memory = launches_of("bmm/numba_cuda_mma", "bfloat16", "ragged")
    ((launch, _),) = call.launches
    places = [memory.at(one).name for one in numbers(launch)[:3]]
    assert places[0].startswith("input 0") and places[1].startswith("input 1")
    assert "empty" in places[2]
    assert launch.registers > 32 and "BUFFER_A=" in launch.config


@numba_compiled
def test_a_kernel_that_was_kept_is_not_compiled_and_a_damaged_one_is(
    monkeypatch, tmp_path
):
    from batchline.bench.measure.emulator import compiled

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    compile_one = compiled._compile
    monkeypatch.setattr(
        compiled, "_compile", lambda *args: made.append(1) or compile_one(*args)
    )

    def launch():
        compiled._kept_or_compiled.cache_clear()
        _, call, _ = launches_of("bmm/numba_cuda_naive", "float32", "ragged")
        return call.launches[0][0]

    first = launch()
    assert made == [1]
    assert replace(launch(), arguments=()) == replace(first, arguments=())
    assert made == [1]
    (file,) = pins.cache_folder().iterdir()
    file.write_text(file.read_text().replace("sm_90", "sm_91"))
    assert launch().ptx == first.ptx or made == [1, 1]
    assert made == [1, 1]


@numba_compiled
def test_a_kernel_at_another_place_has_another_key_where_lines_are_kept():
    from numba import cuda

    from batchline.bench.measure.ahead.stored_kernels import key_of

    def kernel(file, first_line):
        names = {}
        source = "\n" * first_line + "def kernel(x):\n    x[0] = 1\n"
        exec(compile(source, file, "exec"), names)
        return cuda.jit(names["kernel"])

    def keys(*place):
        made = kernel(*place)
        return [
            key_of(made, (), (9, 0), with_places=places) for places in (False, True)
        ]

    plain, with_places = zip(keys("a", 0), keys("a", 3), keys("b", 0), keys("a", 0))
    assert len(set(plain)) == 1
    assert len(set(with_places)) == 3 and with_places[0] == with_places[3]


@pytest.mark.parametrize(
    "type_, value, packed",
    [
        ("i32", -2, struct.pack("<i", -2)),
        ("i64", 2**40, struct.pack("<q", 2**40)),
        ("u8", 200, b"\xc8"),
        ("i1", True, b"\x01"),
        ("fp32", 0.1, struct.pack("<f", 0.1)),
        ("fp16", 0.1, struct.pack("<e", 0.1)),
        ("bf16", 1.0 + 2**-8, b"\x80\x3f"),
        ("bf16", 1.0 + 3 * 2**-8, b"\x82\x3f"),
        ("fp64", 0.1, struct.pack("<d", 0.1)),
    ],
)
def test_a_number_is_packed_as_its_type(type_, value, packed):
    assert capture._scalar(type_, value) == packed


def test_a_cpu_variant_is_no_gpu_kernel():
    variant = kernels.ops["bmm"].variants["torch_bmm"]
    with pytest.raises(ValueError, match="no GPU kernel"):
        capture.emulate_call(variant, (), 90, lambda launch, memory: None)
