"""torch.bmm on tf32 tensor cores: fp32 in and out, and factors of 10 bits behind the
first.

It is what `torch.set_float32_matmul_precision("high")` gives a training loop. By an
H200's datasheet its peak is 495 TFLOP/s, where FMAs' is 67. The bound is its own, 2⁻⁹ of
|A||B| wider than the op's. That is over 16 times the op's up to a depth of about 2,000,
where it has a time and no rank. Elsewhere than on CUDA the setting does nothing.
"""

import torch

from batchline.kernels._torch.precision import tf32_products
from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._tf32 import tf32_tolerance


@bmm.variant(
    backend="torch",
    dtypes=("float32",),
    needs="cuda",
    builds_on="torch_bmm",
    tolerance=tf32_tolerance,
)
def torch_bmm_tf32(a, b):
    with tf32_products():
        return torch.bmm(a, b)
