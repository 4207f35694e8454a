"""A program holds one tile of the gradient for sample after sample: squared, summed,
and never written.

`triton_materialize_fused` writes and reads B·O·I numbers that nobody asks for: 134 MB
for 64 samples of 512x512. Here a program multiplies its tile of a sample's gradient,
adds up its squares, adds its elements to a second tile, and takes the next sample. Two
tiles of 128x128 are 193 registers a thread at 8 warps (sm_90, no stack), so a tile is
no larger. The loops over samples and tokens are one pipeline: nested it drains at the
end of each sample, which at 128 tokens is every second step, and takes 216 registers.
Where tiles are too few the batch is split, and the splits' sums [splits, O, I] are
added in order, as are the parts of n and d [tiles, B]: no atomics, so the same bits
from run to run.

d needs ḡ, so every gradient is multiplied again, with ḡ's tile where the sum was: 2BTIO
operations for ḡ and n, as many for d. Σ_t dy_t·(ḡ x_t) would be a product with fp32's
ḡ: in two bf16 parts, whose 2⁻¹⁶ is over γ(IO) below 96x96, it takes the tensor cores
twice as long, in three (2⁻²⁴) thrice. It saves one FMA for each of B·O·I elements,
which by an H200's datasheet take less time than two more products from 8 tokens on. And
here d has n's roundings, in every dtype.

64 samples of 128 tokens in bf16 are 8.6 GFLOP, 9 us at 989 TFLOP/s. Bound next by L2:
each product reads X and dY four times, 67 MB, for in a 128x128 tile a byte serves 64
operations. With one token 15 of a step's 16 products are with 0.
"""

from batchline.kernels.tuning import Tunable
from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._gradient_tiles import rank_tiles, vary_splits
from batchline.kernels.wgrad_stats._triton_gradients import reduce_gradients, tiles
from batchline.kernels.wgrad_stats._two_products import multiply_twice

CONFIGS = Tunable(
    rule=lambda x, dy, target: rank_tiles(x, dy, target)[0],
    candidates=lambda x, dy, target: vary_splits(rank_tiles(x, dy, target)),
)


@wgrad_stats.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="triton_materialize_fused",
    tunable=CONFIGS,
)
def triton_fused(x, dy):
    return multiply_twice(x, dy, CONFIGS, tiles, reduce_gradients)
