"""Whole matrices in shared memory, several to a block, by a kernel compiled for their
exact size.

Against `numba_cuda_naive`, which reads each element of A and B from global memory N and
M times. A block's entries are one run of memory where they are dense, read 16 bytes a
thread (8 in fp16 and bf16) and written so too. With M, N and K compiled in nothing is
divided or masked that need not be: a 16x16 product is one warp, 8 sums a thread, 24
shared-memory reads for 128 FMAs. It is 8192 FLOPs for 3072 bytes of fp32, far under
what an SM could compute, so bound by memory; 8 KiB of shared memory and 57 registers
let an SM hold 8 and more blocks whose loads overlap.
"""

import functools

import torch

from batchline.kernels._cuda import ptx
from batchline.kernels._cuda.launch import jit_for, launch_at
from batchline.kernels.backends import cuda, interpreted, numba
from batchline.kernels.bmm import bmm
from batchline.kernels.elements import dtype_name

LARGEST = 32
FOUR = 4
MOST_SHARED = (
    24 * 1024
)  # bytes per block, so that many blocks fit on an SM and their loads overlap


def _plan(m, n, k):
    """(rows a thread, columns a thread, entries a block): threads of an entry stride
    its rows by their number.
    """
    columns = FOUR if n % FOUR == 0 else 1
    rows = min(m, 2 if m * n <= 512 else 4)
    threads = -(-m // rows) * -(-n // columns)
    fitting = MOST_SHARED // (4 * (m + n) * max(k, 1))
    entries = max(1, min((8 if interpreted("numba_cuda") else 128) // threads, fitting))
    return (
        rows,
        columns,
        entries // FOUR * FOUR if entries >= FOUR else entries,
    )  # 16 bytes divide a block's share


@functools.cache
def _kernel_for(dtype, ITEM, M, N, K, A_BY_ROWS, A_WIDE, B_BY_ROWS, B_WIDE):
    ROWS, COLUMNS, ENTRIES = _plan(M, N, K)
    THREADS_M, THREADS_N = -(-M // ROWS), -(-N // COLUMNS)
    PER_ENTRY = THREADS_M * THREADS_N
    THREADS = ENTRIES * PER_ENTRY
    SIZE_A, SIZE_B = max(ENTRIES * M * K, FOUR), max(ENTRIES * K * N, FOUR)
    STEP = FOUR if K % FOUR == 0 else 1
    ALIGNMENT, float32, int32, int64 = (
        ptx.ALIGNMENT,
        numba.float32,
        numba.int32,
        numba.int64,
    )
    load, load4, store, store4 = (
        ptx.load(dtype),
        ptx.load(dtype, FOUR),
        ptx.store(dtype),
        ptx.store(dtype, FOUR),
    )
    load_shared, store_shared = ptx.load_shared, ptx.store_shared

    def staging(OUTER, INNER, WIDE):
        """bring: the block's entries of an operand, OUTER x INNER each, into shared
        memory in the same order.
        """
        SIZE = ENTRIES * OUTER * INNER
        FOURS = -(-SIZE // (FOUR * THREADS))

        @cuda.jit(device=True)
        def bring(shared, start, entries, stride_entry, stride_outer, stride_inner):
            if WIDE:  # entries follow each other without a gap: one run
                run = int32(entries * (OUTER * INNER))
                for i in range(FOURS):
                    first = int32((cuda.threadIdx.x + i * THREADS) * FOUR)
                    if first + FOUR <= run:
                        store_shared(shared, first, load4(start + int64(first) * ITEM))
                    else:  # the last block's run may end within four
                        for j in range(FOUR):
                            if first + j < run:
                                shared[first + j] = load(
                                    start + (int64(first) + j) * ITEM
                                )
            else:
                for i in range(cuda.threadIdx.x, SIZE, THREADS):
                    entry, outer, inner = (
                        int32(i // (OUTER * INNER)),
                        int32(i // INNER % OUTER),
                        int32(i % INNER),
                    )
                    if entry < entries:
                        shared[i] = load(
                            start
                            + (
                                int64(entry) * stride_entry
                                + int64(outer) * stride_outer
                                + int64(inner) * stride_inner
                            )
                            * ITEM
                        )

        return bring

    bring_a = staging(M if A_BY_ROWS else K, K if A_BY_ROWS else M, A_WIDE)
    bring_b = staging(K if B_BY_ROWS else N, N if B_BY_ROWS else K, B_WIDE)
    A_ROW, A_COLUMN = (K, 1) if A_BY_ROWS else (1, M)
    B_ROW, B_COLUMN = (N, 1) if B_BY_ROWS else (1, K)

    @jit_for(THREADS)
    def kernel(
        a, b, c, batch, stride_ab, stride_am, stride_ak, stride_bb, stride_bk, stride_bn
    ):
        shared_a = cuda.shared.array(SIZE_A, float32, ALIGNMENT)
        shared_b = cuda.shared.array(SIZE_B, float32, ALIGNMENT)
        of_a = cuda.local.array((ROWS, STEP), float32)
        of_b = cuda.local.array((STEP, COLUMNS), float32)
        sums = cuda.local.array((ROWS, COLUMNS), float32)
        for i in range(ROWS):
            for j in range(COLUMNS):
                sums[i, j] = 0

        first = int64(cuda.blockIdx.x) * ENTRIES
        entries = int32(min(batch - first, ENTRIES))
        if A_BY_ROWS:
            bring_a(
                shared_a,
                a + first * stride_ab * ITEM,
                entries,
                stride_ab,
                stride_am,
                stride_ak,
            )
        else:
            bring_a(
                shared_a,
                a + first * stride_ab * ITEM,
                entries,
                stride_ab,
                stride_ak,
                stride_am,
            )
        if B_BY_ROWS:
            bring_b(
                shared_b,
                b + first * stride_bb * ITEM,
                entries,
                stride_bb,
                stride_bk,
                stride_bn,
            )
        else:
            bring_b(
                shared_b,
                b + first * stride_bb * ITEM,
                entries,
                stride_bb,
                stride_bn,
                stride_bk,
            )
        cuda.syncthreads()

        entry, thread = int32(cuda.threadIdx.x // PER_ENTRY), int32(
            cuda.threadIdx.x % PER_ENTRY
        )
        row, column = int32(thread // THREADS_N), int32(thread % THREADS_N * COLUMNS)
        staged = min(
            entry, entries - 1
        )  # the last block may have fewer: their threads compute the last one again
        for k in range(0, K, STEP):
            for i in range(ROWS):
                at_a = (
                    staged * (M * K)
                    + min(row + i * THREADS_M, M - 1) * A_ROW
                    + k * A_COLUMN
                )
                if STEP == FOUR and A_BY_ROWS:
                    of_a[i, 0], of_a[i, 1], of_a[i, 2], of_a[i, 3] = load_shared(
                        shared_a, at_a
                    )
                else:
                    for step in range(STEP):
                        of_a[i, step] = shared_a[at_a + step * A_COLUMN]
            at_b = staged * (K * N) + k * B_ROW + column * B_COLUMN
            if COLUMNS == FOUR and B_BY_ROWS:
                for step in range(STEP):
                    of_b[step, 0], of_b[step, 1], of_b[step, 2], of_b[step, 3] = (
                        load_shared(shared_b, at_b + step * B_ROW)
                    )
            elif STEP == FOUR and not B_BY_ROWS:
                for j in range(COLUMNS):
                    of_b[0, j], of_b[1, j], of_b[2, j], of_b[3, j] = load_shared(
                        shared_b, at_b + j * B_COLUMN
                    )
            else:
                for step in range(STEP):
                    for j in range(COLUMNS):
                        of_b[step, j] = shared_b[at_b + step * B_ROW + j * B_COLUMN]
            for step in range(STEP):
                for i in range(ROWS):
                    for j in range(COLUMNS):
                        sums[i, j] += of_a[i, step] * of_b[step, j]

        for i in range(ROWS):
            if entry < entries and row + i * THREADS_M < M:
                address = (
                    c
                    + (((first + entry) * M + row + i * THREADS_M) * N + column) * ITEM
                )
                if COLUMNS == FOUR:
                    store4(address, (sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3]))
                else:
                    store(address, sums[i, 0])

    return kernel, ENTRIES, THREADS


def _too_large(a, b):
    if max(a.shape[1], a.shape[2], b.shape[2]) > LARGEST:
        return f"M, N or K is above {LARGEST}"


def _wide(operand, by_rows, entries):
    """Whether a block's entries are one run of memory that starts and ends on 16 bytes'
    worth of fp32.
    """
    rows, columns = operand.shape[1:]
    strides = (rows * columns, columns, 1) if by_rows else (rows * columns, 1, rows)
    dense = all(
        stride == expected or size == 1
        for size, stride, expected in zip(operand.shape, operand.stride(), strides)
    )
    return (
        dense
        and entries * rows * columns % FOUR == 0
        and operand.data_ptr() % (FOUR * operand.element_size()) == 0
    )


@bmm.variant(
    backend="numba_cuda",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    supports=_too_large,
    builds_on="numba_cuda_naive",
    example=("tiny_16", 4096),
)
def numba_cuda_tiny(a, b):
    batch, m, k = a.shape
    n = b.shape[2]
    c = torch.empty((batch, m, n), dtype=a.dtype, device=a.device)
    if c.numel() == 0:
        return c
    entries = _plan(m, n, k)[2]
    a_by_rows, b_by_rows = a.stride(2) <= a.stride(1), b.stride(2) <= b.stride(1)
    kernel, entries, threads = _kernel_for(
        dtype_name(a.dtype),
        a.element_size(),
        m,
        n,
        k,
        a_by_rows,
        _wide(a, a_by_rows, entries),
        b_by_rows,
        _wide(b, b_by_rows, entries),
    )
    launch_at(
        a.device,
        kernel,
        -(-batch // entries),
        threads,
        a.data_ptr(),
        b.data_ptr(),
        c.data_ptr(),
        batch,
        *a.stride(),
        *b.stride(),
    )
    return c
