"""The rung on pairs of blocks: what it promises of its compiled code for sm_100, and that
its tiles are right in emulation.
"""

import dataclasses
import importlib
import re

import pytest
import torch

from batchline.bench.measure.checking.check import check_outputs, expect
from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.emulated import pinned
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
VARIANT = bmm.variants["gluon_pair"]
PINNED = pinned.load()
COLUMNS = 512  # of tensor memory


def operands(dtype, layout, batch=64, m=512, n=512, k=512):
    return stored(Draw(dtype, "cpu", 0), layout, batch, batch, m, n, k)


def compiled(inputs):
    """The PTX and the facts of the only launch."""
    (launch,) = compiler.launches_of(VARIANT, inputs, 100)
    (facts,) = compiler.read([launch])
    return launch.ptx, facts


@pytest.fixture
def module():
    return importlib.import_module("batchline.kernels.bmm.gluon_pair")


@pytest.fixture
def two_pairs(module, monkeypatch):
    """So that each has many tiles."""
    monkeypatch.setattr(module, "multiprocessors", lambda device: 4)
    return module


def why_not():
    with compiling_for(100):
        return VARIANT.why_unsupported(*operands(torch.float16, "nn", 1, 16, 16, 16))


def test_it_is_declined_of_a_triton_that_it_is_not_written_for(module, monkeypatch):
    assert why_not() is None
    monkeypatch.setattr(module.triton, "__version__", "3.8.0")
    assert why_not() == "it is for Triton 3.7.x, and this is 3.8.0"


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
def test_one_thread_issues_the_products_of_both_blocks(dtype, kind, layout):
    ptx, facts = compiled(operands(dtype, layout))
    assert f"tcgen05.mma.cta_group::2.kind::{kind}" in ptx
    assert "cta_group::1" not in ptx
    (columns,) = re.findall(r"tcgen05\.alloc\S+ \[\S+\], (\d+)", ptx)
    assert int(columns) == COLUMNS
    commits = re.findall(r"tcgen05\.commit\S+", ptx)
    assert commits and all("multicast::cluster" in one for one in commits)
    (expected,) = re.findall(r"expect_tx\S+ _, \[\S+\], (\d+)", ptx)
    assert int(expected) == 2 * 32 * 1024  # a stage of both blocks
    assert facts.warp_specialized and "setmaxnreg" in ptx
    assert (facts.stack_bytes, facts.spills, facts.warp_fault) == (0, 0, None)
    assert facts.threads == 256 and "6 stages" in facts.config


@pytest.mark.compiled
def test_every_warp_takes_part_in_the_cluster_s_barrier():
    """At the phase that the compiler adds at the end, the four warps that write wait:
    the other four must have arrived, each once more than it has waited.
    """
    ptx, _ = compiled(operands(torch.float16, "nn"))
    arrivals = re.findall(r"barrier\.cluster\.arrive", ptx)
    waits = re.findall(r"barrier\.cluster\.wait", ptx)
    assert len(arrivals) == len(waits) + 2  # those that load and those that multiply


@pytest.mark.compiled
def test_nobody_leaves_where_one_group_does_not_arrive_at_the_last_phase(two_pairs):
    def execute_without(launch, memory):
        *before, after = launch.ptx.rsplit("barrier.cluster.arrive.aligned;", 1)
        launch = dataclasses.replace(launch, ptx="".join([*before, after]))
        executions.append(execute(launch, memory, LATE))
        return executions[-1]

    executions = []
    inputs = operands(torch.float16, "nn", batch=1, m=16, n=16, k=16)
    emulate_call(VARIANT, inputs, 100, execute_without)
    (execution,) = executions
    assert {one.word for one in execution.findings} == {"deadlock"}


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
    assert (launch.grid, launch.cluster) == ((4, 1, 1), (2, 1, 1))
    assert execution.findings == ()
    check_outputs(call.returned, inputs, expect(bmm, inputs), str(schedule))
    return execution


@pytest.mark.compiled
@pytest.mark.parametrize("layout", ("nn", "nt", "tn"))
@pytest.mark.parametrize("schedule", (LATE, EARLY, SHUFFLED))
@pytest.mark.parametrize("dtype", (torch.float16, torch.float8_e4m3fn))
def test_each_tile_of_a_pair_is_written(dtype, schedule, layout, two_pairs):
    """C leaves in four parts (N = 272: tiles of 256 columns) and in one (N = 48: of 64).
    Of the last tile of rows the second block has some, or none (M = 336).
    """
    for m, n in ((400, 272), (336, 48)):
        inputs = operands(dtype, layout, batch=3, m=m, n=n, k=208)
        executed(VARIANT, inputs, schedule)


@pytest.mark.compiled
@pytest.mark.parametrize("columns", (128, 32))
def test_tiles_of_each_width_are_written_whole(columns, two_pairs):
    inputs = operands(torch.bfloat16, "nt", batch=2, m=392, n=72, k=72)
    config = two_pairs._config(inputs[0], columns, KNOWN[100])
    executed(VARIANT.with_config(config), inputs, LATE)


@pytest.mark.compiled
def test_it_reads_two_thirds_of_what_blocks_of_their_own_read(two_pairs):
    """Each byte of 512x512x64: by two columns of tiles and two rows of them."""
    inputs = operands(torch.float16, "nt", batch=2, k=64)
    counts = executed(VARIANT, inputs, LATE).counts
    assert round(counts.reads, 1) == 2
    assert counts.bank_excess == counts.sector_excess == 1
    assert counts.matrix_flops == {"f16": bmm.flops(*inputs)}


@pytest.mark.skipif(
    not any(job[0] == VARIANT.id for job in PINNED),
    reason="it is not pinned for this toolchain",
)
@pytest.mark.parametrize("dtype", VARIANT.dtypes)
def test_a_b200_is_predicted_from_what_is_pinned(dtype):
    (prediction,) = predictions(PINNED[VARIANT.id, dtype].calls, dtype)
    assert prediction.chip == "B200" and 0 < prediction.share <= 1
