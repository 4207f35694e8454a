"""`wgrad_stats/triton_ghost`: each tile is right in emulation with several pairs of token
tiles, and its code on sm_90 is wgmma without a stack.
"""

import pytest
import torch

from batchline.bench.measure.checking.check import check_outputs, expect, held_to
from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.kernels.draw import Draw
from batchline.kernels.wgrad_stats import triton_ghost as module
from batchline.kernels.wgrad_stats import wgrad_stats

GHOST = wgrad_stats.variants["triton_ghost"]
compiled_only = pytest.mark.skipif(
    why_cannot_compile("triton") is not None, reason="Triton compiles nothing here"
)


def emulated(inputs, architecture):
    """The call, with its launches' executions; nothing is found in them."""
    from batchline.bench.measure.emulator.capture import emulate_call
    from batchline.bench.measure.emulator.execution import SHUFFLED, execute

    call = emulate_call(
        GHOST,
        inputs,
        architecture,
        lambda launch, memory: execute(launch, memory, SHUFFLED),
    )
    assert not [
        found
        for _, execution in call.launches
        for found in execution.findings
        if found.is_fault
    ]
    return call


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("tokens, block_t", [(300, 128), (130, 64), (70, 32), (40, 16)])
def test_each_pair_of_token_tiles_counts_once(
    tokens, block_t, architecture, one_thread
):
    """Three tiles of each size: an odd row of the triangle has no other to share."""
    draw = Draw(torch.bfloat16, "cpu", 0)
    inputs = draw.uniform(2, tokens, 40), draw.uniform(2, tokens, 72)
    (config,) = (
        config
        for config in GHOST.tunable.candidates(*inputs)
        if config["BLOCK_T"] == block_t
    )
    with GHOST.tunable.forced(config):
        call = emulated(inputs, architecture)
    launch, _ = call.launches[0]
    assert launch.grid == (2 * 6, 1, 1)
    assert ("wgmma" in launch.ptx) == (architecture == 90 and block_t >= 64)
    expected = held_to(GHOST, inputs, expect(wgrad_stats, inputs))
    check_outputs(call.returned, inputs, expected, f"on {tokens} tokens")


@compiled_only
def test_rows_past_the_last_token_make_no_nan_of_an_infinity(one_thread):
    """0 times an infinity, in the 15 rows of the tile that are no tokens."""
    draw = Draw(torch.bfloat16, "cpu", 0)
    x, dy = draw.uniform(3, 1, 24), draw.uniform(3, 1, 24)
    x[1, 0, 5] = float("inf")
    _, n, _ = emulated((x, dy), 90).returned
    assert n.isinf().tolist() == [False, True, False] and not n.isnan().any()


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize("tokens", [64, 128, 512])
@pytest.mark.parametrize("architecture", [80, 90])
def test_no_tile_spills_and_operands_are_loaded_in_words(tokens, architecture):
    x, dy = (torch.empty(64, tokens, 512, dtype=torch.bfloat16) for _ in "xy")
    facts, *_ = compiler.compile_variant(GHOST, (x, dy), architecture)
    assert (facts.spills, facts.stack_bytes, set(facts.loads)) == (0, 0, {"16"})
    assert facts.matrix_instruction == (
        "wgmma.mma_async" if architecture == 90 else "mma.sync"
    )


@pytest.mark.parametrize("tokens", [1, 16, 17, 128, 129, 1000])
def test_the_largest_tile_is_one_that_the_tokens_fill(tokens):
    x = torch.empty(4096, tokens, 64, dtype=torch.bfloat16, device="meta")
    largest = max(
        config["BLOCK_T"] for config in GHOST.tunable.candidates(x, x.clone())
    )
    assert largest == min(128, max(16, 1 << (tokens - 1).bit_length()))
    assert module._pairs(tokens, 16) * 2 == (-(-tokens // 16)) * (-(-tokens // 16) + 1)
