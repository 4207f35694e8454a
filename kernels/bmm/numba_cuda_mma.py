"""The tensor cores through inline PTX: mma.sync m16n8k16 on tiles that cp.async brings
in, 64 of K at a time and up to four stages deep.

Against `numba_cuda_register_tile`: one instruction of a warp is 2048 products where an
FMA is 32, and copies pass by the registers, up to three steps of K ahead. mma.sync
leaves four bytes of a row of C in each lane; four lanes change them about, so that each
stores 16 and two of them a whole sector. Numba has no bf16 arrays and needs none:
elements are 16 bits at an address. A warp's 64x64 outputs take 4 KiB from shared memory
for every 32 instructions, each ldmatrix of which adds a constant to a place that its
lane found once. On sm_90 a step of 64 in K (nn) is 128 HMMA in 306 instructions with
128x128 tiles, of which two blocks share an SM, and in 286 with 256x128, of which one has
it: 230 registers, 96 and 192 KiB. Bound by mma.sync next: wgmma, Hopper's own, reads its
operands from shared memory and leaves the registers to the sums.
"""

import functools

import torch

from batchline.kernels._cuda import ptx
from batchline.kernels._cuda.launch import jit_for, launch_at
from batchline.kernels.backends import cuda, interpreted, numba
from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._numba_tiles import along, steps, tile_of_block, wide
from batchline.kernels.elements import dtype_name
from batchline.kernels.target import multiprocessors, target_of
from batchline.kernels.tuning import Tunable

ITEM = 2  # bytes of an element
EIGHT = 8  # elements of 16 bytes, and rows of the 8x8 matrices that ldmatrix reads
ROW = 64  # elements of 128 bytes: all the banks of shared memory once


def _staging(BLOCK, BLOCK_K, THREADS, ALONG_K, WIDE, OUTER_FIRST):
    """bring: a BLOCK x BLOCK_K tile of an operand into shared memory; fragment: four
    8x8 matrices of it.

    A tile lies as its operand does, along k or along the other axis. Each run of 8
    elements is moved within its row (`^`), so that the 8 runs of a matrix, which
    ldmatrix reads at once, are in different banks. mma.sync wants the four matrices of
    A with the outer axis first, and the two pairs that B gives with k first.
    """
    RUNS_K, RUNS_OUT = BLOCK_K // EIGHT, BLOCK // EIGHT
    RUNS, ELEMENTS = BLOCK * RUNS_K // THREADS, BLOCK * BLOCK_K // THREADS
    SPREAD = min(EIGHT, RUNS_OUT) - 1
    STEP_OUT, STEP_K = (THREADS // RUNS_K, 0) if ALONG_K else (0, THREADS // RUNS_OUT)
    int16, int32, int64 = numba.int16, numba.int32, numba.int64
    cp_async, load, ldmatrix = (
        ptx.cp_async,
        ptx.load("int16"),
        ptx.ldmatrix(not ALONG_K),
    )

    @cuda.jit(device=True)
    def place(outer, k):
        if ALONG_K:
            return int32(
                outer * BLOCK_K
                + (((k // EIGHT) ^ ((outer * BLOCK_K // ROW) % RUNS_K)) * EIGHT)
                + k % EIGHT
            )
        return int32(
            k * BLOCK + (((outer // EIGHT) ^ (k & SPREAD)) * EIGHT) + outer % EIGHT
        )

    @cuda.jit(device=True)
    def bring(shared, buffer, start, stride_outer, stride_k, outer_left, k_left):
        if WIDE:
            # From run to run a thread steps along one axis alone.
            run = int32(cuda.threadIdx.x)
            outer = int32(run // RUNS_K if ALONG_K else run % RUNS_OUT * EIGHT)
            k = int32(run % RUNS_K * EIGHT if ALONG_K else run // RUNS_OUT)
            address = start + (int64(outer) * stride_outer + int64(k) * stride_k) * ITEM
            first = place(outer, k)  # its steps are multiples of what `^` depends on
            for i in range(RUNS):
                cp_async(
                    shared,
                    buffer + first + i * (STEP_OUT * BLOCK_K + STEP_K * BLOCK),
                    address,
                    int32(16 if outer < outer_left and k < k_left else 0),
                )
                outer, k = int32(outer + STEP_OUT), int32(k + STEP_K)
                address += (STEP_OUT * stride_outer + STEP_K * stride_k) * ITEM
        else:
            values = cuda.local.array(EIGHT, int16)
            for i in range(
                0, ELEMENTS, EIGHT
            ):  # eight loads under way before the first is stored
                for j in range(EIGHT):
                    element = int32(cuda.threadIdx.x + (i + j) * THREADS)
                    outer = int32(element // BLOCK_K if ALONG_K else element % BLOCK)
                    k = int32(element % BLOCK_K if ALONG_K else element // BLOCK)
                    address = (
                        start
                        + (int64(outer) * stride_outer + int64(k) * stride_k) * ITEM
                    )
                    values[j] = (
                        load(address) if outer < outer_left and k < k_left else int16(0)
                    )
                for j in range(EIGHT):
                    element = int32(cuda.threadIdx.x + (i + j) * THREADS)
                    outer = int32(element // BLOCK_K if ALONG_K else element % BLOCK)
                    k = int32(element % BLOCK_K if ALONG_K else element // BLOCK)
                    shared[buffer + place(outer, k)] = values[j]

    @cuda.jit(device=True)
    def lane_place(first):
        """Where this lane's row of the matrices begins in a buffer, for k = 0 and the
        16 of the outer axis from `first`, a multiple of the warp's own.
        """
        lane = int32(cuda.threadIdx.x % 32)
        row, second, third = lane % EIGHT, lane // 8 % 2 * EIGHT, lane // 16 * EIGHT
        outer = first + row if ALONG_K else first
        outer += second if OUTER_FIRST else third
        k = third if OUTER_FIRST else second
        return place(outer, k) if ALONG_K else place(outer, k + row)

    @cuda.jit(device=True)
    def fragment(shared, buffer, lane_place, outer, k):
        """The 16 of the warp's outer axis from `outer` by 16 of k from `k`, a register
        of each lane for every 8x8 of them.

        One of the two is in the bits that `place` moves, which a constant changes with
        one `^` for all that lie along the other: those differ in the address alone.
        """
        if ALONG_K:
            return ldmatrix(shared, buffer + (lane_place ^ k) + outer * BLOCK_K)
        return ldmatrix(shared, buffer + (lane_place ^ outer) + k * BLOCK)

    return bring, lane_place, fragment


@functools.cache
def _kernel_for(
    dtype,
    BFLOAT16,
    BLOCK_M,
    BLOCK_N,
    BLOCK_K,
    STAGES,
    WARPS_M,
    WARPS_N,
    A_ALONG_K,
    A_WIDE,
    B_ALONG_K,
    B_WIDE,
    C_LANES,
):
    WARP_M, WARP_N, THREADS = (
        BLOCK_M // WARPS_M,
        BLOCK_N // WARPS_N,
        32 * WARPS_M * WARPS_N,
    )
    TILES_M, TILES_N, PAIRS = WARP_M // 16, WARP_N // 8, WARP_N // 16
    BUFFER_A, BUFFER_B = BLOCK_M * BLOCK_K, BLOCK_N * BLOCK_K
    BUFFER = BUFFER_A + BUFFER_B
    ALIGNMENT, float32, int16, int32, int64 = (
        ptx.ALIGNMENT,
        numba.float32,
        numba.int16,
        numba.int32,
        numba.int64,
    )
    mma, store, store_pair = ptx.mma(dtype), ptx.store(dtype), ptx.store(dtype, 2)
    pack, swap, store_words = ptx.pack(dtype), ptx.swap, ptx.store("int32", 4)
    commit, wait = ptx.cp_async_commit, ptx.cp_async_wait(STAGES - 2)
    bring_a, lane_place_a, fragment_a = _staging(
        BLOCK_M, BLOCK_K, THREADS, A_ALONG_K, A_WIDE, OUTER_FIRST=True
    )
    bring_b, lane_place_b, fragment_b = _staging(
        BLOCK_N, BLOCK_K, THREADS, B_ALONG_K, B_WIDE, OUTER_FIRST=False
    )

    @cuda.jit(device=True)
    def multiply(sums, shared, buffer, place_a, place_b, k):
        of_a = cuda.local.array((TILES_M, 4), int32)
        for i in range(TILES_M):
            of_a[i, 0], of_a[i, 1], of_a[i, 2], of_a[i, 3] = fragment_a(
                shared, buffer, place_a, 16 * i, k
            )
        for j in range(0, TILES_N, 2):
            b0, b1, b2, b3 = fragment_b(shared, buffer + BUFFER_A, place_b, 8 * j, k)
            for i in range(TILES_M):
                a0, a1, a2, a3 = of_a[i, 0], of_a[i, 1], of_a[i, 2], of_a[i, 3]
                low = mma(
                    a0,
                    a1,
                    a2,
                    a3,
                    b0,
                    b1,
                    (sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3]),
                )
                high = mma(
                    a0,
                    a1,
                    a2,
                    a3,
                    b2,
                    b3,
                    (
                        sums[i, j + 1, 0],
                        sums[i, j + 1, 1],
                        sums[i, j + 1, 2],
                        sums[i, j + 1, 3],
                    ),
                )
                for register in range(4):
                    sums[i, j, register] = low[register]
                    sums[i, j + 1, register] = high[register]

    @cuda.jit(device=True)
    def transpose(words):
        """Four lanes' words: a lane's own are those of its number in the others."""
        lane = int32(cuda.threadIdx.x)
        for i in range(0, 4, 2):
            odd = lane & 1 != 0
            got = swap(words[i] if odd else words[i + 1], 1)
            words[i] = got if odd else words[i]
            words[i + 1] = words[i + 1] if odd else got
        for i in range(2):
            upper = lane & 2 != 0
            got = swap(words[i] if upper else words[i + 2], 2)
            words[i] = got if upper else words[i]
            words[i + 2] = words[i + 2] if upper else got

    @cuda.jit(device=True)
    def store_wide(sums, c, start_m, start_n, m, n):
        """16 bytes of a row from each lane, two such lanes a sector."""
        packed = cuda.local.array((TILES_M, PAIRS, 4), int32)
        # A loop this short is unrolled for every architecture, so that sums stay in
        # registers.
        for i in range(TILES_M):
            for j in range(TILES_N):
                for half in range(2):
                    packed[i, j // 2, j % 2 * 2 + half] = pack(
                        sums[i, j, 2 * half], sums[i, j, 2 * half + 1]
                    )
        lane = int32(cuda.threadIdx.x % 32)
        for i in range(TILES_M):
            row = int32(start_m + 16 * i + lane % 2 * 8 + lane // 4)
            for j in range(PAIRS):
                words = packed[i, j]
                transpose(words)
                column = int32(start_n + 16 * j + lane // 2 % 2 * 8)
                if row < m and column < n:
                    store_words(
                        c + (int64(row) * n + column) * ITEM,
                        (words[0], words[1], words[2], words[3]),
                    )

    @jit_for(THREADS, max(1, 256 // THREADS))
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
        shared = cuda.shared.array(0, int16, ALIGNMENT)
        sums = cuda.local.array((TILES_M, TILES_N, 4), float32)
        for i in range(TILES_M):
            for j in range(TILES_N):
                for register in range(4):
                    sums[i, j, register] = 0

        entry, tile_m, tile_n = tile_of_block(
            (m + BLOCK_M - 1) // BLOCK_M, (n + BLOCK_N - 1) // BLOCK_N
        )
        start_m, start_n = int32(tile_m * BLOCK_M), int32(tile_n * BLOCK_N)
        left_m, left_n, left = int32(m - start_m), int32(n - start_n), int32(depth)
        a += (int64(entry) * stride_ab + int64(start_m) * stride_am) * ITEM
        b += (int64(entry) * stride_bb + int64(start_n) * stride_bn) * ITEM
        warp, lane = int32(cuda.threadIdx.x // 32), int32(cuda.threadIdx.x % 32)
        warp_m, warp_n = int32(warp // WARPS_N * WARP_M), int32(warp % WARPS_N * WARP_N)

        place_a, place_b = lane_place_a(warp_m), lane_place_b(warp_n)
        reading, writing = int32(0), int32(0)
        # One loop, so that the copies' code is there once: its first rounds fill the
        # stages, and the others read one that has landed.
        for step in range(1 - STAGES, (depth + BLOCK_K - 1) // BLOCK_K):
            if step >= 0:
                wait()
                cuda.syncthreads()  # and everyone has read what is overwritten next
            if left > 0:
                bring_a(shared, writing, a, stride_am, stride_ak, left_m, left)
                bring_b(
                    shared, writing + BUFFER_A, b, stride_bn, stride_bk, left_n, left
                )
            commit()  # a group also where nothing is left: `wait` counts them
            a += BLOCK_K * stride_ak * ITEM
            b += BLOCK_K * stride_bk * ITEM
            left = int32(left - BLOCK_K)
            writing = int32(writing + BUFFER if writing < (STAGES - 1) * BUFFER else 0)
            if step >= 0:
                multiply(sums, shared, reading, place_a, place_b, 0)
                multiply(sums, shared, reading, place_a, place_b, 16)
                if BLOCK_K == 64:
                    multiply(sums, shared, reading, place_a, place_b, 32)
                    multiply(sums, shared, reading, place_a, place_b, 48)
                reading = int32(
                    reading + BUFFER if reading < (STAGES - 1) * BUFFER else 0
                )

        c += int64(entry) * m * n * ITEM
        if C_LANES == EIGHT:
            store_wide(sums, c, start_m + warp_m, start_n + warp_n, m, n)
        else:
            for i in range(TILES_M):
                for half in range(2):
                    row = int32(start_m + warp_m + 16 * i + 8 * half + lane // 4)
                    for j in range(TILES_N):
                        column = int32(start_n + warp_n + 8 * j + lane % 4 * 2)
                        address = c + (int64(row) * n + column) * ITEM
                        if C_LANES == 2:
                            if row < m and column < n:
                                store_pair(
                                    address,
                                    (sums[i, j, 2 * half], sums[i, j, 2 * half + 1]),
                                )
                        else:
                            if row < m and column < n:
                                store(address, sums[i, j, 2 * half])
                            if row < m and column + 1 < n:
                                store(address + ITEM, sums[i, j, 2 * half + 1])

    return kernel


# (BLOCK_M, BLOCK_N, WARPS_M, WARPS_N), of equal cost the first.
_TILES = ((128, 128, 2, 2), (128, 64, 2, 2), (64, 128, 2, 2), (64, 64, 2, 2))
# Eight warps have an SM to themselves: nothing hides how they begin and end, so K must
# be long.
_ALONE, _LEAST_DEPTH_ALONE = (256, 128, 4, 2), 512


def _config(tile):
    return dict(zip(("BLOCK_M", "BLOCK_N", "WARPS_M", "WARPS_N"), tile))


def _tiles(a, b):
    """Those that are no more than half outside C, and 64x64."""
    m, depth, n = a.shape[1], a.shape[2], b.shape[2]
    tiles = (_ALONE, *_TILES) if depth >= _LEAST_DEPTH_ALONE else _TILES
    return [
        tile
        for tile in tiles
        if (tile[0] == 64 or m > tile[0] // 2) and (tile[1] == 64 or n > tile[1] // 2)
    ]


def _passes(tile, a, b):
    """Of shared memory on the busiest multiprocessor for 16 of K: what the tile's
    copies write, and what each warp reads. Where mma.sync is at its full rate, shared
    memory is what takes longest.
    """
    block_m, block_n, warps_m, warps_n = tile
    blocks = a.shape[0] * -(-a.shape[1] // block_m) * -(-b.shape[2] // block_n)
    rows = block_m + block_n + warps_n * block_m + warps_m * block_n
    return -(-blocks // multiprocessors(a.device)) * rows // 4


def _rule(a, b, target):
    if interpreted("numba_cuda"):
        return _config((16, 16, 1, 1))
    return _config(min(_tiles(a, b), key=lambda tile: _passes(tile, a, b)))


def _candidates(a, b, target):
    if interpreted("numba_cuda"):
        return [_rule(a, b, target)]
    tiles = _tiles(a, b)
    more = [(128, 128, 2, 4)] if _TILES[0] in tiles else []
    return [_config(tile) for tile in (*tiles, *more)]


def _block_k(depth, threads):
    """Of one step: 64, or 32 where half of 64 would be zeros that are multiplied, and
    for one warp, whose copies would step along 4 rows where `place` repeats after 8.
    """
    return 32 if depth <= 32 or threads < 64 else 64


def _stages(stage_bytes, threads, target):
    """As many as fit with as many blocks on an SM as `jit_for` is told; at least 2 and
    at most 4.
    """
    room = target.shared_bytes_per_sm * threads // 256 - target.shared_bytes_reserved
    return max(2, min(4, room // stage_bytes))


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@bmm.variant(
    backend="numba_cuda",
    dtypes=("float16", "bfloat16"),
    needs="cuda",
    builds_on="numba_cuda_register_tile",
    tunable=CONFIGS,
)
def numba_cuda_mma(a, b):
    batch, m, depth = a.shape
    n = b.shape[2]
    c = torch.empty((batch, m, n), dtype=a.dtype, device=a.device)
    if c.numel() == 0 or depth == 0:
        return c.zero_()
    config = CONFIGS.choose(a, b)
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    threads = 32 * config["WARPS_M"] * config["WARPS_N"]
    block_k = _block_k(depth, threads)
    stage_bytes = (block_m + block_n) * block_k * ITEM
    stages = _stages(stage_bytes, threads, target_of(a.device))
    a_along_k, b_along_k = along(a, 2), along(b, 1)
    kernel = _kernel_for(
        dtype_name(a.dtype),
        a.dtype == torch.bfloat16,
        block_m,
        block_n,
        block_k,
        stages,
        config["WARPS_M"],
        config["WARPS_N"],
        a_along_k,
        wide(a, 2 if a_along_k else 1, EIGHT),
        b_along_k,
        wide(b, 1 if b_along_k else 2, EIGHT),
        next(lanes for lanes in (EIGHT, 2, 1) if n % lanes == 0),
    )
    launch_at(
        a.device,
        kernel,
        batch * -(-m // block_m) * -(-n // block_n),
        threads,
        a.data_ptr(),
        b.data_ptr(),
        c.data_ptr(),
        m,
        n,
        depth,
        *steps(a),
        *steps(b),
        # A stage that no step of K reaches is never touched.
        shared_bytes=min(stages, -(-depth // block_k)) * stage_bytes,
    )
    return c
