"""Every per-sample gradient is still written, in fp32 by one batched product, but then
read once for ḡ, n and d.

`torch_materialize` reads the B·O·I gradients three times; the kernel of
`grad_stats/triton_one_read` keeps every row of a block of columns on chip, so it knows
ḡ there when it takes the inner products. Of 64 samples of 512x512 the gradients are 64
MiB: 268 MB of traffic become 134, against 17 MB of X and dY at 128 tokens in bf16. The
product is the kernel of `bmm/triton_autotuned`. Bound next by those gradients: at 4.8
TB/s, an H200's datasheet, 134 MB take 28 us, where 2BTIO = 4.3 GFLOP take 4 us at 989
TFLOP/s.
"""

import torch

from batchline.kernels._triton.product import long_side_first, product
from batchline.kernels.bmm.triton_autotuned import CONFIGS as PRODUCTS
from batchline.kernels.grad_stats.triton_one_read import MOST_ROWS, triton_one_read
from batchline.kernels.tuning import Tunable
from batchline.kernels.wgrad_stats import wgrad_stats

CONFIGS = Tunable(
    rule=lambda x, dy, target: PRODUCTS.rule(dy.mT, x, target=target),
    candidates=lambda x, dy, target: PRODUCTS.candidates(dy.mT, x, target=target),
)


def _why_not(x, dy):
    return (
        f"over {MOST_ROWS:,} samples: one read can't hold a word of each on chip"
        if len(x) > MOST_ROWS
        else None
    )


@wgrad_stats.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    supports=_why_not,
    builds_on="torch_materialize",
    tunable=CONFIGS,
)
def triton_materialize_fused(x, dy):
    gradients = torch.empty(
        (len(x), dy.shape[2], x.shape[2]), dtype=torch.float32, device=x.device
    )
    if gradients.numel():
        product(*long_side_first(dy.mT, x, gradients), CONFIGS.choose(x, dy))
    mean, n, d = triton_one_read(gradients.flatten(1))
    return mean.view(gradients.shape[1:]), n, d
