"""How PyTorch multiplies fp32 on CUDA: a setting of the whole process, changed for a
block and put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def tf32_products() -> Iterator[None]:
    """In the block fp32 products on CUDA go to tf32 tensor cores, which round or cut
    their operands to 10 bits.

    PyTorch has no such choice for a single call. The setting is read when a product is
    launched or captured, so a graph keeps what it was captured with; products that
    other threads launch meanwhile have it, too.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
