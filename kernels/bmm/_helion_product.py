"""The product in Helion's language. It is imported where it is called: Helion takes no
closure, so its language is a global of the file that a kernel stands in.
"""

import helion.language as hl
import torch


def product(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    """Write A[B,M,K] @ B[B,K,N] to C[B,M,N], all of one dtype, accumulated in fp32."""
    batch, m, k = a.size()
    n = b.size(2)
    for entry, rows, columns in hl.tile([batch, m, n]):
        total = hl.zeros([entry, rows, columns], dtype=torch.float32)
        for depth in hl.tile(k):
            total = torch.baddbmm(
                total, a[entry, rows, depth], b[entry, depth, columns]
            )
        c[entry, rows, columns] = total.to(c.dtype)
