"""Ghost norms with d's product in tf32: the one product that `torch_ghost` makes of
narrow inputs on fp32 FMAs.

Its Grams and ḡ's product are tensor cores' already; d multiplies an fp32 ḡ. By an
H200's datasheet FMAs do 67 TFLOP/s and tf32 tensor cores 495. x loses nothing in tf32,
and ḡ all but 10 bits: d is held to 2⁻¹⁰·‖G_b‖·‖ḡ‖ more
(kernels/wgrad_stats/_bounds.py), which from 512x512 on is under 16 times the op's
bound. fp32 inputs in tf32 are one of the audit's negative controls. Elsewhere than on
CUDA the setting changes nothing.
"""

from batchline.kernels._torch.precision import tf32_products
from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._bounds import ghost_tolerance, tf32_tolerance
from batchline.kernels.wgrad_stats._products import along_mean, mean_gradient, product


def _tolerance(expected, x, dy):
    return tf32_tolerance(ghost_tolerance(expected, x, dy), expected, x, dy)


@wgrad_stats.variant(
    backend="torch",
    dtypes=("float16", "bfloat16"),
    needs="cuda",
    builds_on="torch_ghost",
    tolerance=_tolerance,
)
def torch_ghost_tf32(x, dy):
    n = (product(x, x.mT) * product(dy, dy.mT)).sum((1, 2))
    mean = mean_gradient(x, dy)
    with tf32_products():
        return mean, n, along_mean(x, dy, mean)
