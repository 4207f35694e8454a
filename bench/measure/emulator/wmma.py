"""wmma.load, wmma.mma and wmma.store (PTX ISA, "Warp-level matrix instructions: wmma").

PTX leaves open which elements a lane holds. Here element e of a fragment, counted along
its rows, is in lane e % 32, in place e // 32; what has more places than elements holds
each several times, as f16 does on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import int64, uint32, uint64

from batchline.bench.measure.emulator import clusters, order, ptx
from batchline.bench.measure.emulator.asynchronous import gather_rows, scatter_rows
from batchline.bench.measure.emulator.layout import (
    HEADER,
    LANES,
    PARAMETERS,
    Finding,
    Kind,
    Space,
)
from batchline.bench.measure.emulator.matrix import (
    accumulate,
    decode_accumulators,
    decode_words,
    encode_accumulators,
    encode_kind,
)
from batchline.bench.measure.emulator.memory_access import (
    count_passes,
    count_sectors,
    get,
    locate,
    put,
    space_of,
)
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import (
    read_global,
    read_shared,
    report,
    write_global,
    write_shared,
)
from batchline.bench.measure.emulator.ptx import Immediate, Instruction, UnknownOpcode
from batchline.bench.measure.emulator.raw import longs_at, lowest_one, read32, words_at
from batchline.bench.measure.emulator.rows import Operands, Row, named_space

DIVERGENT_BARRIER = int(Finding.DIVERGENT_BARRIER)
MISALIGNED = int(Finding.MISALIGNED)
SHARED, GLOBAL = int(Space.SHARED), int(Space.GLOBAL)
_FIRST_ALIGN, _STRIDE_ALIGN = 32, 16  # bytes, as CUDA's load_matrix_sync has it
_SHAPES = {
    "m16n16k16": (16, 16, 16),
    "m32n8k16": (32, 8, 16),
    "m8n32k16": (8, 32, 16),
    "m16n16k8": (16, 16, 8),
}
# Parameters of a load and a store: space, registers, bytes of an element, rows and
# columns of the matrix in memory, whether these are the fragment's columns and rows,
# offset and bytes of the address.
_SPACE, _COUNT, _BYTES, _LINES, _LENGTH, _SWAPPED, _OFFSET, _WIDTH = range(
    PARAMETERS, PARAMETERS + 8
)
# Parameters of a product: its kind, C's, M, N and K in bytes of one word, registers.
_KIND, _C_KIND, _SHAPE, _D, _A, _B, _C = range(PARAMETERS, PARAMETERS + 7)


def decode(operands: Operands, instruction: Instruction) -> Iterator[Row]:
    """The row of a wmma instruction.

    Raises:
        UnknownOpcode: for types of integers, of f64 and of single bits.
    """
    tokens = instruction.opcode.split(".")
    decoders = {"load": _decode_access, "store": _decode_access, "mma": _decode_product}
    if tokens[1] not in decoders:
        raise UnknownOpcode(instruction.opcode)
    try:
        yield decoders[tokens[1]](operands, instruction, tokens)
    except (KeyError, ValueError) as error:
        if isinstance(error, UnknownOpcode):
            raise
        raise UnknownOpcode(instruction.opcode) from None


def _decode_access(operands, instruction: Instruction, tokens: list[str]) -> Row:
    """wmma.load.side.sync.aligned.layout.shape{.space}.type, and wmma.store.d likewise"""
    side, layout, (m, n, k) = tokens[2], tokens[5], _SHAPES[tokens[6]]
    element_bytes = {"f16": 2, "bf16": 2, "tf32": 4, "f32": 4}[tokens[-1]]
    if (tokens[-1] == "tf32") != (k == 8 and side in "ab"):
        raise UnknownOpcode(instruction.opcode)
    rows, columns = {"a": (m, k), "b": (k, n), "c": (m, n), "d": (m, n)}[side]
    is_swapped = layout == "col"
    lines, length = (columns, rows) if is_swapped else (rows, columns)
    is_load = tokens[1] == "load"
    given = list(instruction.operands)
    vector = given.pop(0 if is_load else 1)
    base, offset, width = operands.address(given[0])
    dense = Immediate(str(length), "integer", length)
    stride = operands.offset(given[1] if len(given) > 1 else dense, "b32")
    registers = [operands.offset(one, "b32") for one in ptx.flatten((vector,))]
    if len(registers) * 4 // element_bytes * LANES % (lines * length):
        raise UnknownOpcode(f"{instruction.opcode} with {len(registers)} registers")
    return Row(
        Kind.WMMA_LOAD if is_load else Kind.WMMA_STORE,
        (*registers, base, stride),
        (
            named_space(tokens),
            len(registers),
            element_bytes,
            lines,
            length,
            int(is_swapped),
            offset,
            width,
        ),
        written=len(registers) if is_load else 0,
    )


def _decode_product(operands, instruction: Instruction, tokens: list[str]) -> Row:
    """wmma.mma.sync.aligned.layout.layout.shape.d{.a.b}.c{.satfinite}"""
    m, n, k = _SHAPES[tokens[6]]
    types = tokens[7:]
    d, *inputs, c = types
    a, b = inputs or ("f16", "f16")
    if "satfinite" in types or (a == "tf32") != (k == 8) or a != b:
        raise UnknownOpcode(instruction.opcode)
    counts = [len(ptx.flatten((one,))) for one in instruction.operands]
    kinds = encode_kind(d, a, b), encode_kind(c, a, b)
    return Row(
        Kind.WMMA,
        tuple(operands.offset(one, "b32") for one in ptx.flatten(instruction.operands)),
        (*kinds, m | n << 8 | k << 16, *counts),
        written=counts[0],
    )


# --- what the machine does ----------------------------------------------------------


@compile_native
def _begin(m, pc, warp, mask):
    if mask != uint32(0xFFFFFFFF):
        report(m, DIVERGENT_BARRIER, pc, warp, lowest_one(~mask), 0, -1)
    order.meet_lanes(m, warp, mask)


@compile_native
def _find_elements(m, pc, warp, registers, row, place):
    """The addresses of the elements in one place of all lanes, to m.scratch; the space
    that they lie in.
    """
    words = words_at(row, HEADER)
    count, size = int64(words[_COUNT]), int64(words[_BYTES])
    lines, length = int64(words[_LINES]), int64(words[_LENGTH])
    operands = words_at(row, HEADER + count + 2)
    base = registers + int64(operands[HEADER + count])
    strides = registers + int64(operands[HEADER + count + 1])
    width = int64(words[_WIDTH])
    addresses = longs_at(m.scratch, LANES)
    columns = lines if words[_SWAPPED] else length
    for lane in range(LANES):
        first = int64(get(base + lane * width, width)) if width else int64(0)
        first += int64(words[_OFFSET])
        stride = int64(read32(strides + lane * 4)) * size
        if place == 0 and lane == 0:
            if first % _FIRST_ALIGN or stride % _STRIDE_ALIGN:
                report(m, MISALIGNED, pc, warp, lane, first, -1)
        element = (lane + LANES * place) % (lines * length)
        line, column = element // columns, element % columns
        if words[_SWAPPED]:
            line, column = column, line
        addresses[lane] = first + line * stride + column * size
    return space_of(m, warp, int64(words[_SPACE]), uint32(0xFFFFFFFF))


@compile_native
def _places(words):
    return int64(words[_COUNT]) * 4 // int64(words[_BYTES])


@Handler
def load_fragment(machine, pc, warp, registers, row, mask):
    """wmma.load: operands the registers, the address and the stride in elements."""
    m = machine_at(machine)
    words = words_at(row, HEADER)
    size = int64(words[_BYTES])
    _begin(m, pc, warp, mask)
    operands = words_at(row, HEADER + int64(words[_COUNT]))
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    addresses = longs_at(m.scratch, LANES)
    for place in range(_places(words)):
        space = _find_elements(m, pc, warp, registers, row, place)
        if space == SHARED:
            clusters.reach(m, pc, warp, -1, warp, clock, addresses[0])
        _count(m, pc, space, size, True)
        at = registers + int64(operands[HEADER + place * size // 4]) + place * size % 4
        for lane in range(LANES):
            address = addresses[lane]
            source, allocation = locate(m, pc, warp, lane, space, address, size, False)
            if source and allocation:
                read_global(m, pc, warp, -1, allocation, address, size)
            elif source and space == SHARED:
                read_shared(m, pc, warp, -1, warp, clock, address, size)
            value = get(source, size) if source else uint64(0xFFFFFFFF)
            put(at + lane * 4, size, value)
        clusters.turn_home(m, warp)
    return DONE


@Handler
def store_fragment(machine, pc, warp, registers, row, mask):
    """wmma.store: operands as those of a load."""
    m = machine_at(machine)
    words = words_at(row, HEADER)
    size = int64(words[_BYTES])
    _begin(m, pc, warp, mask)
    operands = words_at(row, HEADER + int64(words[_COUNT]))
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    addresses = longs_at(m.scratch, LANES)
    for place in range(_places(words)):
        space = _find_elements(m, pc, warp, registers, row, place)
        if space == SHARED:
            clusters.reach(m, pc, warp, -1, warp, clock, addresses[0])
        _count(m, pc, space, size, False)
        at = registers + int64(operands[HEADER + place * size // 4]) + place * size % 4
        for lane in range(LANES):
            address, data = addresses[lane], at + lane * 4
            target, allocation = locate(m, pc, warp, lane, space, address, size, False)
            if target and allocation:
                write_global(m, pc, warp, lane, allocation, address, size)
            elif target and space == SHARED:
                write_shared(m, pc, warp, lane, warp, clock, address, size, data)
            if target:
                put(target, size, get(data, size))
        clusters.turn_home(m, warp)
    return DONE


@compile_native
def _count(m, pc, space, size, is_read):
    if m.is_counting:
        if space == GLOBAL:
            count_sectors(m, pc, uint32(0xFFFFFFFF), size, is_read)
        elif space == SHARED:
            count_passes(m, pc, uint32(0xFFFFFFFF), size)


@Handler
def multiply(machine, pc, warp, registers, row, mask):
    """wmma.mma: operands d…, a…, b…, c…, whose counts are parameters."""
    m = machine_at(machine)
    head = words_at(row, HEADER)
    d, a, b, c = int64(head[_D]), int64(head[_A]), int64(head[_B]), int64(head[_C])
    words = words_at(row, HEADER + d + a + b + c)
    _begin(m, pc, warp, mask)
    shape = int64(head[_SHAPE])
    rows, columns, depth = shape & 0xFF, shape >> 8 & 0xFF, shape >> 16
    element = int64(head[_KIND]) & 0xF
    left = _matrix_of(
        _input_values(element, gather_rows(registers, words, HEADER + d, a)),
        rows,
        depth,
    )
    right = _matrix_of(
        _input_values(element, gather_rows(registers, words, HEADER + d + a, b)),
        depth,
        columns,
    )
    added = gather_rows(registers, words, HEADER + d + a + b, c)
    sums = _matrix_of(
        decode_accumulators(int64(head[_C_KIND]) >> 8 & 0xF, added), rows, columns
    )
    accumulate(left, right, sums)
    result = np.empty((d, LANES), np.uint32)
    values = sums.reshape((rows * columns // LANES, LANES))
    encode_accumulators(int64(head[_KIND]), values, result)
    scatter_rows(registers, words, HEADER, result)
    return DONE


@compile_native
def _input_values(element, rows):
    """The numbers in uint32[registers, 32]: float64[places, 32]."""
    values = decode_words(element, rows[0], 1.0)
    each = len(values) // LANES
    places = np.empty((rows.shape[0] * each, LANES), np.float64)
    for number in range(rows.shape[0]):
        values = decode_words(element, rows[number], 1.0)
        for lane in range(LANES):
            for half in range(each):
                places[number * each + half, lane] = values[lane * each + half]
    return places


@compile_native
def _matrix_of(places, rows, columns):
    """float64[rows, columns] from float64[places, 32], which may hold it several times."""
    matrix = np.empty((rows, columns), np.float64)
    for element in range(rows * columns):
        place, lane = element // LANES, element % LANES
        matrix[element // columns, element % columns] = places[place, lane]
    return matrix
