"""TileLang's product: tiles, copies and stages written out, and loads, layouts and warps
left to its compiler.

A peer, in the form of its own examples: 128x128 tiles, 64 deep, three stages. On sm_90
it becomes wgmma behind TMA, with a warp group that only loads. Sizes are constants, so
each shape is compiled, which takes seconds. Its launcher is in Python, and makes the TMA
descriptors at each call: ask the device's clocks about the kernel. It multiplies fp32 as
tf32, so it is asked for fp16 and bf16 alone.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator

import torch

from batchline.kernels.bmm import bmm
from batchline.kernels.elements import dtype_name
from batchline.kernels.target import target_of


@contextlib.contextmanager
def _paths_kept() -> Iterator[None]:
    """TileLang puts its own TVM into sys.path and PYTHONPATH as it is imported. It has
    been imported then, and other variants of the process are not to find it there.
    """
    path, environment = list(sys.path), dict(os.environ)
    try:
        yield
    finally:
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)


@functools.cache
def _language():
    """The module in TileLang's language, imported when it is first asked for."""
    with _paths_kept():
        from batchline.kernels.bmm import _tilelang_product
    return _tilelang_product


@functools.lru_cache(maxsize=1024)
def _compiled(problem, architecture):
    with _paths_kept():
        return _language().compile_product(problem, architecture)


def _is_shared(b):
    return b.stride(0) == 0 and len(b) > 1


def _as_stored(tensor):
    """The tensor as it lies, [B, rows, columns], and whether that is its transpose."""
    is_transposed = not tensor.is_contiguous()
    return (tensor.mT if is_transposed else tensor), is_transposed


def _stored_b(b):
    return _as_stored(b[:1] if _is_shared(b) else b)


def _why_not(a, b):
    for name, (stored, _) in (("A", _as_stored(a)), ("B", _stored_b(b))):
        if not stored.is_contiguous():
            return f"{name} is not dense, row by row or column by column"
        if stored.storage_offset() * stored.element_size() % 16:
            return f"{name} does not start at a multiple of 16 bytes"
    return None


@bmm.variant(
    backend="tilelang",
    dtypes=("float16", "bfloat16"),
    needs="cuda",
    supports=_why_not,
)
def tilelang_gemm(a, b):
    c = torch.empty(
        (a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device
    )
    if a.numel() == 0 or b.numel() == 0:
        return c.zero_()
    stored_a, stored_b, problem = problem_of(a, b)
    _compiled(problem, target_of(a.device))(stored_a, stored_b, c)
    return c


def problem_of(a, b):
    """A and B as they lie in memory, and what TileLang is asked to compile for them."""
    stored_a, a_transposed = _as_stored(a)
    stored_b, b_transposed = _stored_b(b)
    problem = _language().Problem(
        batch=a.shape[0],
        m=a.shape[1],
        n=b.shape[2],
        k=a.shape[2],
        a_transposed=a_transposed,
        b_transposed=b_transposed,
        b_shared=_is_shared(b),
        dtype=dtype_name(a.dtype),
    )
    return stored_a, stored_b, problem
