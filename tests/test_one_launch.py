"""The variants `triton_one_launch`: their counters, and what is executed in emulation
when they are used again.
"""

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking.check import check_outputs, expect
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.kernels.draw import Draw
from batchline.kernels._triton import last_program
from batchline.kernels.grad_reduce import triton_one_launch as split_module
from batchline.kernels.grad_stats import triton_one_launch as module

ONE_LAUNCH = kernels.ops["grad_stats"].variants["triton_one_launch"]
executed_only = pytest.mark.skipif(
    why_cannot_compile("triton") is not None, reason="Triton compiles nothing here"
)


SPLIT = kernels.ops["grad_reduce"].variants["triton_one_launch"]
# Each with the module that takes its counters, and inputs: of the first 47 blocks in
# groups of 7, of the other two blocks of columns that three programs share.
CASES = {
    "grad_stats": (ONE_LAUNCH, module, (5, 3000)),
    "grad_reduce": (SPLIT, split_module, (600, 40)),
}


def emulated(variant, inputs, change=lambda launch: launch):
    """The outputs in a shuffled order of blocks and warps, and the faults of each
    launch.
    """
    from batchline.bench.measure.emulator.capture import emulate_call
    from batchline.bench.measure.emulator.execution import SHUFFLED, execute

    call = emulate_call(
        variant,
        inputs,
        90,
        lambda launch, memory: execute(change(launch), memory, SHUFFLED),
    )
    assert len(call.launches) == 1
    faults = [
        found.word
        for _, execution in call.launches
        for found in execution.findings
        if found.is_fault
    ]
    return call.returned, faults


@pytest.fixture(params=CASES)
def case(request):
    """(the variant, the module that takes its counters, its inputs)"""
    variant, taker, shape = CASES[request.param]
    return variant, taker, (Draw(torch.float32, "cpu", 0).uniform(*shape),)


@executed_only
def test_counters_are_left_as_they_were_for_the_next_call(
    monkeypatch, case, one_thread
):
    variant, taker, inputs = case
    kept = torch.zeros(64, dtype=torch.int32)
    monkeypatch.setattr(taker, "counters", lambda device, count: kept)
    expected = expect(variant.op, inputs)
    calls = []
    for _ in range(3):
        returned, faults = emulated(variant, inputs)
        check_outputs(returned, inputs, expected, "again")
        calls.append(returned if isinstance(returned, tuple) else (returned,))
        assert not faults and not kept.any()
    for again in calls[1:]:
        assert all(map(torch.equal, again, calls[0]))


@executed_only
@pytest.mark.parametrize("sem", ["relaxed", "release", "acquire"])
def test_a_count_that_orders_less_is_found(case, sem, one_thread):
    import dataclasses

    variant, _, inputs = case

    def weaken(launch):
        weaker = launch.ptx.replace("atom.global.gpu.acq_rel", f"atom.global.gpu.{sem}")
        assert weaker != launch.ptx
        return dataclasses.replace(launch, ptx=weaker)

    _, faults = emulated(variant, inputs, weaken)
    assert "global-race" in faults


def test_a_cpu_call_has_counters_of_its_own():
    one, other = (last_program.counters(torch.device("cpu"), 3) for _ in range(2))
    assert one.data_ptr() != other.data_ptr() and not one.any()
    assert (one.dtype, one.shape) == (torch.int32, (3,))


def test_a_large_batch_is_left_to_a_second_launch():
    g = torch.empty(module.MOST_SAMPLES + 1, 64, device="meta")
    assert "second launch" in ONE_LAUNCH.why_unsupported(g)
    assert ONE_LAUNCH.why_unsupported(g[1:]) is None


def test_blocks_narrow_until_no_sm_reads_much_more_than_another():
    rule = ONE_LAUNCH.tunable.rule
    full, over = (
        torch.empty(64, blocks * 128, dtype=torch.bfloat16, device="meta")
        for blocks in (132, 141)
    )
    assert rule(full)["COLUMNS"] == 128
    assert rule(over)["COLUMNS"] < 128
