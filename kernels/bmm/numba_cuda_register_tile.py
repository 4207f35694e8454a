"""Each thread keeps 8x8 sums in registers, so that 16 numbers read from shared memory
feed 64 FMAs.

Against `numba_cuda_tiled`, which reads two numbers of shared memory a product: here a
step of k is four 16-byte reads and 64 FMAs a thread. Global loads are 16 bytes where
strides allow (8 in fp16 and bf16), wait in registers and go to the other of two
buffers, so that they are under way while the current one is multiplied. They bring 32
bytes of k at once, a sector of each row: 8 of 16-bit elements would ask for every
sector of A twice. With 128x128 tiles on sm_90 eight steps of k are 512 FMAs in 647
instructions, and 128 registers let two blocks of 256 threads share an SM. Bound by the
FMA pipes next, so by what no tensor core does.
"""

import functools

import torch

from batchline.kernels._cuda import ptx
from batchline.kernels._cuda.launch import jit_for, launch_at
from batchline.kernels.backends import cuda, interpreted, numba
from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._numba_tiles import along, tile_of_block, wide
from batchline.kernels.elements import dtype_name
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable

OUTPUTS, HALF = 8, 4  # a thread's 8x8 outputs are four 4x4 squares, half a tile apart
SLAB_K = 8  # steps of k that lie in shared memory a row apart
# A row of shared memory starts 4 banks on, and a second slab 8: a warp's transposed
# store hits 32 different ones.
PADDING, SLAB_PADDING = 4, 8
SECTOR = 32  # bytes: less of a row that lies along k would ask for its sector twice


def _slabs(ITEM, WIDE):
    """Of SLAB_K steps in a block's step of k: as many as fill a sector.

    One where loads are single: more of those would not fit the registers.
    """
    return SECTOR // ITEM // SLAB_K if WIDE else 1


def _slab(BLOCK, SLABS):
    """Numbers from the start of a slab to that of the next."""
    return SLAB_K * (BLOCK + PADDING) + (SLAB_PADDING if SLABS > 1 else 0)


def _staging(dtype, ITEM, BLOCK, THREADS, SLABS, ALONG_K, WIDE):
    """fetch: a thread's share of a BLOCK x BLOCK_K tile into registers; put: from there
    into shared[slab, k, outer]; how many registers of which type hold four elements.

    Elements of 16 bits wait two to a register.
    """
    BLOCK_K, SLAB = SLABS * SLAB_K, _slab(BLOCK, SLABS)
    load, load4, store_shared = ptx.load(dtype), ptx.load(dtype, 4), ptx.store_shared
    PACKED, load_words = WIDE and ITEM == 2, ptx.load("int32", 2)
    unpack = ptx.unpack(dtype) if PACKED else None
    float32, int32, int64 = numba.float32, numba.int32, numba.int64
    ROW, FOURS, FOURS_IN_K, FOURS_OUT = (
        BLOCK + PADDING,
        BLOCK * BLOCK_K // 4 // THREADS,
        BLOCK_K // 4,
        BLOCK // 4,
    )

    @cuda.jit(device=True)
    def fetch(values, start, stride_outer, stride_k, outer_left, k_left):
        for i in range(FOURS):
            four = int32(cuda.threadIdx.x + i * THREADS)
            outer = int32(four // FOURS_IN_K if ALONG_K else four % FOURS_OUT * 4)
            k = int32(four % FOURS_IN_K * 4 if ALONG_K else four // FOURS_OUT)
            address = start + (int64(outer) * stride_outer + int64(k) * stride_k) * ITEM
            if PACKED:
                values[i, 0], values[i, 1] = (
                    load_words(address)
                    if outer < outer_left and k < k_left
                    else (int32(0), int32(0))
                )
            elif WIDE:
                if outer < outer_left and k < k_left:
                    values[i, 0], values[i, 1], values[i, 2], values[i, 3] = load4(
                        address
                    )
                else:
                    for j in range(4):
                        values[i, j] = 0
            else:
                for j in range(4):
                    inside = (
                        outer + (not ALONG_K) * j < outer_left
                        and k + ALONG_K * j < k_left
                    )
                    step = stride_k if ALONG_K else stride_outer
                    values[i, j] = (
                        load(address + j * step * ITEM) if inside else float32(0)
                    )

    @cuda.jit(device=True)
    def put(shared, buffer, values):
        for i in range(FOURS):
            four = int32(cuda.threadIdx.x + i * THREADS)
            k = int32(four % FOURS_IN_K * 4 if ALONG_K else four // FOURS_OUT)
            row = int32(
                buffer
                + (k // SLAB_K * SLAB + k % SLAB_K * ROW if SLABS > 1 else k * ROW)
            )
            if PACKED:
                first, second = unpack(values[i, 0])
                third, fourth = unpack(values[i, 1])
            else:
                first, second = values[i, 0], values[i, 1]
                third, fourth = values[i, 2], values[i, 3]
            if ALONG_K:
                column = int32(row + four // FOURS_IN_K)
                shared[column] = first
                shared[column + ROW] = second
                shared[column + 2 * ROW] = third
                shared[column + 3 * ROW] = fourth
            else:
                store_shared(
                    shared,
                    row + four % FOURS_OUT * 4,
                    (first, second, third, fourth),
                )

    return fetch, put, (2, int32) if PACKED else (4, float32)


@functools.cache
def _kernel_for(
    dtype, ITEM, BLOCK_M, BLOCK_N, A_ALONG_K, A_WIDE, B_ALONG_K, B_WIDE, C_WIDE
):
    THREADS_N = BLOCK_N // OUTPUTS
    THREADS = BLOCK_M // OUTPUTS * THREADS_N
    LANES_N = min(
        8, THREADS_N
    )  # a warp is 4 by 8 threads: 8 lanes read 128 bytes of B in a row
    LANES_M = min(4, BLOCK_M // OUTPUTS)
    ROW_A, ROW_B = BLOCK_M + PADDING, BLOCK_N + PADDING
    SLABS = _slabs(ITEM, A_WIDE and B_WIDE)
    BLOCK_K, SLAB_A, SLAB_B = (
        SLABS * SLAB_K,
        _slab(BLOCK_M, SLABS),
        _slab(BLOCK_N, SLABS),
    )
    BUFFER_A, BUFFER_B = SLABS * SLAB_A, SLABS * SLAB_B
    SIZE_A, SIZE_B = 2 * BUFFER_A, 2 * BUFFER_B
    FOURS_A, FOURS_B = (
        BLOCK_M * BLOCK_K // 4 // THREADS,
        BLOCK_N * BLOCK_K // 4 // THREADS,
    )
    HALF_M, HALF_N = BLOCK_M // 2, BLOCK_N // 2
    ALIGNMENT, float32, int32, int64 = (
        ptx.ALIGNMENT,
        numba.float32,
        numba.int32,
        numba.int64,
    )
    load_shared, store, store4 = ptx.load_shared, ptx.store(dtype), ptx.store(dtype, 4)
    fetch_a, put_a, (HELD_A, TYPE_A) = _staging(
        dtype, ITEM, BLOCK_M, THREADS, SLABS, A_ALONG_K, A_WIDE
    )
    fetch_b, put_b, (HELD_B, TYPE_B) = _staging(
        dtype, ITEM, BLOCK_N, THREADS, SLABS, B_ALONG_K, B_WIDE
    )

    @cuda.jit(device=True)
    def multiply(sums, shared_a, shared_b, at_a, at_b):
        low_a, high_a = load_shared(shared_a, at_a), load_shared(
            shared_a, at_a + HALF_M
        )
        low_b, high_b = load_shared(shared_b, at_b), load_shared(
            shared_b, at_b + HALF_N
        )
        for i in range(HALF):
            for j in range(HALF):
                sums[i, j] += low_a[i] * low_b[j]
                sums[i, HALF + j] += low_a[i] * high_b[j]
                sums[HALF + i, j] += high_a[i] * low_b[j]
                sums[HALF + i, HALF + j] += high_a[i] * high_b[j]

    @jit_for(
        THREADS, 2 if A_WIDE or B_WIDE else 1
    )  # each single load keeps an address: two blocks would spill
    def kernel(
        a,
        b,
        c,
        m,
        n,
        depth,
        stride_ab,
        stride_am,
        stride_ak,
        stride_bb,
        stride_bk,
        stride_bn,
    ):
        shared_a = cuda.shared.array(SIZE_A, float32, ALIGNMENT)
        shared_b = cuda.shared.array(SIZE_B, float32, ALIGNMENT)
        next_a = cuda.local.array((FOURS_A, HELD_A), TYPE_A)
        next_b = cuda.local.array((FOURS_B, HELD_B), TYPE_B)
        sums = cuda.local.array((OUTPUTS, OUTPUTS), float32)
        for i in range(OUTPUTS):
            for j in range(OUTPUTS):
                sums[i, j] = 0

        entry, tile_m, tile_n = tile_of_block(
            (m + BLOCK_M - 1) // BLOCK_M, (n + BLOCK_N - 1) // BLOCK_N
        )
        start_m, start_n = int32(tile_m * BLOCK_M), int32(tile_n * BLOCK_N)
        a += (int64(entry) * stride_ab + int64(start_m) * stride_am) * ITEM
        b += (int64(entry) * stride_bb + int64(start_n) * stride_bn) * ITEM
        warp, lane = int32(cuda.threadIdx.x // 32), int32(cuda.threadIdx.x % 32)
        thread_m = int32(
            (warp // (THREADS_N // LANES_N) * LANES_M + lane // LANES_N) * HALF
        )
        thread_n = int32(
            (warp % (THREADS_N // LANES_N) * LANES_N + lane % LANES_N) * HALF
        )

        left_m, left_n = int32(m - start_m), int32(n - start_n)
        fetch_a(next_a, a, stride_am, stride_ak, left_m, depth)
        fetch_b(next_b, b, stride_bn, stride_bk, left_n, depth)
        put_a(shared_a, 0, next_a)
        put_b(shared_b, 0, next_b)
        cuda.syncthreads()
        buffer = int32(0)
        left = int32(depth)
        while left > 0:
            left = int32(left - BLOCK_K)
            a += BLOCK_K * stride_ak * ITEM
            b += BLOCK_K * stride_bk * ITEM
            if left > 0:
                fetch_a(next_a, a, stride_am, stride_ak, left_m, left)
                fetch_b(next_b, b, stride_bn, stride_bk, left_n, left)
            for slab in range(SLABS):
                at_a = int32(buffer * BUFFER_A + slab * SLAB_A + thread_m)
                at_b = int32(buffer * BUFFER_B + slab * SLAB_B + thread_n)
                end = int32(at_a + SLAB_K * ROW_A)
                while (
                    at_a < end
                ):  # two steps of k by hand: LLVM does not unroll so long a body
                    multiply(sums, shared_a, shared_b, at_a, at_b)
                    multiply(sums, shared_a, shared_b, at_a + ROW_A, at_b + ROW_B)
                    at_a, at_b = int32(at_a + 2 * ROW_A), int32(at_b + 2 * ROW_B)
            buffer = int32(1 - buffer)
            if left > 0:
                put_a(shared_a, buffer * BUFFER_A, next_a)
                put_b(shared_b, buffer * BUFFER_B, next_b)
            cuda.syncthreads()

        c += int64(entry) * m * n * ITEM
        for i in range(OUTPUTS):
            row = int32(start_m + i // HALF * HALF_M + thread_m + i % HALF)
            for half in range(2):
                column = int32(start_n + half * HALF_N + thread_n)
                address = c + (int64(row) * n + column) * ITEM
                if C_WIDE:
                    if row < m and column < n:
                        store4(
                            address,
                            (
                                sums[i, half * HALF],
                                sums[i, half * HALF + 1],
                                sums[i, half * HALF + 2],
                                sums[i, half * HALF + 3],
                            ),
                        )
                else:
                    for j in range(HALF):
                        if row < m and column + j < n:
                            store(address + j * ITEM, sums[i, half * HALF + j])

    return kernel


def _rule(a, b, target):
    if interpreted("numba_cuda"):
        return {
            "BLOCK_M": 16,
            "BLOCK_N": 16,
        }  # the simulator starts a Python thread for each of the block's
    batch, m, n = a.shape[0], a.shape[1], b.shape[2]
    for block_m, block_n in ((128, 128), (128, 64) if m >= n else (64, 128)):
        if (
            m > block_m // 2
            and n > block_n // 2
            and batch * -(-m // block_m) * -(-n // block_n)
            >= 2 * multiprocessors(a.device)
        ):
            return {"BLOCK_M": block_m, "BLOCK_N": block_n}
    return {"BLOCK_M": 64, "BLOCK_N": 64}


def _candidates(a, b, target):
    tiles = {
        (block_m, block_n)
        for block_m in (64, 128)
        if block_m == 64 or a.shape[1] > 64
        for block_n in (64, 128)
        if block_n == 64 or b.shape[2] > 64
    } | {tuple(_rule(a, b, target).values())}
    return [
        {"BLOCK_M": block_m, "BLOCK_N": block_n} for block_m, block_n in sorted(tiles)
    ]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@bmm.variant(
    backend="numba_cuda",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="numba_cuda_tiled",
    tunable=CONFIGS,
)
def numba_cuda_register_tile(a, b):
    batch, m, depth = a.shape
    n = b.shape[2]
    c = torch.empty((batch, m, n), dtype=a.dtype, device=a.device)
    if c.numel() == 0:
        return c
    config = CONFIGS.choose(a, b)
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    a_along_k, b_along_k = along(a, 2), along(b, 1)
    kernel = _kernel_for(
        dtype_name(a.dtype),
        a.element_size(),
        block_m,
        block_n,
        a_along_k,
        wide(a, 2 if a_along_k else 1, 4),
        b_along_k,
        wide(b, 1 if b_along_k else 2, 4),
        n % 4 == 0,
    )
    launch_at(
        a.device,
        kernel,
        batch * -(-m // block_m) * -(-n // block_n),
        block_m * block_n // OUTPUTS**2,
        a.data_ptr(),
        b.data_ptr(),
        c.data_ptr(),
        m,
        n,
        depth,
        *a.stride(),
        *b.stride()
    )
    return c
