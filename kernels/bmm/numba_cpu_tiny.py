"""One compilation for each shape: sizes and strides are constants, so a tiny product is
straight vector code.

Against `numba_cpu_naive`: a row of C is one or two vectors, as wide as N needs, and
rows of it that fit in registers together are one tile. With AVX-512, 4x4x4 is 16 fused
multiply-adds of 4 lanes, 4 loads of B and 4 stores in a row, with no loop and no
branch; 16x16x16 is a loop over depth, two steps at a time, of 32 multiply-adds of 16
lanes that read A's element from memory themselves, and 2 loads. A's layout costs
nothing, since its elements are broadcast one by one from any stride; a B whose columns
are contiguous is transposed in registers, a square at a time. What is left is the call:
threads are started only where they have work for longer than that takes. Bound by those
loads of A, one a multiply-add, up to N = 16, and in large batches by memory.
"""

import functools

import torch

from batchline.kernels._cpu.lanes import Vectors, cgutils, intrinsic, lanes_of, types
from batchline.kernels._cpu.tasks import compile_tasks, run, shares
from batchline.kernels._cpu.vectors import (
    TILE_ROWS,
    TILE_VECTORS,
    pointer,
    tile_function,
    transpose_function,
)
from batchline.kernels.backends import numba
from batchline.kernels.bmm import bmm

MOST = 32
ALONE = (
    2**15
)  # multiply-adds of vectors that one thread does in the time that it takes to start the others


def _tiles(m, n, lanes):
    """(left, width, top, height) of tiles of C whose sums fit in registers, of equal
    heights or one apart.
    """
    for left in range(0, n, TILE_VECTORS * lanes):
        width = min(TILE_VECTORS * lanes, n - left)
        tiles = -(-m // (TILE_ROWS * TILE_VECTORS // -(-width // lanes)))
        for tile in range(tiles):
            top = m * tile // tiles
            yield left, width, top, m * (tile + 1) // tiles - top


@functools.cache
def _compiled(dtype, m, n, depth, stride_am, stride_ak, stride_bk, stride_bn):
    """The products [first, last) of this shape. A stride of 0 over the batch has B's
    rows packed once for all.
    """
    element, size = (
        (numba.float32(0), 4) if dtype == torch.float32 else (numba.float64(0), 8)
    )
    lanes = min(lanes_of(size), max(16 // size, 1 << (n - 1).bit_length()))
    padded_depth = -(-depth // lanes) * lanes
    packed_width = -(-n // lanes) * lanes

    @intrinsic
    def product(typing, a, b, c, fresh):
        def generate(context, builder, signature, args):
            v = Vectors(builder.module, context.get_value_type(a.dtype), lanes)
            at_a, at_b, at_c, fresh = args
            row_b = stride_bk
            if stride_bn != 1:
                row_b = packed_width
                packed = cgutils.alloca_once(
                    builder, v.vector, size=v.word(packed_width // lanes * padded_depth)
                )
                packed.align = 64
                packed = builder.bitcast(packed, v.pointer)
                with builder.if_then(fresh):
                    pack(v, builder, packed, at_b)
                at_b = packed
            for left, width, top, height in _tiles(m, n, lanes):
                builder.call(
                    tile_function(v, height, -(-width // lanes), inline=True),
                    [
                        builder.gep(at_a, [v.word(top * stride_am)]),
                        v.word(stride_am),
                        v.word(stride_ak),
                        builder.gep(at_b, [v.word(left)]),
                        v.word(row_b),
                        v.word(depth),
                        builder.gep(at_c, [v.word(top * n + left)]),
                        v.word(n),
                        v.word(width),
                        v.bit(0),
                    ],
                )

        return types.void(a, b, c, types.boolean), generate

    def pack(v, builder, packed, b):
        """B's rows from any strides: squares of a vector's width transposed where
        columns are contiguous.
        """
        if stride_bk == 1:
            for j in range(0, n, lanes):
                for k in range(0, depth, lanes):
                    builder.call(
                        transpose_function(v),
                        [
                            builder.gep(packed, [v.word(k * packed_width + j)]),
                            v.word(packed_width),
                            builder.gep(b, [v.word(j * stride_bn + k)]),
                            v.word(stride_bn),
                            v.word(n - j),
                            v.word(depth - k),
                        ],
                    )
        else:
            for k in range(depth):
                for j in range(n):
                    value = builder.load(
                        builder.gep(b, [v.word(k * stride_bk + j * stride_bn)])
                    )
                    builder.store(
                        value, builder.gep(packed, [v.word(k * packed_width + j)])
                    )

    def products(first, last, a, stride_ab, b, stride_bb, c):
        for entry in range(first, last):
            product(
                pointer(a + size * entry * stride_ab, element),
                pointer(b + size * entry * stride_bb, element),
                pointer(c + size * entry * (m * n), element),
                entry == first or stride_bb != 0,
            )

    return compile_tasks(products, 5)


def _supports(a, b):
    if max(a.shape[1], a.shape[2], b.shape[2]) > MOST:
        return f"M, N or K is over {MOST}"


@bmm.variant(
    backend="numba_cpu",
    dtypes=("float32", "float64"),
    needs="cpu",
    builds_on="numba_cpu_naive",
    supports=_supports,
)
def numba_cpu_tiny(a, b):
    (batch, m, depth), n = a.shape, b.shape[2]
    c = a.new_empty(batch, m, n)
    if not depth:
        return c.zero_()
    if c.numel():
        (stride_ab, *strides_a), (stride_bb, *strides_b) = a.stride(), b.stride()
        function = _compiled(a.dtype, m, n, depth, *strides_a, *strides_b)
        run(
            function,
            batch,
            shares(batch, batch * m * depth <= ALONE),
            (a.data_ptr(), stride_ab, b.data_ptr(), stride_bb, c.data_ptr()),
        )
    return c
