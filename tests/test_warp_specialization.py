"""The rungs on TMA: what they promise of their compiled code, and that a program is
right past its first tile.
"""

import contextvars
import gc
import importlib
import os
import re
import subprocess
import sys
import weakref

import pytest
import torch

from batchline.bench.measure.checking.check import (
    check_outputs,
    checked_call,
    expect,
)
from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.emulated.assembler import remarks
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.execution import (
    EARLY,
    LATE,
    SHUFFLED,
    execute,
)
from batchline.kernels import backends
from batchline.kernels.architectures import KNOWN
from batchline.kernels.bmm import bmm, stored
from batchline.kernels.draw import Draw

NAMES = ("triton_persistent_tma", "triton_warp_specialized")
PING_PONG, CLUSTER = IN_GLUON = ("gluon_ping_pong", "gluon_cluster")
INTERPRETED = backends.interpreted("triton")
compiled_only = pytest.mark.skipif(
    INTERPRETED or backends.why_absent("triton") is not None,
    reason="nothing is compiled by an interpreter",
)


def operands(dtype, layout, batch=16, m=512, n=512, k=512):
    return stored(Draw(dtype, "cpu", 0), layout, batch, batch, m, n, k)


def compiled(name, inputs, architecture, monkeypatch):
    """The compiled kernel's facts and its stages by name: "ttgir", "ptx"."""
    from triton.runtime.jit import JITFunction

    launch, stages = JITFunction.run, {}

    def keep(self, *args, **kwargs):
        kernel = launch(self, *args, **kwargs)
        stages.update(kernel.asm)
        return kernel

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", keep)
        (facts,) = compiler.compile_variant(bmm.variants[name], inputs, architecture)
    return facts, stages


def conversions(ttgir):
    """Operands that pass through registers, or change their layout, on the way to the
    tensor cores.
    """
    return re.findall(r"ttg\.local_load|ttg\.convert_layout", ttgir)


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize("layout", ("nn", "nt", "tn"))
@pytest.mark.parametrize("name", (*NAMES, *IN_GLUON))
def test_tma_feeds_wgmma_and_stores(name, layout, monkeypatch):
    facts, stages = compiled(name, operands(torch.float16, layout), 90, monkeypatch)
    assert re.search(
        r"cp\.async\.bulk\.tensor\.\dd\.shared::\w+\.global", stages["ptx"]
    )
    assert re.search(r"cp\.async\.bulk\.tensor\.\dd\.global\.shared", stages["ptx"])
    assert (facts.matrix_instruction, facts.stack_bytes) == ("wgmma.mma_async", 0)
    assert not conversions(stages["ttgir"])


@pytest.mark.compiled
@compiled_only
def test_fp8_stays_out_of_registers_and_its_sums_are_kept_in_fp32(monkeypatch):
    facts, stages = compiled(
        NAMES[0], operands(torch.float8_e4m3fn, "nt"), 90, monkeypatch
    )
    assert (facts.matrix_instruction, facts.stack_bytes) == ("wgmma.mma_async", 0)
    assert not conversions(stages["ttgir"])
    assert (
        stages["ptx"].count("add.f32") >= 128 * 128 // facts.threads
    )  # each of a thread's sums, once every 128


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize("architecture", (90, 100))
def test_warps_are_specialized(architecture, monkeypatch):
    if architecture == 100 and backends.triton.__version__.startswith("3.6"):
        pytest.skip("Triton 3.6 can't partition it for sm_100")
    facts, stages = compiled(
        NAMES[1], operands(torch.bfloat16, "nt"), architecture, monkeypatch
    )
    assert "ttg.warp_specialize" in stages["ttgir"]
    assert "setmaxnreg" in stages["ptx"]
    assert facts.stack_bytes == 0 and facts.threads > 4 * 32


@pytest.mark.compiled
@compiled_only
def test_products_of_a_group_stay_in_flight_while_the_next_are_issued(monkeypatch):
    facts, stages = compiled(
        PING_PONG, operands(torch.bfloat16, "nt", batch=64), 90, monkeypatch
    )
    waits = re.findall(r"wgmma\.wait_group\.sync\.aligned (\d)", stages["ptx"])
    assert sorted(waits) == [
        "0",
        "0",
        "1",
        "1",
    ]  # of each group: at its end, in its loop
    assert facts.warp_specialized and "setmaxnreg" in stages["ptx"]
    assert remarks(stages["ptx"], 90) == ()  # no wgmma is serialised


@pytest.mark.compiled
@compiled_only
def test_one_operand_comes_to_both_blocks_of_a_cluster(monkeypatch):
    facts, stages = compiled(
        CLUSTER, operands(torch.bfloat16, "nt", batch=64), 90, monkeypatch
    )
    loads = re.findall(r"cp\.async\.bulk\.tensor\.\dd\.shared\S+", stages["ptx"])
    assert [".multicast::cluster" in one for one in loads] == [False, True]  # A, B
    waits = re.findall(r"wgmma\.wait_group\.sync\.aligned (\d)", stages["ptx"])
    assert sorted(waits) == ["0", "1"]  # at a tile's end, in its loop
    assert facts.warp_specialized and "setmaxnreg" in stages["ptx"]
    assert remarks(stages["ptx"], 90) == ()


@pytest.mark.compiled
@compiled_only
def test_a_pair_of_blocks_reads_half_of_what_two_blocks_read():
    """Each byte of 512x512x128: by two columns of 256x256 tiles, by four of 128x128."""
    inputs = operands(torch.float16, "nt", batch=2, k=128)
    reads = []
    for name, shape in ((PING_PONG, (128, 128)), (CLUSTER, (128, 256))):
        module = importlib.import_module(f"batchline.kernels.bmm.{name}")
        config = module._config(inputs[0], shape, KNOWN[90])
        variant = bmm.variants[name].with_config(config)
        ((_, execution),) = emulate_call(variant, inputs, 90, execute).launches
        reads.append(round(execution.counts.reads, 1))
    assert reads == [4, 2]


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize("layout", ("nn", "nt", "tn"))
@pytest.mark.parametrize("schedule", (LATE, EARLY, SHUFFLED))
@pytest.mark.parametrize("name", IN_GLUON)
def test_each_tile_of_a_program_is_written(name, schedule, layout, monkeypatch):
    """C leaves in two parts (N = 264: tiles of 128 columns) and in one (N = 40: of 64,
    whose places alternate from tile to tile).
    """
    module = importlib.import_module(f"batchline.kernels.bmm.{name}")
    monkeypatch.setattr(module, "multiprocessors", lambda device: 2)
    for n in (264, 40):
        inputs = operands(torch.float16, layout, batch=3, m=200, n=n, k=200)
        call = emulate_call(
            bmm.variants[name],
            inputs,
            90,
            lambda launch, memory: execute(launch, memory, schedule),
        )
        ((launch, execution),) = call.launches
        assert launch.grid == (2, 1, 1) and execution.findings == ()
        check_outputs(call.returned, inputs, expect(bmm, inputs), layout)


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize(
    "name, shape",
    [
        (PING_PONG, (64, 256)),
        (CLUSTER, (128, 256)),
        *(
            pytest.param(PING_PONG, shape, marks=pytest.mark.slow)
            for shape in ((64, 128), (64, 64), (64, 32), (64, 16))
        ),
        *(
            pytest.param(CLUSTER, shape, marks=pytest.mark.slow)
            for shape in ((128, 128), (64, 256), (64, 64))
        ),
    ],
)
@pytest.mark.parametrize("layout", ("nt", "tn"))
def test_tiles_of_each_shape_are_written_whole(layout, name, shape, monkeypatch):
    """Up to four parts of a tile leave through two places."""
    module = importlib.import_module(f"batchline.kernels.bmm.{name}")
    monkeypatch.setattr(module, "multiprocessors", lambda device: 2)
    inputs = operands(torch.bfloat16, layout, batch=2, m=200, n=520, k=72)
    config = module._config(inputs[0], shape, KNOWN[90])
    call = emulate_call(
        bmm.variants[name].with_config(config),
        inputs,
        90,
        lambda launch, memory: execute(launch, memory, LATE),
    )
    ((_, execution),) = call.launches
    assert execution.findings == ()
    check_outputs(call.returned, inputs, expect(bmm, inputs), layout)


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", (*NAMES, *IN_GLUON))
def test_no_candidate_spills_or_asks_for_more_memory_than_sm_90_has(
    name, every, monkeypatch
):
    """Every third candidate; `make test-slow` compiles them all."""
    for dtype, layout in ((torch.float16, "nn"), (torch.float8_e4m3fn, "nt")):
        inputs = operands(dtype, layout)
        variant = bmm.variants[name]
        for config in (
            ()
            if variant.why_unsupported(*inputs)
            else variant.tunable.candidates(*inputs)[::every]
        ):
            with variant.tunable.forced(config):
                facts, _ = compiled(name, inputs, 90, monkeypatch)
            assert facts.stack_bytes == 0 and facts.shared_bytes <= 227 * 1024, config


@pytest.mark.skipif(
    not INTERPRETED, reason="walked by the interpreter, in a process of its own"
)
@pytest.mark.parametrize("layout", ("nn", "nt", "tn"))
@pytest.mark.parametrize("name", NAMES)
def test_a_program_walks_tile_after_tile(name, layout, monkeypatch):
    monkeypatch.setattr(
        importlib.import_module(f"batchline.kernels.bmm.{name}"),
        "multiprocessors",
        lambda device: 2,
    )
    inputs = operands(torch.float16, layout, batch=3, m=200, n=136, k=64)
    assert bmm.variants[name].why_unsupported(*inputs) is None
    checked_call(bmm.variants[name], inputs, expect(bmm, inputs), layout)


@pytest.mark.slow
@pytest.mark.compiled
@compiled_only
def test_every_tile_is_right_where_it_is_interpreted():
    from tests.test_interpreters import _why_not

    if _why_not("triton"):
        pytest.skip(_why_not("triton"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            __file__,
            "-k",
            "tile_after_tile",
            "-p",
            "no:cacheprovider",
        ],
        env=os.environ | backends.interpreter_environment("triton"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout + done.stderr


def test_what_tma_cannot_describe_is_declined():
    def a(*strides, offset=0):
        return torch.empty(4096, dtype=torch.float16).as_strided(
            (2, 16, 16), strides, offset
        )

    b = a(256, 16, 1)
    declined = {
        strides: bmm.variants[NAMES[0]].why_unsupported(a(*strides), b) is not None
        for strides in (
            (256, 16, 1),
            (256, 1, 16),
            (0, 16, 1),
            (16, 32, 1),  # rows, columns, shared, the batch inside
            (256, 32, 2),
            (272, 17, 1),
            (260, 16, 1),
            (256, 0, 1),
        )
    }  # stepped, and strides that are no 16 bytes, or none
    assert list(declined.values()) == 4 * [False] + 4 * [True]
    assert bmm.variants[NAMES[0]].why_unsupported(a(256, 16, 1, offset=4), b)


@pytest.mark.compiled
@compiled_only
def test_memory_for_a_launch_keeps_no_tensor_and_a_users_own_allocator_stays(
    monkeypatch,
):
    from triton.runtime import _allocation

    module = importlib.import_module("batchline.kernels.bmm.triton_warp_specialized")

    def launch():
        a, b = operands(torch.float16, "nn")
        compiled("triton_warp_specialized", (a, b), 90, monkeypatch)
        return weakref.ref(a)

    def by_default():
        kept = launch()
        gc.collect()
        assert _allocation._allocator.get() is module._workspace and kept() is None

    def beside_a_users_own():
        own = object()
        _allocation.set_allocator(own)
        launch()
        assert _allocation._allocator.get() is own

    for check in (by_default, beside_a_users_own):
        contextvars.Context().run(check)
