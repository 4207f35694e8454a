"""`kernels._cuda.ptx` for the compiler: LLVM's own vector loads and stores where there are
such, inline PTX elsewhere.

A vector load written in LLVM's IR is scheduled like any other load, which inline PTX is
not.

Inline PTX is of three kinds. An instruction of a whole warp (ldmatrix, mma.sync) is
wrong where some lanes are missing: LLVM may neither make it depend on one more branch
(`convergent`) nor drop it, merge it or take it out of its loop (a side effect). A copy
(cp.async and its groups) is each thread's own, and only keeps its place among accesses
to memory. A conversion is each thread's own, and a value like any other.
"""

from __future__ import annotations

import functools

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

_I16, _I32, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()
_IN_MEMORY = {
    "float32": _FLOAT,
    "float16": ir.HalfType(),
    "bfloat16": _I16,
    "int16": _I16,
    "int32": _I32,
}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int32": 4}
_INTEGERS = {"int16": types.int16, "int32": types.int32}
_GLOBAL, _SHARED = 1, 3  # address spaces
_FOUR = types.UniTuple(types.float32, 4)


@functools.cache
def load(dtype: str, lanes: int = 1):
    number = _INTEGERS.get(dtype, types.float32)

    @intrinsic
    def load_global(typing_context, address):
        def generate(context, builder, signature, args):
            pointer = _global_pointer(builder, args[0], dtype, lanes)
            loaded = builder.load(pointer, align=lanes * _BYTES[dtype])
            elements = _elements(builder, loaded, lanes, dtype)
            values = [_to_number(builder, element, dtype) for element in elements]
            return (
                values[0]
                if lanes == 1
                else context.make_tuple(builder, signature.return_type, values)
            )

        return (number if lanes == 1 else types.UniTuple(number, lanes))(
            types.int64
        ), generate

    return load_global


@functools.cache
def store(dtype: str, lanes: int = 1):
    number = _INTEGERS.get(dtype, types.float32)
    value_type = number if lanes == 1 else types.UniTuple(number, lanes)

    @intrinsic
    def store_global(typing_context, address, value):
        def generate(context, builder, signature, args):
            pointer = _global_pointer(builder, args[0], dtype, lanes)
            values = (
                [args[1]]
                if lanes == 1
                else [builder.extract_value(args[1], lane) for lane in range(lanes)]
            )
            elements = [_from_number(builder, number, dtype) for number in values]
            vector = _vector(builder, elements)
            if vector.type != pointer.type.pointee:
                vector = builder.bitcast(vector, pointer.type.pointee)
            builder.store(vector, pointer, align=lanes * _BYTES[dtype])

        return types.void(types.int64, value_type), generate

    return store_global


@functools.cache
def pack(dtype: str):
    @intrinsic
    def pack_two(typing_context, low, high):
        def generate(context, builder, signature, args):
            elements = [_from_number(builder, number, dtype) for number in args]
            return builder.bitcast(_vector(builder, elements), _I32)

        return types.int32(types.float32, types.float32), generate

    return pack_two


@functools.cache
def unpack(dtype: str):
    @intrinsic
    def unpack_two(typing_context, word):
        def generate(context, builder, signature, args):
            high = builder.lshr(args[0], _I32(16))
            halves = [builder.trunc(part, _I16) for part in (args[0], high)]
            values = [
                _to_number(builder, builder.bitcast(half, _IN_MEMORY[dtype]), dtype)
                for half in halves
            ]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(types.float32, 2)(types.int32), generate

    return unpack_two


@intrinsic
def swap(typing_context, word, mask):
    def generate(context, builder, signature, args):
        return _assembly(
            builder,
            _I32,
            "shfl.sync.bfly.b32 $0, $1, $2, 31, -1;",
            "=r,r,r",
            args,
            side_effect=True,
            whole_warp=True,
        )

    return types.int32(types.int32, types.int32), generate


@intrinsic
def load_shared(typing_context, array, index):
    def generate(context, builder, signature, args):
        vector = builder.load(
            _shared_pointer(
                context, builder, signature, args, ir.VectorType(_FLOAT, 4)
            ),
            align=16,
        )
        return context.make_tuple(
            builder, signature.return_type, _elements(builder, vector, 4, "float32")
        )

    return _FOUR(array, types.int64), generate


@intrinsic
def store_shared(typing_context, array, index, values):
    def generate(context, builder, signature, args):
        elements = [builder.extract_value(args[2], lane) for lane in range(4)]
        pointer = _shared_pointer(
            context, builder, signature, args, ir.VectorType(_FLOAT, 4)
        )
        builder.store(_vector(builder, elements), pointer, align=16)

    return types.void(array, types.int64, _FOUR), generate


@intrinsic
def cp_async(typing_context, array, index, address, bytes_copied):
    def generate(context, builder, signature, args):
        target = _shared_address(context, builder, signature, args)
        _assembly(
            builder,
            ir.VoidType(),
            "cp.async.cg.shared.global [$0], [$1], 16, $2;",
            "r,l,r,~{memory}",
            [target, args[2], args[3]],
            side_effect=True,
        )

    return types.void(array, types.int64, types.int64, types.int32), generate


@intrinsic
def cp_async_commit(typing_context):
    def generate(context, builder, signature, args):
        _assembly(
            builder,
            ir.VoidType(),
            "cp.async.commit_group;",
            "~{memory}",
            [],
            side_effect=True,
        )

    return types.void(), generate


@functools.cache
def cp_async_wait(pending: int):
    @intrinsic
    def wait(typing_context):
        def generate(context, builder, signature, args):
            _assembly(
                builder,
                ir.VoidType(),
                f"cp.async.wait_group {pending};",
                "~{memory}",
                [],
                side_effect=True,
            )

        return types.void(), generate

    return wait


@functools.cache
def ldmatrix(transposed: bool):
    instruction = (
        f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if transposed else ''}.shared.b16"
    )

    @intrinsic
    def load_matrices(typing_context, array, index):
        def generate(context, builder, signature, args):
            source = _shared_address(context, builder, signature, args)
            matrices = _assembly(
                builder,
                ir.LiteralStructType([_I32] * 4),
                instruction + " {$0, $1, $2, $3}, [$4];",
                "=r,=r,=r,=r,r,~{memory}",
                [source],
                side_effect=True,
                whole_warp=True,
            )
            return _as_tuple(context, builder, signature, matrices)

        return types.UniTuple(types.int32, 4)(array, types.int64), generate

    return load_matrices


@functools.cache
def mma(dtype: str):
    element = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    text = (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{element}.{element}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )

    @intrinsic
    def multiply_add(typing_context, a0, a1, a2, a3, b0, b1, c):
        def generate(context, builder, signature, args):
            operands = [
                *args[:6],
                *(builder.extract_value(args[6], lane) for lane in range(4)),
            ]
            sums = _assembly(
                builder,
                ir.LiteralStructType([_FLOAT] * 4),
                text,
                "=f,=f,=f,=f,r,r,r,r,r,r,0,1,2,3",
                operands,
                side_effect=True,
                whole_warp=True,
            )
            return _as_tuple(context, builder, signature, sums)

        return _FOUR(*[types.int32] * 6, _FOUR), generate

    return multiply_add


def _global_pointer(builder, address, dtype, lanes):
    """A vector of 16-bit elements is read and written as 32-bit words: NVVM takes a
    vector of halves apart.
    """
    element, count = (
        (_I32, lanes // 2)
        if lanes > 1 and _BYTES[dtype] == 2
        else (_IN_MEMORY[dtype], lanes)
    )
    return builder.inttoptr(
        address,
        ir.PointerType(
            ir.VectorType(element, count) if lanes > 1 else element, _GLOBAL
        ),
    )


def _shared_pointer(context, builder, signature, args, pointee):
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.addrspacecast(
        builder.bitcast(builder.gep(data, [args[1]]), ir.PointerType(pointee)),
        ir.PointerType(pointee, _SHARED),
    )


def _shared_address(context, builder, signature, args):
    """The 32-bit address that instructions on shared memory take."""
    return builder.ptrtoint(
        _shared_pointer(context, builder, signature, args, _I16), _I32
    )


def _elements(builder, loaded, lanes, dtype):
    if lanes == 1:
        return [loaded]
    if _BYTES[dtype] == 4:
        return [builder.extract_element(loaded, _I32(lane)) for lane in range(lanes)]
    words = [builder.extract_element(loaded, _I32(word)) for word in range(lanes // 2)]
    halves = [
        builder.trunc(part, _I16)
        for word in words
        for part in (word, builder.lshr(word, _I32(16)))
    ]
    return [builder.bitcast(half, _IN_MEMORY[dtype]) for half in halves]


def _vector(builder, elements):
    if len(elements) == 1:
        return elements[0]
    vector = ir.Constant(ir.VectorType(elements[0].type, len(elements)), ir.Undefined)
    for lane, element in enumerate(elements):
        vector = builder.insert_element(vector, element, _I32(lane))
    return vector


def _to_number(builder, element, dtype):
    if dtype == "float16":
        return builder.fpext(element, _FLOAT)
    if dtype == "bfloat16":  # the upper half of a float32
        return builder.bitcast(
            builder.shl(builder.zext(element, _I32), _I32(16)), _FLOAT
        )
    return element


def _from_number(builder, number, dtype):
    if dtype == "float16":
        return builder.fptrunc(number, ir.HalfType())
    if dtype == "bfloat16":
        return _assembly(builder, _I16, "cvt.rn.bf16.f32 $0, $1;", "=h,f", [number])
    return number


def _assembly(
    builder, result, text, constraints, args, side_effect=False, whole_warp=False
):
    function = ir.FunctionType(result, [arg.type for arg in args])
    attributes = ("convergent",) if whole_warp else ()
    return builder.call(
        ir.InlineAsm(function, text, constraints, side_effect), args, attrs=attributes
    )


def _as_tuple(context, builder, signature, struct):
    values = [builder.extract_value(struct, lane) for lane in range(4)]
    return context.make_tuple(builder, signature.return_type, values)
