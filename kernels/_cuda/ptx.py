"""Instructions that Numba has no name for, as functions that a Numba CUDA kernel calls.

Memory outside a block's is named by its address, an int64: a kernel that takes
addresses and strides has nothing but integers to marshal, and its loads are as wide as
it asks for. Values travel as float32 whatever the memory holds; "bfloat16", of which
Numba has no arrays, is no exception. In Numba's simulator the same names are Python
functions.

    load(dtype, lanes)      f(address) → a float32, or `lanes` of them as a tuple, from
    aligned global memory store(dtype, lanes)     f(address, value or tuple), rounded to
    nearest even
    load_shared, store_shared   four float32 of a shared array, from an index divisible
    by 4
    cp_async(array, index, address, bytes)   16 bytes to shared memory, the first
    `bytes` copied and the rest zero cp_async_commit(), cp_async_wait(pending)()   close
    a group of copies; wait until at most `pending` are under way ldmatrix(transposed)
    f(array, index) → four 8x8 matrices of 16-bit elements, a row's index from each lane
    pack(dtype), unpack(dtype)   two float32 → an int32 of two 16-bit elements, rounded
    to nearest even, and back; load and store move such words as "int32"
    swap(word, mask)        the int32 of the lane whose number differs in the bits of
    `mask` (shfl.bfly)
    mma(dtype)              f(a0..a3, b0, b1, c) → c + A B of 16x8x16, accumulated in
    fp32
"""

from batchline.kernels.backends import interpreted, why_absent

if interpreted("numba_cuda"):
    from batchline.kernels._cuda.ptx_simulated import (
        cp_async,
        cp_async_commit,
        cp_async_wait,
        ldmatrix,
        load,
        load_shared,
        mma,
        pack,
        store,
        store_shared,
        swap,
        unpack,
    )
elif not why_absent("numba_cuda"):
    from batchline.kernels._cuda.ptx_compiled import (
        cp_async,
        cp_async_commit,
        cp_async_wait,
        ldmatrix,
        load,
        load_shared,
        mma,
        pack,
        store,
        store_shared,
        swap,
        unpack,
    )

ALIGNMENT = (
    None if interpreted("numba_cuda") else 16
)  # of shared arrays that 16 bytes are read from at once

__all__ = [
    "ALIGNMENT",
    "cp_async",
    "cp_async_commit",
    "cp_async_wait",
    "ldmatrix",
    "load",
    "load_shared",
    "mma",
    "pack",
    "store",
    "store_shared",
    "swap",
    "unpack",
]
