"""Products that only a GPU's library has, computed on the CPU: they refuse what that
library refuses on sm_90.
"""

from __future__ import annotations

import torch

_aten = torch.ops.aten
_ALIGNED_BYTES = 16
_MOST_GROUPS = 1023
_ROW_WISE = 1  # torch.nn.functional.ScalingType.RowWise


def _product_in(
    a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    """bmm with narrow inputs and wide results."""
    return torch.bmm(a.to(out_dtype), b.to(out_dtype))


def _added_product_in(
    total: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    out_dtype: torch.dtype,
    *,
    beta=1,
    alpha=1,
    out: torch.Tensor,
) -> torch.Tensor:
    """baddbmm with narrow inputs and wide results."""
    if a.dtype != b.dtype or a.dtype.itemsize != 2 or out_dtype != torch.float32:
        raise RuntimeError(
            "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs"
        )
    if total.dtype not in (out_dtype, a.dtype):
        raise RuntimeError("self dtype must match either out_dtype or batch1 dtype")
    return torch.baddbmm(
        total.to(out_dtype),
        a.to(out_dtype),
        b.to(out_dtype),
        beta=beta,
        alpha=alpha,
        out=out,
    )


def _grouped(
    a: torch.Tensor, b: torch.Tensor, offs=None, bias=None, out_dtype=None
) -> torch.Tensor:
    """grouped_mm of three-dimensional operands, bf16 as its own kernel takes them."""
    _require_groups(a, b, offs, bias)
    for tensor in (a, b):
        _is_transposed(tensor)
    return torch.bmm(a, b)


def _scaled_grouped(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: list,
    recipe_a: list,
    swizzle_a: list,
    scale_b: list,
    recipe_b: list,
    swizzle_b: list,
    offs=None,
    bias=None,
    out_dtype=None,
    contraction_dim=(),
    use_fast_accum: bool = False,
) -> torch.Tensor:
    """scaled_grouped_mm of three-dimensional fp8 operands, scaled by row of A and
    column of B.
    """
    _require_groups(a, b, offs, bias)
    if _is_transposed(a):
        raise ValueError("Expected mat1 to not be transposed")
    if not _is_transposed(b):
        raise ValueError("Expected mat2 to be transposed")
    if a.shape[2] % 16 or b.shape[2] % 16:
        raise ValueError(
            f"Expected trailing dimension of mat_a and mat_b shape to be divisible by 16, got {a.shape} "
            f"and {b.shape}"
        )
    if out_dtype not in (None, torch.bfloat16):
        raise ValueError(
            "Only bf16 high precision output types are supported for grouped gemm"
        )
    if (
        any(tensor.dtype != torch.float8_e4m3fn for tensor in (a, b))
        or (recipe_a, recipe_b) != ([_ROW_WISE],) * 2
    ):
        raise ValueError("No gemm implementation was found")
    for scale, size in ((scale_a[0], a.shape[1]), (scale_b[0], b.shape[2])):
        if (
            scale.shape != (len(a), size)
            or scale.stride(1) != 1
            or scale.dtype != torch.float32
        ):
            raise RuntimeError(
                "scale must have the same batch and first dimension as mat, and be contiguous in it"
            )
    rows, columns = scale_a[0][:, :, None], scale_b[0][:, None, :]
    return (torch.bmm(a.float(), b.float()) * rows * columns).to(torch.bfloat16)


def _require_groups(a: torch.Tensor, b: torch.Tensor, offs, bias) -> None:
    if a.dim() != 3 or b.dim() != 3 or offs is not None or bias is not None:
        raise RuntimeError("the stand-in has grouped products of two 3D operands alone")
    if len(a) != len(b) or a.shape[2] != b.shape[1]:
        raise RuntimeError(
            "matrix batch sizes and contraction dimensions have to match"
        )
    if len(a) > _MOST_GROUPS:
        raise RuntimeError("Can't process more than 1024 groups")


def _is_transposed(tensor: torch.Tensor) -> bool:
    """Whether its columns are contiguous and not its rows; as
    check_valid_strides_and_return_transposed of ATen's.
    """
    aligned = _ALIGNED_BYTES // tensor.element_size()
    rows, columns = tensor.shape[1:]
    _, down, along = tensor.stride()
    is_transposed = down == 1 and along >= max(1, rows)
    if not is_transposed and not (along == 1 and down >= max(1, columns)):
        raise RuntimeError(
            f"Invalid strides/sizes, got {tensor.stride()} for strides and {tensor.shape} for sizes"
        )
    if (along if is_transposed else down) % aligned:
        raise RuntimeError("strides should be multiple of 16 bytes")
    if tensor.data_ptr() % _ALIGNED_BYTES or tensor.stride(0) % aligned:
        raise RuntimeError("expected data_ptr to be aligned to 16 bytes")
    return is_transposed


ONLY_ON_CUDA = {
    _aten.bmm.dtype: _product_in,
    _aten.baddbmm.dtype_out: _added_product_in,
    _aten._grouped_mm.default: _grouped,
    _aten._scaled_grouped_mm_v2.default: _scaled_grouped,
}
