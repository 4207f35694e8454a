"""What the Numba kernels that tile C share: which tile a block has, and what the
strides of an operand allow.
"""

import torch

from batchline.kernels.backends import cuda, numba

GROUP_M = 8  # blocks run down 8 tiles of M before the next of N, so that neighbours share operands in L2


@cuda.jit(device=True)
def tile_of_block(tiles_m, tiles_n):
    """(entry of the batch, tile in M, tile in N) of this block, in 32 bits: a 64-bit
    division is a long subroutine.
    """
    uint32 = numba.uint32
    tiles = uint32(tiles_m * tiles_n)
    entry = uint32(uint32(cuda.blockIdx.x) // tiles)
    tile = uint32(uint32(cuda.blockIdx.x) % tiles)
    in_group = uint32(GROUP_M * tiles_n)
    first_m = uint32(uint32(tile // in_group) * GROUP_M)
    group = uint32(min(uint32(tiles_m - first_m), uint32(GROUP_M)))
    within = uint32(tile % in_group)
    return (
        numba.int32(entry),
        numba.int32(first_m + within % group),
        numba.int32(within // group),
    )


def along(operand: torch.Tensor, axis: int) -> bool:
    """Whether neighbours in memory are neighbours in `axis` (1 or 2) rather than in the
    other one.
    """
    return (
        operand.stride(axis) <= operand.stride(3 - axis) or operand.shape[3 - axis] == 1
    )


def steps(operand: torch.Tensor) -> tuple[int, ...]:
    """The strides, 0 for a dimension of one element: it is never stepped along, save in
    an address that is masked.
    """
    return tuple(
        stride if size > 1 else 0
        for size, stride in zip(operand.shape, operand.stride())
    )


def wide(operand: torch.Tensor, axis: int, elements: int) -> bool:
    """Whether `axis` falls into runs of `elements` that lie side by side, each aligned
    to its size, with none left.
    """
    return (
        operand.stride(axis) == 1
        and operand.shape[axis] % elements == 0
        and operand.data_ptr() % (elements * operand.element_size()) == 0
        and all(
            step % elements == 0
            for other, step in enumerate(steps(operand))
            if other != axis
        )
    )
