"""Programs that stay: a grid of the chip's size walks over all tiles, fed and emptied
by TMA.

`triton_autotuned` starts a program for each tile: each begins with an empty pipeline,
and computes an address and a mask for every 16 bytes that it loads. Here 132 programs
(an H200's multiprocessors; up to four times as many of small tiles) take tile after
tile, and next tiles are loaded while one is still multiplied or written: the loops over
tiles and over K are one pipeline (FLATTEN; the other way is a candidate). A K of up to
256 bytes is one step and needs no inner loop: of 512x512x64 the compiled code executes
half of the instructions. TMA is given a tile's coordinates, [entry, row, column], and
computes the addresses: a tile is clipped at the edge of its entry, reads zeros beyond
it, and needs no mask.

128x256x64 with 8 warps moves 48 KB for 4.2 MFLOP. C leaves in two halves through one
place of 32 KB, so four stages fit: 224 of 227 KiB, at up to 163 registers a thread.
Operands go from shared memory straight into wgmma in each layout: in nn, nt and tn of
16 bits, in fp8 where both are contiguous along K. Bound next by its warps, which issue
loads, multiply and write C in turns. Before sm_90 descriptors become scalar loads of 2
bytes with no pipeline, so it is declined there. sm_120 has TMA, but mma.sync and 100
KiB: tiles of 128x128 with 80 KiB for two stages and half of C, at up to 167 registers a
thread.
"""

from batchline.kernels.architectures import TCGEN05
from batchline.kernels.backends import TensorDescriptor, tl, triton
from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._descriptors import (
    ROW_BYTES,
    Operands,
    place,
    stored,
    tiles,
)
from batchline.kernels.bmm._descriptors import (
    why_not as why_not_tma,
)
from batchline.kernels.op import FP8
from batchline.kernels.target import multiprocessors, target_of
from batchline.kernels.tuning import Tunable, distinct

LEAST_STAGES = 2  # in shared memory: one is loaded while another is used
_BARRIERS_BYTES = 256  # of shared memory, for the mbarriers of all stages
_ONE_STEP_BYTES = 256  # along K: a shorter K is one step
_LEAST_C_COLUMNS = 64  # that leave at once: the 128 bytes that TMA swizzles
MOST_SUMS = 128  # of a thread, whose 255 registers hold little more beside


@triton.jit
def _kernel(
    a_desc,
    b_desc,
    c_desc,
    B,
    M,
    N,
    K,
    a_step,
    b_step,
    A_TRANSPOSED: tl.constexpr,
    B_TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
    ONE_STEP: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    # The pipeline is of the innermost loop. Flattened, the two loops are one; of one
    # step, there is only the loop over tiles. Either way next tiles are loaded early.
    for tile in tl.range(
        tl.program_id(0), B * tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN
    ):
        entry, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, BLOCK_K if ONE_STEP else K, BLOCK_K):
            if A_TRANSPOSED:
                a = (
                    a_desc.load([entry * a_step, k, first_m])
                    .reshape(BLOCK_K, BLOCK_M)
                    .T
                )
            else:
                a = a_desc.load([entry * a_step, first_m, k]).reshape(BLOCK_M, BLOCK_K)
            if B_TRANSPOSED:
                b = (
                    b_desc.load([entry * b_step, first_n, k])
                    .reshape(BLOCK_N, BLOCK_K)
                    .T
                )
            else:
                b = b_desc.load([entry * b_step, k, first_n]).reshape(BLOCK_K, BLOCK_N)
            if a.dtype.is_fp8() and not ONE_STEP:
                # fp8 tensor cores add in fewer bits than fp32: each step's sum of 128
                # products is added apart.
                accumulator += tl.dot(a, b)
            else:
                accumulator = tl.dot(a, b, accumulator)
        c = accumulator.to(c_desc.dtype)
        C_COLUMNS: tl.constexpr = c_desc.block_shape[2]
        if C_COLUMNS == BLOCK_N:
            c_desc.store([entry, first_m, first_n], c.reshape(1, BLOCK_M, BLOCK_N))
        else:
            # A thread has columns of both halves, so to split them moves nothing.
            halves = c.reshape(BLOCK_M, 2, C_COLUMNS).permute(0, 2, 1)
            left, right = halves.split()
            left = left.reshape(1, BLOCK_M, C_COLUMNS)
            right = right.reshape(1, BLOCK_M, C_COLUMNS)
            c_desc.store([entry, first_m, first_n], left)
            c_desc.store([entry, first_m, first_n + C_COLUMNS], right)


def _c_columns(block_n, target):
    """Columns of a tile of C that leave at once. A half takes half the shared memory;
    on sm_100 Triton gives each half a place of its own.
    """
    if target.tensor_cores == TCGEN05:
        return block_n
    return max(min(block_n, _LEAST_C_COLUMNS), block_n // 2)


def _stages(block_m, block_n, row_bytes, programs_per_sm, target):
    """Stages that each program's share of shared memory has room for, beside C's own
    place on its way out.
    """
    room = (
        target.shared_bytes_per_sm // programs_per_sm
        - target.shared_bytes_reserved
        - _BARRIERS_BYTES
        - block_m * _c_columns(block_n, target) * 2
    )
    return room // ((block_m + block_n) * row_bytes)


def _sums(a, block_m, block_n, num_warps):
    """Sums that a thread keeps: in fp8 those of all steps and those of one, if there are
    several.
    """
    two = a.dtype.itemsize == 1 and a.shape[2] > ROW_BYTES
    return block_m * block_n // (32 * num_warps) * (2 if two else 1)


def _row_bytes(a, block_m, block_n, flatten, target):
    """Bytes of a step along K. In 16 bits a short K is one step of up to 256 bytes; fp8
    adds 128 products at most in its tensor cores.
    """
    k_bytes = a.shape[2] * a.element_size()
    one_step = not flatten and a.element_size() == 2 and k_bytes <= _ONE_STEP_BYTES
    if (
        one_step
        and k_bytes > ROW_BYTES
        and _stages(block_m, block_n, _ONE_STEP_BYTES, 1, target) >= LEAST_STAGES
    ):
        return _ONE_STEP_BYTES
    return ROW_BYTES


def _config(a, shape, programs_per_sm, target, flatten):
    """A tile (rows, columns, warps) with as many programs as an SM has registers, and
    shared memory for two stages.
    """
    block_m, block_n, num_warps = shape
    flatten = flatten and a.shape[2] * a.element_size() > ROW_BYTES
    row_bytes = _row_bytes(a, block_m, block_n, flatten, target)
    threads = 32 * num_warps
    registers = _sums(a, *shape) + 90  # of a thread: up to 90 for all but its sums
    registers = min(registers, target.registers_per_thread)
    programs_per_sm = min(
        programs_per_sm, 4, target.registers_per_sm // (threads * registers)
    )
    while (
        programs_per_sm > 1
        and _stages(block_m, block_n, row_bytes, programs_per_sm, target) < LEAST_STAGES
    ):
        programs_per_sm -= 1
    stages = (
        _stages(block_m, block_n, row_bytes, programs_per_sm, target)
        + target.stages_in_registers
    )
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": row_bytes // a.element_size(),
        "FLATTEN": flatten,
        "num_warps": num_warps,
        "num_stages": min(6, stages),
        "programs_per_sm": programs_per_sm,
    }


def _one_pipeline(a, shape, programs_per_sm, target):
    """`_config` with K as one step, or else with the loops flattened."""
    config = _config(a, shape, programs_per_sm, target, flatten=False)
    if a.shape[2] <= config["BLOCK_K"]:
        return config
    return _config(a, shape, programs_per_sm, target, flatten=True)


def _widest(a, target):
    """Columns that a tile of 128 rows can have without spilling (fp8 keeps two sums)
    and with stages to fill.
    """
    return (
        128
        if a.dtype.itemsize == 1
        or _stages(128, 256, ROW_BYTES, 1, target) < LEAST_STAGES
        else 256
    )


def _rule(a, b, target):
    """The largest tile that leaves no SM without one; a short K shows the epilogue,
    which a second program hides.
    """
    (_, m, k), n = a.shape, b.shape[2]
    sms = multiprocessors(a.device)
    block_m = 128 if m > 64 else 64
    block_n = min(
        _widest(a, target) if k > 256 else 128, max(16, triton.next_power_of_2(n))
    )
    while block_n > 64 and tiles(a, b, block_m, block_n) < sms:
        block_n //= 2
    if tiles(a, b, block_m, block_n) < sms:
        block_m = 64
    programs_per_sm = triton.cdiv(tiles(a, b, block_m, block_n), sms)
    config = _one_pipeline(a, (block_m, block_n, 4), programs_per_sm, target)
    alone = _sums(a, block_m, block_n, 4) > MOST_SUMS or config["programs_per_sm"] == 1
    return (
        _one_pipeline(a, (block_m, block_n, 8), programs_per_sm, target)
        if block_m == 128 and alone
        else config
    )


def _candidates(a, b, target):
    m, n = a.shape[1], b.shape[2]
    shapes = (
        (128, 256, 8),
        (256, 128, 8),
        (128, 128, 8),
        (128, 128, 4),
        (64, 256, 4),
        (128, 64, 4),
        (64, 128, 4),
        (64, 64, 4),
        (64, 32, 4),
        (64, 16, 4),
    )
    fitting = [
        shape
        for shape in shapes
        if shape[0] < max(65, 2 * m)
        and min(n, 256) <= 4 * shape[1] < max(65, 8 * n)
        and max(shape[0] * shape[1] // 128, shape[1]) <= _widest(a, target)
        and _sums(a, *shape) <= MOST_SUMS
    ]
    configs = [
        _rule(a, b, target),
        *(
            _config(a, shape, programs, target, flatten)
            for shape in fitting
            for programs, flatten in ((4, True), (2, True), (2, False))
        ),
    ]
    return distinct(configs)


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


def why_not(a, b):
    if reason := why_not_tma(a, b):
        return reason
    if (
        a.element_size() == 1
        and a.numel()
        and b.numel()
        and (stored(a).transposed or not stored(b).transposed)
    ):
        return "tensor cores take fp8 from rows of A and columns of B only"
    return None


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", FP8),
    needs="cuda",
    supports=why_not,
    builds_on="triton_autotuned",
    tunable=CONFIGS,
    example=("linear_forward", 16),
)
def triton_persistent_tma(a, b):
    operands = Operands(a, b)
    c = operands.new_product()
    if operands.is_empty:
        return c.zero_()
    config = dict(CONFIGS.choose(a, b))
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    most = multiprocessors(a.device) * config.pop("programs_per_sm")
    programs = min(operands.tiles(config), most)
    c_columns = _c_columns(block_n, target_of(a.device))
    a_stored, b_stored = operands.a_stored, operands.b_stored
    _kernel[(programs,)](
        _descriptor(a, a_stored, block_m, block_k),
        _descriptor(b, b_stored, block_k, block_n),
        TensorDescriptor(c, c.shape, c.stride(), [1, block_m, c_columns]),
        *operands.sizes,
        a_stored.step,
        b_stored.step,
        ONE_STEP=a.shape[2] <= block_k,
        **operands.constants,
        **config,
    )
    return c


def _descriptor(operand, lies, rows, columns):
    block = [1, columns, rows] if lies.transposed else [1, rows, columns]
    return TensorDescriptor(operand, lies.shape, lies.strides, block)
