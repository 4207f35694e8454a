"""Kernels that were wrong, or did more than they had to, in ways that only the compiled
code shows: executed in emulation.
"""

import importlib

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking.check import check_outputs, expect
from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.emulator import subjects
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.execution import EARLY, LATE, execute
from batchline.bench.measure.emulator.subjects import Subject
from batchline.kernels.architectures import KNOWN
from batchline.kernels.op import FP8

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(
        bool(compiler.why_cannot_compile("triton")), reason="needs Triton's compiler"
    ),
]


def require_right(*subject, schedule=LATE):
    """Execute a subject (variant, dtype, probe, architecture) → its verdict."""
    verdict = subjects.verdict_of(Subject(*subject), schedule)
    assert verdict.wrong is None
    assert [str(one) for one in verdict.findings if one.is_fault] == []
    return verdict


def counts_of(variant, *inputs, architecture=90):
    """What a call of a variant executes, all of its launches together."""
    op, _, name = variant.partition("/")
    call = emulate_call(
        kernels.ops[op].variants[name],
        inputs,
        architecture,
        lambda launch, memory: execute(launch, memory, LATE),
    )
    first, *others = [execution.counts for _, execution in call.launches]
    return sum(others, first)


@pytest.mark.parametrize("probe", ["ragged", "transposed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hints_of_a_branch_do_not_hold_in_the_other(dtype, probe):
    require_right("grad_reduce_multi/triton_one_launch", dtype, probe, 90)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_both_groups_write_their_own_rows_of_a_tile(dtype):
    require_right("bmm/triton_warp_specialized", dtype, "aligned_tiles_tn", 90)


@pytest.mark.parametrize("rows, columns", [(64, 4096), (64, 1536), (40, 1001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "variant", ["grad_reduce/triton_whole_words", "grad_reduce_multi/triton_one_launch"]
)
def test_rows_of_several_warps_are_added_without_bank_conflicts(
    variant, dtype, rows, columns
):
    counts = counts_of(variant, torch.randn(rows, columns).to(dtype))
    assert counts.requests and counts.bank_excess < 1.05


@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_batch_is_added_by_the_warp_that_read_it(dtype, rows):
    counts = counts_of(
        "grad_reduce/triton_whole_words", torch.randn(rows, 4096).to(dtype)
    )
    assert not counts.passes


@pytest.mark.parametrize("schedule", [LATE, EARLY])
def test_sums_of_fp8_products_are_waited_for_before_they_are_added(schedule):
    subject = ("bmm/triton_persistent_tma", FP8, "aligned_tiles_nt", 90)
    require_right(*subject, schedule=schedule)


@pytest.mark.parametrize("schedule", [LATE, EARLY])
@pytest.mark.parametrize(
    "k, tuned_k, flatten",
    [
        (40, 40, False),
        (120, 120, False),
        (200, 200, True),
        (200, 200, False),
        (40, 200, True),
        (200, 120, False),
    ],
)
def test_halves_of_a_wide_tile_are_written_in_every_form(
    k, tuned_k, flatten, schedule, monkeypatch
):
    """128 columns leave as two halves; the programs walk tile after tile. A
    configuration of another K is right, too.
    """
    module = importlib.import_module("batchline.kernels.bmm.triton_persistent_tma")
    monkeypatch.setattr(module, "multiprocessors", lambda device: 2)
    subject = Subject(
        "bmm/triton_persistent_tma", "bfloat16", f"B=2,M=200,N=264,K={k}", 90
    )
    inputs = subjects.inputs_of(subject)
    shape = 128, 128, 8  # rows, columns, warps
    tuned = torch.empty(3, 200, tuned_k, dtype=torch.bfloat16, device="meta")
    config = module._config(tuned, shape, 1, KNOWN[90], flatten)
    variant = subjects.variant_of(subject).with_config(config)
    call = emulate_call(
        variant, inputs, 90, lambda launch, memory: execute(launch, memory, schedule)
    )
    ((launch, execution),) = call.launches
    assert launch.grid == (2, 1, 1) and execution.findings == ()
    check_outputs(call.returned, inputs, expect(variant.op, inputs), str(subject))


def test_a_table_kept_from_an_earlier_call_is_known_by_its_address():
    subject = ("grad_reduce_multi/numba_cuda_one_launch", "float32", "one_tensor", 90)
    inputs = subjects.inputs_of(Subject(*subject))
    variant = subjects.variant_of(Subject(*subject))
    for _ in range(2):
        call = emulate_call(
            variant, inputs, 90, lambda launch, memory: execute(launch, memory, LATE)
        )
        assert [one.findings for _, one in call.launches] == [()]
