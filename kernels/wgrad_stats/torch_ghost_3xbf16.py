"""Ghost norms with every fp32 product from three bf16 products of parts: what is left
of FMAs goes to tensor cores.

Of narrow inputs that is d's product alone, which is exact for a bf16 x (ḡ is three bf16
parts) and within 2⁻¹⁵ of
|x||ḡ| for an fp16 one; of fp32 inputs it is all four, each within 2⁻¹⁵ of |a||b|. Against `torch_ghost_tf32` it keeps
ḡ's digits and reads a bf16 x as it is. By an H200's datasheet three bf16 products reach 330 TFLOP/s, FMAs 67.
The bound: kernels/wgrad_stats/_bounds.py.
"""

import functools

from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._bf16_parts import LEFT_OUT, ghost_of_parts
from batchline.kernels.wgrad_stats._bounds import ghost_parts_tolerance


@wgrad_stats.variant(
    backend="torch",
    dtypes=("float32", "float16", "bfloat16"),
    needs="cuda",
    builds_on="torch_ghost_tf32",
    tolerance=functools.partial(ghost_parts_tolerance, left_out=LEFT_OUT[3]),
)
def torch_ghost_3xbf16(x, dy):
    return ghost_of_parts(x, dy, products=3)
