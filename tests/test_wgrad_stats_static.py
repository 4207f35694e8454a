"""What `wgrad_stats/triton_fused` promises of its code on sm_90: tensor cores, fed 16
bytes at a time, and no stack.
"""

import pytest
import torch

from batchline.bench.measure.compiled import compiler
from batchline.kernels import backends
from batchline.kernels._triton.product import vector_bytes
from batchline.kernels.wgrad_stats import wgrad_stats

FUSED = wgrad_stats.variants["triton_fused"]
EXAMPLE = ("linear_512_T128", 64)
SEEN: set = set()  # what one scenario compiled, another need not
pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(
        backends.interpreted("triton") or backends.why_absent("triton") is not None,
        reason="nothing is compiled by an interpreter",
    ),
]


def inputs_of(scenario, batch, dtype):
    """Never written, so a large problem costs no memory."""
    return tuple(
        torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        for tensor in wgrad_stats.make_inputs(scenario, batch, dtype, "meta")
    )


def kernels_of(inputs, seen=None):
    """The facts of the kernels that multiply; those that add partial sums are another
    op's.
    """
    found = compiler.compile_variant(FUSED, inputs, 90, seen)
    return [facts for facts in found if facts.kernel == "_gradient_kernel"]


def enclosing(lines, number):
    """The operations around a line, by indentation, from the inside out."""
    indent, found = len(lines[number]) - len(lines[number].lstrip()), []
    for line in reversed(lines[:number]):
        if line.strip() and (left := len(line) - len(line.lstrip())) < indent:
            indent = left
            found.append(line)
    return found


@pytest.mark.parametrize(
    "scenario, dtype",
    [*((name, "bfloat16") for name in wgrad_stats.scenarios), (EXAMPLE[0], "float32")],
)
def test_no_default_spills_and_each_loads_as_wide_as_it_can(scenario, dtype):
    x, dy = inputs_of(scenario, 64, dtype)
    tile = FUSED.tunable.rule(x, dy)
    assert vector_bytes(dy.mT, x) == (
        x.element_size() if scenario.startswith("odd") else 16
    )
    for facts in kernels_of((x, dy), SEEN):
        assert (facts.stack_bytes, facts.spills) == (0, 0), facts
        assert facts.matrix_instruction == (
            "wgmma.mma_async" if dtype == "bfloat16" else None
        ), facts
        if (
            "ALONG_MEAN=False" in facts.config
        ):  # it loads X and dY alone, a thread its share of a step's
            shares = (
                tile[side] * tile["BLOCK_T"] * x.element_size() // facts.threads
                for side in ("BLOCK_M", "BLOCK_N")
            )
            assert set(facts.loads) == {
                str(min(vector_bytes(dy.mT, x), share)) for share in shares
            }, facts


def test_samples_and_tokens_are_one_pipeline(monkeypatch):
    from triton.runtime.jit import JITFunction

    launch, stages = JITFunction.run, []

    def keep(self, *args, **kwargs):
        kernel = launch(self, *args, **kwargs)
        stages.append(kernel.asm["ttgir"])
        return kernel

    monkeypatch.setattr(JITFunction, "run", keep)
    inputs = inputs_of(*EXAMPLE, "bfloat16")
    first, _ = kernels_of(inputs)
    lines = stages[0].splitlines()
    (dot,) = (
        number for number, line in enumerate(lines) if "ttng.warp_group_dot " in line
    )
    assert sum("scf.for" in line for line in enclosing(lines, dot)) == 1
    tile = FUSED.tunable.rule(*inputs)
    step = (
        (tile["BLOCK_M"] + tile["BLOCK_N"])
        * tile["BLOCK_T"]
        * 2
        // (16 * first.threads)
    )
    assert first.loads == {
        "16": step * tile["num_stages"]
    }  # the prologue's stages and the loop's


def test_a_tile_twice_as_large_does_spill():
    inputs = inputs_of(*EXAMPLE, "bfloat16")
    with FUSED.tunable.forced(FUSED.tunable.rule(*inputs) | {"BLOCK_N": 256}):
        assert all(facts.stack_bytes and facts.spills for facts in kernels_of(inputs))
