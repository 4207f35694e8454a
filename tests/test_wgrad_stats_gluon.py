"""`wgrad_stats/gluon_fused`: what its compiled code promises, and that a program is right
past its first tile, its first sample and its last stage.
"""

import importlib
import re

import pytest
import torch

from batchline.bench.measure.checking.check import check_outputs, expect
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
from batchline.kernels.draw import Draw
from batchline.kernels.target import compiling_for
from batchline.kernels.wgrad_stats import wgrad_stats

FUSED = wgrad_stats.variants["gluon_fused"]
compiled_only = pytest.mark.skipif(
    backends.interpreted("triton") or backends.why_absent("triton") is not None,
    reason="nothing is compiled by an interpreter",
)


def never_written(batch=64, tokens=128, i=512, o=512):
    """A problem of any size that costs no memory."""
    return (
        torch.empty(batch, tokens, i, dtype=torch.bfloat16),
        torch.empty(batch, tokens, o, dtype=torch.bfloat16),
    )


def compiled(inputs, monkeypatch):
    """The facts and the PTX of the kernels that multiply; those that add partial sums
    are another op's.
    """
    from triton.runtime.jit import JITFunction

    launch, texts = JITFunction.run, []

    def keep(self, *args, **kwargs):
        kernel = launch(self, *args, **kwargs)
        texts.append(kernel.asm["ptx"])
        return kernel

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", keep)
        facts = compiler.compile_variant(FUSED, inputs, 90)
    return [
        (one, ptx)
        for one, ptx in zip(facts, texts, strict=True)
        if one.kernel == "_kernel"
    ]


@compiled_only
@pytest.mark.commands
def test_products_stay_in_flight_and_no_thread_adds_up_64_squares_in_turn(monkeypatch):
    """A chain of 64 additions would be as long as a step's products: 16 squares lie side
    by side, to each of which three are added.
    """
    of_mean, along_mean = compiled(never_written(), monkeypatch)
    for facts, ptx in (of_mean, along_mean):
        waits = re.findall(r"wgmma\.wait_group\.sync\.aligned (\d)", ptx)
        assert sorted(waits) == [
            "0",
            "0",
            "1",
            "1",
        ]  # of each group: at a sample's end, in its loop
        assert facts.warp_specialized and "setmaxnreg" in ptx
        assert facts.matrix_instruction == "wgmma.mma_async"
        assert facts.loads["TMA"] == 4  # two halves of the rows, and columns twice 64
        assert (facts.stack_bytes, facts.spills) == (0, 0)
        assert remarks(ptx, 90) == ()  # no wgmma is serialised
    assert len(re.findall(r"mul\.f32", along_mean[1])) == 2 * 16  # all others are fused


@compiled_only
@pytest.mark.slow
def test_no_candidate_spills_or_asks_for_more_memory_than_sm_90_has(monkeypatch):
    inputs = never_written()
    for config in FUSED.tunable.candidates(*inputs):
        with FUSED.tunable.forced(config):
            for facts, _ in compiled(inputs, monkeypatch):
                assert (facts.stack_bytes, facts.spills) == (0, 0), config
                assert facts.shared_bytes <= 227 * 1024, config


def problem(x_transposed, dy_transposed, batch=5, tokens=136, i=264, o=136):
    """3x2 tiles of 128x128, or 2x3; 15 steps of 5 samples: more than there are stages."""
    draw = Draw(torch.float16, "cpu", 0)

    def drawn(size, transposed):
        if transposed:
            return draw.uniform(batch, size, tokens).mT
        return draw.uniform(batch, tokens, size)

    return drawn(i, x_transposed), drawn(o, dy_transposed)


def emulated(config, inputs, schedule, monkeypatch):
    """The outputs on two multiprocessors: a program has several tiles."""
    module = importlib.import_module("batchline.kernels.wgrad_stats.gluon_fused")
    monkeypatch.setattr(module, "multiprocessors", lambda device: 2)
    variant = FUSED.with_config({**FUSED.tunable.rule(*inputs), **config})
    call = emulate_call(
        variant, inputs, 90, lambda launch, memory: execute(launch, memory, schedule)
    )
    assert call.launches[0][0].grid == (2, 1, 1)
    for _, execution in call.launches:
        assert execution.findings == ()
    check_outputs(call.returned, inputs, expect(wgrad_stats, inputs), str(config))
    return call.returned


@compiled_only
@pytest.mark.commands
@pytest.mark.parametrize(
    "config, turned",
    [
        ({"BLOCK_N": 128, "SPLITS": 2}, (False, False)),
        ({"BLOCK_N": 64, "SPLITS": 5}, (True, True)),
        ({"BLOCK_N": 32, "SPLITS": 1}, (True, False)),
        ({"BLOCK_N": 16, "SPLITS": 3}, (False, True)),
    ],
)
@pytest.mark.parametrize("i, o", [(264, 136), (136, 264)])
def test_each_sample_of_each_tile_is_right_and_the_same_by_every_schedule(
    i, o, config, turned, monkeypatch
):
    inputs = problem(*turned, i=i, o=o)
    first, *others = (
        emulated(config, inputs, schedule, monkeypatch)
        for schedule in (LATE, EARLY, SHUFFLED)
    )
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other))


@compiled_only
@pytest.mark.commands
@pytest.mark.parametrize("tokens", (1, 16, 20))
def test_few_tokens_take_a_shorter_step(tokens, monkeypatch):
    emulated({}, problem(False, False, 7, tokens), SHUFFLED, monkeypatch)


def test_what_tma_cannot_describe_is_declined():
    def x(*strides, offset=0):
        return torch.empty(8192, dtype=torch.float16).as_strided(
            (2, 16, 16), strides, offset
        )

    dy = x(256, 16, 1)
    declined = {
        strides: FUSED.why_unsupported(x(*strides), dy)
        for strides in (
            (256, 16, 1),
            (256, 1, 16),
            (0, 16, 1),
            (16, 32, 1),  # features, tokens, one sample for all, samples inside
            (256, 32, 2),
            (272, 17, 1),
            (260, 16, 1),
        )
    }  # stepped, and strides that are no 16 bytes
    assert list(declined.values())[:4] == 4 * [None]
    for reason in list(declined.values())[4:]:
        assert reason.startswith("TMA wants X with contiguous features or tokens")
    off_its_base = x(256, 16, 1, offset=4)
    assert FUSED.why_unsupported(dy, off_its_base).startswith("TMA wants dY")


@pytest.mark.parametrize("number", (80, 86, 89, 100, 120))
def test_it_is_declined_where_there_is_no_wgmma(number):
    inputs = wgrad_stats.make_inputs("linear_512_T128", 64, "bfloat16", "meta")
    with compiling_for(number):
        reason = FUSED.why_unsupported(*inputs)
    assert reason.startswith("wgmma is of sm_90 alone")
