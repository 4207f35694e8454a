"""The rung on tensor memory: what it promises of its compiled code for sm_100, and that
its tiles are right in emulation.
"""

import importlib
import re

import pytest
import torch

from batchline.bench.measure.checking.check import check_outputs, expect
from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.emulated import pinned
from batchline.bench.measure.emulated.counted import every_job
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.execution import (
    EARLY,
    LATE,
    SHUFFLED,
    execute,
)
from batchline.bench.verdicts.predicted import predictions
from batchline.kernels import backends
from batchline.kernels.architectures import KNOWN
from batchline.kernels.bmm import bmm, stored
from batchline.kernels.draw import Draw
from batchline.kernels.target import compiling_for

pytestmark = pytest.mark.skipif(
    backends.interpreted("triton") or backends.why_absent("triton") is not None,
    reason="nothing is compiled by an interpreter",
)
VARIANT = bmm.variants["gluon_tcgen05"]
PINNED = pinned.load()
COLUMNS = 512  # of tensor memory


def operands(dtype, layout, batch=64, m=512, n=512, k=512):
    return stored(Draw(dtype, "cpu", 0), layout, batch, batch, m, n, k)


def compiled(inputs):
    """The PTX and the facts of the only launch."""
    (launch,) = compiler.launches_of(VARIANT, inputs, 100)
    (facts,) = compiler.read([launch])
    return launch.ptx, facts


@pytest.mark.parametrize("number", (80, 90, 120))
def test_it_is_declined_where_there_is_no_tensor_memory(number):
    with compiling_for(number):
        why = VARIANT.why_unsupported(*operands(torch.float16, "nn", 1, 16, 16, 16))
    assert why == (
        f"tcgen05 is of compute capability 10.x alone, and this is sm_{number}"
    )


@pytest.mark.compiled
@pytest.mark.parametrize(
    "dtype, kind", [(torch.bfloat16, "f16"), (torch.float8_e4m3fn, "f8f6f4")]
)
@pytest.mark.parametrize("layout", ("nn", "nt", "tn"))
def test_one_thread_issues_products_into_all_of_tensor_memory(dtype, kind, layout):
    ptx, facts = compiled(operands(dtype, layout))
    assert f"tcgen05.mma.cta_group::1.kind::{kind}" in ptx
    (columns,) = re.findall(r"tcgen05\.alloc\S+ \[\S+\], (\d+)", ptx)
    assert int(columns) == COLUMNS
    loads = re.findall(r"tcgen05\.ld\.sync\.aligned\.32x32b\.x(\d+)", ptx)
    assert loads == 4 * ["64"]  # a part of C each
    assert facts.warp_specialized and "setmaxnreg" in ptx
    assert (facts.stack_bytes, facts.spills, facts.warp_fault) == (0, 0, None)
    assert facts.threads == 256


@pytest.mark.compiled
@pytest.mark.parametrize(
    "n", [16, *(pytest.param(n, marks=pytest.mark.slow) for n in (32, 64, 128))]
)
def test_no_candidate_spills_or_asks_for_more_than_a_multiprocessor_has(n):
    inputs = operands(torch.float16, "nn", n=n)
    with compiling_for(100):
        configs = VARIANT.tunable.candidates(*inputs)
    for config in configs:
        with VARIANT.tunable.forced(config):
            ptx, facts = compiled(inputs)
        (columns,) = re.findall(r"tcgen05\.alloc\S+ \[\S+\], (\d+)", ptx)
        assert int(columns) <= COLUMNS, config
        assert facts.stack_bytes == 0 and facts.shared_bytes <= 227 * 1024, config


def executed(variant, inputs, schedule):
    """The call, and the execution of its only launch."""
    call = emulate_call(
        variant, inputs, 100, lambda launch, memory: execute(launch, memory, schedule)
    )
    ((launch, execution),) = call.launches
    assert launch.grid == (2, 1, 1) and execution.findings == ()
    check_outputs(call.returned, inputs, expect(bmm, inputs), str(schedule))
    return execution


@pytest.fixture
def two_programs(monkeypatch):
    """So that each has many tiles."""
    module = importlib.import_module("batchline.kernels.bmm.gluon_tcgen05")
    monkeypatch.setattr(module, "multiprocessors", lambda device: 2)
    return module


@pytest.mark.compiled
@pytest.mark.parametrize("layout", ("nn", "nt", "tn"))
@pytest.mark.parametrize("schedule", (LATE, EARLY, SHUFFLED))
@pytest.mark.parametrize("dtype", (torch.float16, torch.float8_e4m3fn))
def test_each_tile_of_a_program_is_written(dtype, schedule, layout, two_programs):
    """C leaves in four parts (N = 272: tiles of 256 columns) and in one (N = 48: of 64,
    whose places alternate from tile to tile).
    """
    for n in (272, 48):
        inputs = operands(dtype, layout, batch=3, m=208, n=n, k=208)
        executed(VARIANT, inputs, schedule)


@pytest.mark.compiled
@pytest.mark.parametrize("columns", (128, 32, 16))
def test_tiles_of_each_width_are_written_whole(columns, two_programs):
    inputs = operands(torch.bfloat16, "nt", batch=2, m=200, n=72, k=72)
    config = two_programs._config(inputs[0], columns, KNOWN[100])
    executed(VARIANT.with_config(config), inputs, LATE)


@pytest.mark.compiled
def test_it_reads_less_than_tiles_of_128_columns(two_programs):
    """Each byte of 512x512x64: by two columns of tiles and four rows of them."""
    inputs = operands(torch.float16, "nt", batch=2, k=64)
    counts = executed(VARIANT, inputs, LATE).counts
    assert round(counts.reads, 1) == 3
    assert counts.bank_excess == counts.sector_excess == 1
    assert counts.matrix_flops == {"f16": bmm.flops(*inputs)}


def test_it_is_executed_for_sm_100_and_others_are_not():
    variants = (VARIANT, bmm.variants["triton_tiled"])
    jobs = every_job([(one.id, "float16") for one in variants], variants)
    assert [architecture for *_, architecture in jobs] == [80, 90, 100, 80, 90]


@pytest.mark.skipif(not PINNED, reason="nothing is pinned for this toolchain")
@pytest.mark.parametrize("dtype", VARIANT.dtypes)
def test_a_b200_is_predicted_from_what_is_pinned(dtype):
    (prediction,) = predictions(PINNED[VARIANT.id, dtype].calls, dtype)
    assert prediction.chip == "B200" and 0 < prediction.share <= 1
