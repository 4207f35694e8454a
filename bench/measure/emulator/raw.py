"""Memory by its address, and functions by theirs, for code that Numba compiles.

Nothing is checked here: an address that is wrong ends the process.
"""

from __future__ import annotations

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_INTEGERS = {
    8: (types.uint8, ir.IntType(8)),
    16: (types.uint16, ir.IntType(16)),
    32: (types.uint32, ir.IntType(32)),
    64: (types.uint64, ir.IntType(64)),
}


def _reader(bits: int):
    result, word = _INTEGERS[bits]

    @intrinsic
    def read(typingctx, address):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], word.as_pointer())
            return builder.load(pointer, align=1)

        return result(types.int64), generate

    return read


def _writer(bits: int):
    value, word = _INTEGERS[bits]

    @intrinsic
    def write(typingctx, address, number):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], word.as_pointer())
            builder.store(arguments[1], pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, value), generate

    return write


read8, read16, read32, read64 = map(_reader, _INTEGERS)
write8, write16, write32, write64 = map(_writer, _INTEGERS)


@intrinsic
def call(typingctx, function, registers, operands, mask):
    """Call void f(uint8_t *registers, const int32_t *operands, uint32_t mask) by
    address.
    """

    def generate(context, builder, signature, arguments):
        address, registers, operands, mask = arguments
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, word, ir.IntType(32)])
        target = builder.inttoptr(address, kind.as_pointer())
        builder.call(
            target,
            [
                builder.inttoptr(registers, byte),
                builder.inttoptr(operands, word),
                mask,
            ],
        )
        return context.get_dummy_value()

    return (
        types.void(types.int64, types.int64, types.int64, types.uint32),
        generate,
    )


@intrinsic
def call_handler(typingctx, function, machine, pc, warp, registers, row, mask):
    """Call int64 f(machine, pc, warp, registers, row, mask), of int64 but for the
    uint32 mask, by address.
    """

    def generate(context, builder, signature, arguments):
        long = ir.IntType(64)
        kind = ir.FunctionType(long, [long] * 5 + [ir.IntType(32)])
        target = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.call(target, arguments[1:])

    return types.int64(*[types.int64] * 6, types.uint32), generate


@intrinsic
def address_of(typingctx, record):
    """The address of a record."""

    def generate(context, builder, signature, arguments):
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return types.int64(record), generate


@intrinsic
def _pointer(typingctx, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def count_ones(typingctx, mask):
    """The number of bits that are set in a uint32, as an int64."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.ctpop(arguments[0]), ir.IntType(64))

    return types.int64(types.uint32), generate


@intrinsic
def lowest_one(typingctx, mask):
    """The place of the lowest bit that is set in a uint32; 32 if none is."""

    def generate(context, builder, signature, arguments):
        zero_is_defined = ir.Constant(ir.IntType(1), 0)
        return builder.zext(builder.cttz(arguments[0], zero_is_defined), ir.IntType(64))

    return types.int64(types.uint32), generate


@intrinsic
def fill(typingctx, address, value, count):
    """Set `count` bytes at an address to a value (memset)."""

    def generate(context, builder, signature, arguments):
        address, value, count = arguments
        pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
        cgutils.memset(builder, pointer, count, value)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint8, types.int64), generate


@intrinsic
def copy(typingctx, target, source, count):
    """Copy `count` bytes between addresses that don't overlap (memcpy)."""

    def generate(context, builder, signature, arguments):
        target, source, count = arguments
        byte = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(
            builder,
            builder.inttoptr(target, byte),
            builder.inttoptr(source, byte),
            count,
            1,
            align=1,
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@numba.njit
def bytes_at(address, count):
    """uint8[count] at an address."""
    return numba.carray(_pointer(address), (count,), numba.uint8)


@numba.njit
def words_at(address, count):
    """int32[count] at an address."""
    return numba.carray(_pointer(address), (count,), numba.int32)


@numba.njit
def longs_at(address, count):
    """int64[count] at an address."""
    return numba.carray(_pointer(address), (count,), numba.int64)


def record_reader(dtype):
    """A function of an address, that gives the record of this NumPy dtype there."""
    record = numba.from_dtype(dtype)

    @intrinsic
    def record_at(typingctx, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(record))

        return record(types.int64), generate

    return record_at
