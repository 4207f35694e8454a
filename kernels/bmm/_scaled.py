"""What the library's scaled fp8 products ask of the operands A[B,M,K] and B[B,K,N]."""

_ALIGNED = 16  # elements, which are bytes


def why_not_scaled(a, b):
    """Why the library's fp8 product does not take these operands, or None."""
    k, n = b.shape[1:]
    if k % _ALIGNED or n % _ALIGNED:
        return f"the library's fp8 product takes K and N in multiples of {_ALIGNED}"
    for tensor, along, across, asked in (
        (a, 2, 1, "A row by row"),
        (b, 1, 2, "B column by column"),
    ):
        if tensor.stride(along) != 1 or tensor.stride(across) < k:
            return f"the library's fp8 product takes {asked}"
        if (
            tensor.storage_offset() % _ALIGNED
            or tensor.stride(across) % _ALIGNED
            or tensor.stride(0) % _ALIGNED
        ):
            return f"the library's fp8 product takes rows that start at multiples of {_ALIGNED} bytes"
    return None
