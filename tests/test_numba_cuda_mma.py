"""bmm/numba_cuda_mma's choices: a tile by what passes through shared memory, stages by
what fits, a step of K by what would be zeros.
"""

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.compiled import compiler
from batchline.kernels import architectures, backends
from batchline.kernels.bmm import numba_cuda_mma as module

pytestmark = pytest.mark.skipif(
    bool(backends.why_absent("numba_cuda")) or backends.interpreted("numba_cuda"),
    reason="needs Numba's CUDA compiler",
)
_CHIPS = (80, 86, 89, 90, 100, 120)
_SQUARE, _TALL, _ALONE = (128, 128, 2, 2), (128, 64, 2, 2), (256, 128, 4, 2)


def meta(batch, m, n, k):
    """The inputs of a problem, of which only shapes are asked."""
    return (
        torch.empty(batch, m, k, dtype=torch.float16, device="meta"),
        torch.empty(batch, k, n, dtype=torch.float16, device="meta"),
    )


@pytest.mark.parametrize(
    "problem, tile",
    [
        ((1024, 16, 16, 16), (64, 64, 2, 2)),
        ((1024, 128, 64, 128), _TALL),
        ((4, 512, 512, 512), _TALL),  # 128 blocks, each an SM's only one
        ((256, 512, 512, 64), _SQUARE),  # too few steps for a block alone
        ((64, 1024, 1024, 1024), _ALONE),
    ],
)
def test_the_tile_with_fewest_passes_on_the_busiest_multiprocessor(
    monkeypatch, problem, tile
):
    monkeypatch.setattr(module, "multiprocessors", lambda device: 132)
    inputs = meta(*problem)
    chosen = module.CONFIGS.rule(*inputs, target=architectures.known(90))
    assert tuple(chosen.values()) == tile
    assert chosen in module.CONFIGS.candidates(*inputs, target=architectures.known(90))


@pytest.mark.parametrize("number", _CHIPS)
@pytest.mark.parametrize("tile", (*module._TILES, module._ALONE))
def test_at_least_two_stages_fit(number, tile):
    block_m, block_n, *warps = tile
    target = architectures.taken_for(number)
    threads = 32 * warps[0] * warps[1]
    stage_bytes = (block_m + block_n) * 64 * module.ITEM
    stages = module._stages(stage_bytes, threads, target)
    assert stages >= 2
    assert stages * stage_bytes <= target.shared_bytes_per_block


@pytest.mark.compiled
@pytest.mark.skipif(
    bool(compiler.why_cannot_compile("numba_cuda")), reason="needs Numba's compiler"
)
@pytest.mark.parametrize("architecture, stages", ((80, 3), (90, 4)))
def test_its_shared_memory_is_among_the_compiled_facts(architecture, stages):
    """It has no array with a size: its cubin knows none of it."""
    variant = kernels.ops["bmm"].variants["numba_cuda_mma"]
    inputs = torch.zeros(2, 1, 256, 512, dtype=torch.float16).unbind()
    a, b = inputs[0], inputs[1].mT
    config = module._config(_ALONE)
    with variant.tunable.forced(config):
        (kernel,) = compiler.compile_variant(variant, (a, b), architecture)
    assert kernel.shared_bytes == stages * (256 + 128) * 64 * 2
    assert kernel.spills == 0 and kernel.stack_bytes == 0
