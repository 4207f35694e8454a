"""fp32 on tensor cores from three bf16 products that are in flight while the next
step's operands are split; each within 2⁻¹⁵ of |a||b|, a wider bound than the op's.

Against `triton_3xbf16`: the three products of a step are one chain with one wait, as
the six of `gluon_6xbf16` are, where each was waited for. Compiled for sm_90, a step of
32 in K is 356 instructions of 8 warps for 128x128 outputs, and 345 in the rung below:
what is gained is not their number but that 227 of them stand between the last product
and the wait. Four schedulers issue 356 in 712 cycles, and by the datasheet the products
take 768. 214 registers, 128 KiB, no spills.

TMA must be able to read the operands, and wgmma is of sm_90 alone. It has been executed
in emulation only, on no chip yet.
"""

from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._split_bf16 import split_tolerance
from batchline.kernels.bmm._split_in_flight import (
    in_flight_tunable,
    product_in_flight,
    why_not,
)

CONFIGS = in_flight_tunable()


@bmm.variant(
    backend="triton",
    dtypes=("float32",),
    needs="cuda",
    supports=why_not,
    builds_on="triton_3xbf16",
    tunable=CONFIGS,
    tolerance=split_tolerance(2.0**-15),
)
def gluon_3xbf16(a, b):
    return product_in_flight(a, b, 3, CONFIGS.choose(a, b))
