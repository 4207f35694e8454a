"""Vector code that Numba's own loops don't give, as intrinsics: a register tile, a row
copy and a block transposed.

Addresses arrive as typed pointers (`pointer`), sizes and strides in elements.
"""

from __future__ import annotations

from batchline.kernels._cpu.lanes import (
    VECTOR_BYTES,
    Vectors,
    intrinsic,
    ir,
    lanes_of,
    types,
)

# The sums, one broadcast element of A and a row of B stay inside 32 registers (AVX-512)
# or 16.
TILE_ROWS, TILE_VECTORS = (14, 2) if VECTOR_BYTES == 64 else (6, 2)


@intrinsic
def pointer(typing, address, element):
    """A pointer to elements of `element`'s type at an integer address."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(element)(types.int64, element), generate


@intrinsic
def tile(
    typing,
    a,
    stride_am,
    stride_ak,
    b,
    stride_bk,
    depth,
    c,
    stride_cm,
    rows,
    columns,
    accumulate,
):
    """C[rows, columns] = A B, or += where `accumulate`; rows ≤ TILE_ROWS, columns ≤
    TILE_VECTORS·lanes, depth ≥ 1.

    B's rows are read in whole vectors, C's are written to `columns` only. One function
    for each number of rows and vectors, so that whatever is left at an edge is as good
    as a full tile.
    """

    def generate(context, builder, signature, args):
        element = context.get_value_type(signature.args[0].dtype)
        *operands, rows, columns, accumulate = args
        lanes = lanes_of(context.get_abi_sizeof(element))
        v = Vectors(builder.module, element, lanes)
        word = v.word
        vectors = builder.udiv(builder.add(columns, word(lanes - 1)), word(lanes))
        case = builder.add(builder.mul(rows, word(TILE_VECTORS)), vectors)
        accumulate = builder.icmp_unsigned("!=", accumulate, accumulate.type(0))
        end = builder.append_basic_block("tile.end")
        switch = builder.switch(case, end)
        for height in range(1, TILE_ROWS + 1):
            for width in range(1, TILE_VECTORS + 1):
                function = tile_function(v, height, width)
                with builder.goto_block(builder.append_basic_block()):
                    builder.call(function, [*operands, columns, accumulate])
                    builder.branch(end)
                    switch.add_case(word(height * TILE_VECTORS + width), builder.block)
        builder.position_at_end(end)

    pointers, word = {"a": a, "b": b, "c": c}, types.int64
    return (
        types.void(
            *(
                pointers[name] if name in pointers else word
                for name in (
                    "a",
                    "stride_am",
                    "stride_ak",
                    "b",
                    "stride_bk",
                    "depth",
                    "c",
                    "stride_cm",
                    "rows",
                    "columns",
                    "accumulate",
                )
            )
        ),
        generate,
    )


def tile_function(v, rows, vectors, inline=False):
    """The IR function of one tile: a loop over depth whose rows x vectors sums are phi
    nodes, so registers.

    With `inline` it is for one caller, whose constants it takes over, and reads no more
    of B than `columns`.
    """
    name = f"tile_{v.name}_{rows}x{vectors}"
    if name in v.module.globals:
        return v.module.globals[name]
    function = v.function(
        name,
        [
            v.pointer,
            v.word,
            v.word,
            v.pointer,
            v.word,
            v.word,
            v.pointer,
            v.word,
            v.word,
            v.bit,
        ],
        "alwaysinline" if inline else "noinline",
    )
    a, stride_am, stride_ak, b, stride_bk, depth, c, stride_cm, columns, accumulate = (
        function.args
    )
    entry, old, loop, end, whole, part = (
        function.append_basic_block(name)
        for name in ("entry", "old", "loop", "end", "whole", "part")
    )

    build = ir.IRBuilder(entry)
    rows_a = [build.mul(stride_am, v.word(row)) for row in range(rows)]
    rows_c = [build.gep(c, [build.mul(stride_cm, v.word(row))]) for row in range(rows)]
    mask = v.first(build, build.sub(columns, v.word((vectors - 1) * v.lanes)))
    places = [(row, index) for row in range(rows) for index in range(vectors)]
    build.cbranch(accumulate, old, loop)

    build.position_at_end(old)
    sums_old = {
        (row, index): v.load(
            build,
            build.gep(rows_c[row], [v.word(index * v.lanes)]),
            mask if index == vectors - 1 else None,
        )
        for row, index in places
    }
    build.branch(loop)

    build.position_at_end(loop)
    step, at_a, at_b = build.phi(v.word), build.phi(v.pointer), build.phi(v.pointer)
    sums = {place: build.phi(v.vector) for place in places}
    row_b = [
        v.load(
            build,
            build.gep(at_b, [v.word(index * v.lanes)]),
            mask if inline and index == vectors - 1 else None,
        )
        for index in range(vectors)
    ]
    new = {}
    for row in range(rows):
        factor = v.splat(build, build.load(build.gep(at_a, [rows_a[row]])))
        for index in range(vectors):
            new[row, index] = v.multiply_add(
                build, factor, row_b[index], sums[row, index]
            )
    following = build.add(step, v.word(1))
    for phi, start, after in (
        (step, v.word(0), following),
        (at_a, a, build.gep(at_a, [stride_ak])),
        (at_b, b, build.gep(at_b, [stride_bk])),
        *((sums[place], v.zero, new[place]) for place in places),
    ):
        phi.add_incoming(start, entry)
        phi.add_incoming(start, old)
        phi.add_incoming(after, loop)
    for place in places:
        sums[place].incomings[1] = (sums_old[place], old)
    build.cbranch(build.icmp_signed("<", following, depth), loop, end)

    build.position_at_end(end)
    build.cbranch(
        build.icmp_signed("==", columns, v.word(vectors * v.lanes)), whole, part
    )
    for block, last in ((whole, None), (part, mask)):
        build.position_at_end(block)
        for row, index in places:
            v.store(
                build,
                new[row, index],
                build.gep(rows_c[row], [v.word(index * v.lanes)]),
                last if index == vectors - 1 else None,
            )
        build.ret_void()
    return function


@intrinsic
def copy_row(typing, to, source, count):
    """Copy up to a vector of elements from `source`, and fill the vector at `to` with
    zeros.
    """

    def generate(context, builder, signature, args):
        element = context.get_value_type(signature.args[0].dtype)
        v = Vectors(builder.module, element, lanes_of(context.get_abi_sizeof(element)))
        v.store(builder, v.load(builder, args[1], v.first(builder, args[2])), args[0])

    return types.void(to, source, types.int64), generate


@intrinsic
def prefetch(typing, address):
    """Ask for the line at an integer address; nothing happens where there is none."""

    def generate(context, builder, signature, args):
        Vectors(builder.module, ir.FloatType(), 1).prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def transpose_block(typing, to, stride_to, source, stride_source, rows, columns):
    """Up to lanes x lanes elements, transposed: to[column, row] = source[row, column],
    and zeros to fill the block.
    """

    def generate(context, builder, signature, args):
        element = context.get_value_type(signature.args[0].dtype)
        v = Vectors(builder.module, element, lanes_of(context.get_abi_sizeof(element)))
        builder.call(transpose_function(v), args)

    word = types.int64
    return types.void(to, word, source, word, word, word), generate


def transpose_function(v):
    """log2(lanes) rounds of swapping the off-diagonal blocks of 2x2 blocks: one shuffle
    of two vectors each.
    """
    name, lanes = f"transpose_{v.name}", v.lanes
    if name in v.module.globals:
        return v.module.globals[name]
    function = v.function(name, [v.pointer, v.word, v.pointer, v.word, v.word, v.word])
    to, stride_to, source, stride_source, rows, columns = function.args
    entry, whole, part, end = (
        function.append_basic_block(name) for name in ("entry", "whole", "part", "end")
    )
    build = ir.IRBuilder(entry)
    starts = [
        build.gep(source, [build.mul(stride_source, v.word(row))])
        for row in range(lanes)
    ]
    full = build.and_(
        build.icmp_signed(">=", rows, v.word(lanes)),
        build.icmp_signed(">=", columns, v.word(lanes)),
    )
    build.cbranch(full, whole, part)

    build.position_at_end(whole)
    loaded = [v.load(build, start) for start in starts]
    build.branch(end)
    build.position_at_end(part)
    mask = v.first(build, columns)
    none = ir.Constant(mask.type, None)
    loaded_part = [
        v.load(
            build,
            start,
            build.select(build.icmp_signed("<", v.word(row), rows), mask, none),
        )
        for row, start in enumerate(starts)
    ]
    build.branch(end)

    build.position_at_end(end)
    block = []
    for one, other in zip(loaded, loaded_part):
        phi = build.phi(v.vector)
        phi.add_incoming(one, whole)
        phi.add_incoming(other, part)
        block.append(phi)
    size = 1
    while size < lanes:
        swapped = list(block)
        for row in (row for row in range(lanes) if not row & size):
            upper, lower = block[row], block[row + size]
            swapped[row] = v.shuffle(
                build,
                upper,
                lower,
                [
                    lane if not lane & size else lanes + lane - size
                    for lane in range(lanes)
                ],
            )
            swapped[row + size] = v.shuffle(
                build,
                upper,
                lower,
                [
                    lane + size if not lane & size else lanes + lane
                    for lane in range(lanes)
                ],
            )
        block, size = swapped, 2 * size
    for column, row in enumerate(block):
        v.store(build, row, build.gep(to, [build.mul(stride_to, v.word(column))]))
    build.ret_void()
    return function
