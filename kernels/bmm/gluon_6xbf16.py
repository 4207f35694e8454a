"""fp32 on tensor cores from six bf16 products that are in flight while the next step's
operands are split.

In `triton_6xbf16` each of a step's six products is waited for before the next one is
issued: Triton keeps none in flight whose operand the loop itself computes. Here, in
Gluon, the six are one chain with one wait. Between its last product and the wait stand
all reads, splits and writes of the next step. The sum of a step is still added to an
fp32 accumulator of its own. The bound is that of the rung below.

Compiled for sm_90, a step of 32 in K is 497 instructions of 8 warps for 128x128 outputs
with one wait; that of the rung below is 653 of 4 warps for 64x128, with six. It takes
229 registers and 144 KiB, with no spills. Four schedulers issue those 497 in 994
cycles, and by the datasheet the products take 1,536. Bound next by what stands between
the wait and the next product: 64 additions and 24 moves of A's parts. Reads of A take
two passes of shared memory where one would do.

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
    builds_on="triton_6xbf16",
    tunable=CONFIGS,
    tolerance=split_tolerance(2.0**-24),
)
def gluon_6xbf16(a, b):
    return product_in_flight(a, b, 6, CONFIGS.choose(a, b))
