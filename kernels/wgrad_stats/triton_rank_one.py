"""One token a sample: n_b = ‖x_b‖²·‖dy_b‖² from the rows themselves, and ḡ and d from
one product each.

`triton_fused` multiplies a token out to I·O numbers of which it takes the squares, on a
step of 16 tokens with 15 of them 0. The gradient dy xᵀ has rank one: its square is that
of its two sides, 4B(I+O) operations, and all samples are one product, ḡ = dYᵀX/B, 2BIO,
split over the batch where tiles are too few and where one sum would round too often.
d_b = dy_b·(ḡ x_b) is 2BIO more, with ḡ in fp32: the six bf16 products of
`bmm/triton_6xbf16`, each within 2⁻²⁴ of
|x||ḡ|, of X widened to fp32. One kernel reads rows of X, dY and Xḡᵀ once and has n and d of four samples.

4,096 samples of a 512 → 512 layer in bf16 are 8.4 MB, 2 us at an H200's 4.8 TB/s, and
seven products of 2.1 GFLOP, 15 us at 989 TFLOP/s. Bound next by those six, of which
three multiply a bf16 X's missing parts, and by Xḡᵀ and the wide X, which are written
and read: 34 MB.
"""

import math

import torch

from batchline.kernels._triton.product import alignment, long_side_first, product
from batchline.kernels._triton.product_tiles import rank_tiles
from batchline.kernels.backends import tl, triton
from batchline.kernels.bmm._split_bf16 import split_product, split_tunable
from batchline.kernels.grad_reduce.triton_whole_words import sum_rows
from batchline.kernels.statistics import of_nothing
from batchline.kernels.tuning import Tunable
from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._gradient_tiles import least_splits
from batchline.kernels.wgrad_stats._rank_one import why_not

ROWS = {"ROWS": 4, "COLUMNS": 256, "num_warps": 4}


@triton.jit
def _rows_kernel(
    x_ptr,
    dy_ptr,
    along_ptr,
    sums_ptr,
    B,
    I,
    O,
    stride_xb,
    stride_xi,
    stride_yb,
    stride_yo,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_I: tl.constexpr,
    ALIGN_O: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    in_batch = rows[:, None] < B
    x_ptrs = (
        x_ptr
        + tl.multiple_of(rows * stride_xb, ALIGN)[:, None]
        + (columns * stride_xi)[None, :]
    )
    dy_ptrs = (
        dy_ptr
        + tl.multiple_of(rows * stride_yb, ALIGN)[:, None]
        + (columns * stride_yo)[None, :]
    )
    along_ptrs = (
        along_ptr + tl.multiple_of(rows * O, ALIGN_O)[:, None] + columns[None, :]
    )
    xx = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    yy = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    dots = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for left in range(0, max(I, O), COLUMNS):
        in_i = in_batch & (columns[None, :] < tl.multiple_of(I - left, ALIGN_I))
        in_o = in_batch & (columns[None, :] < tl.multiple_of(O - left, ALIGN_O))
        x = tl.load(x_ptrs, mask=in_i, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptrs, mask=in_o, other=0.0).to(tl.float32)
        xx += x * x
        yy += dy * dy
        dots += dy * tl.load(along_ptrs, mask=in_o, other=0.0)
        x_ptrs += tl.full((), COLUMNS, tl.int64) * stride_xi
        dy_ptrs += tl.full((), COLUMNS, tl.int64) * stride_yo
        along_ptrs += COLUMNS
    tl.store(sums_ptr + rows, tl.sum(xx, axis=1) * tl.sum(yy, axis=1), mask=rows < B)
    tl.store(sums_ptr + B + rows, tl.sum(dots, axis=1), mask=rows < B)


def _rule(x, dy, target):
    return rank_tiles(*_over_batch(x, dy), target, split_k=True)[0]


def _candidates(x, dy, target):
    return rank_tiles(*_over_batch(x, dy), target, split_k=True)[:16]


CONFIGS, ALONG = Tunable(rule=_rule, candidates=_candidates), split_tunable(products=6)


def _over_batch(x, dy):
    """The operands of B·ḡ: dYᵀ[1,O,B] and X[1,B,I]."""
    return dy[:, 0].T[None], x[:, 0][None]


@wgrad_stats.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    supports=why_not,
    builds_on="triton_fused",
    tunable=CONFIGS,
    example=("linear_512_T1", 64),
)
def triton_rank_one(x, dy):
    (batch, _, i), o = x.shape, dy.shape[2]
    if batch == 0:
        return of_nothing((o, i), x.dtype, x.device)
    mean = torch.empty((o, i), dtype=torch.float32, device=x.device)
    sums = torch.empty((2, batch), dtype=torch.float32, device=x.device)
    if 0 in (i, o):
        return mean, *sums.zero_()
    a, b = _over_batch(x, dy)
    tile = dict(CONFIGS.choose(x, dy))
    # Tensor cores add 16 products and cut off the sum, which costs two roundings: an
    # eighth of the splits will do.
    splits = max(
        tile.pop("SPLITS"),
        triton.cdiv(least_splits(batch), 1 if x.dtype == torch.float32 else 8),
    )
    partial = torch.empty((splits, o, i), dtype=torch.float32, device=x.device)
    product(*long_side_first(a, b, partial), tile, splits)
    sum_rows(partial.flatten(1), mean.view(-1), 1 / batch)
    wide, mean_t = x.float()[:, 0][None], mean.T[None]
    along = split_product(wide, mean_t, 6, ALONG.rule(wide, mean_t))
    _rows_kernel[(triton.cdiv(batch, ROWS["ROWS"]),)](
        x,
        dy,
        along,
        sums,
        batch,
        i,
        o,
        x.stride(0),
        x.stride(2),
        dy.stride(0),
        dy.stride(2),
        ALIGN=alignment(a, b),
        ALIGN_I=math.gcd(16, i),
        ALIGN_O=math.gcd(16, o),
        **ROWS,
    )
    return mean, *sums
