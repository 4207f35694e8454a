"""The batched product with its gradient, which is two more of them: dA = dC Bᵀ (nt) and
dB = Aᵀ dC (tn).
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from batchline import kernels
from batchline.kernels.bmm._folding import fold
from batchline.kernels.elements import dtype_name
from batchline.kernels.op import WIDE


def batched_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A[B,M,K] @ B[B,K,N] or B[K,N] → C[B,M,N], differentiable any number of times;
    each product by what the op chooses.

    A shared right side is best given as [K,N]: its gradient is then one product over
    all B·M rows, where B expanded to [B,K,N] costs one for each entry and their sum.
    Only what the asked gradients need is kept and computed. Autocast does not change
    it.

    Raises:
        ValueError: if the shapes don't fit each other.
        TypeError: if the dtypes or devices differ, or the dtype is none of float32,
        float16, bfloat16 and float64.
    """
    if (
        a.dim() != 3
        or b.dim() not in (2, 3)
        or a.shape[2] != b.shape[-2]
        or (b.dim() == 3 and len(a) != len(b))
    ):
        raise ValueError(
            "batched_product takes a[B,M,K] and b[B,K,N] or b[K,N], "
            f"not a{list(a.shape)} and b{list(b.shape)}"
        )
    if (a.dtype, a.device) != (b.dtype, b.device):
        raise TypeError(
            f"a is {a.dtype} on {a.device}, b is {b.dtype} on {b.device}: they must be alike"
        )
    if dtype_name(a.dtype) not in WIDE:
        raise TypeError(
            f"batched_product is differentiated in {', '.join(WIDE)}, not in {dtype_name(a.dtype)}"
        )
    return _product(a, b)


class _Product(torch.autograd.Function):
    """C = A B. Its gradient applies the function again, so it can be differentiated
    too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a, b):
        if b.dim() == 2:
            b = b.expand(len(a), -1, -1)
        with torch.autocast(a.device.type, enabled=False):
            return kernels.ops["bmm"](a, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b = inputs
        needs_a, needs_b = ctx.needs_input_grad
        ctx.shared = b.dim() == 2
        ctx.save_for_backward(a if needs_b else None, b if needs_a else None)

    @staticmethod
    def backward(ctx, dc):
        a, b = ctx.saved_tensors
        da = _product(dc, b.mT) if b is not None else None
        if a is None:
            return da, None
        if not ctx.shared:
            return da, _product(a.mT, dc)
        return da, _product(fold(a).mT[None], fold(dc)[None])[0]


def _product(a, b):
    """C = A B: by PyTorch in forward mode, whose levels may be nested, which a
    Function's own derivative can't be.
    """
    if forward_ad._current_level < 0:
        return _Product.apply(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return torch.matmul(a, b)
