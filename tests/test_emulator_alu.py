"""Each arithmetic instruction of PTX against what Python's integers, exact fractions and
fp64 make of it, in every lane, whole warps and part of one.
"""

import ctypes
import inspect
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest

from batchline.bench.measure.emulator import alu
from batchline.bench.measure.emulator.ptx import UnknownOpcode

LANES = 32
ROUNDS = 4
# Bytes of a row in the tests' registers: of a vector of b64.
ROW = 256

# exponent bits, mantissa bits
FLOATS = {
    "f16": (5, 10),
    "bf16": (8, 7),
    "tf32": (8, 10),
    "f32": (8, 23),
    "f64": (11, 52),
    "e4m3": (4, 3),
    "e5m2": (5, 2),
}
NAN = {
    "f16": 0x7FFF,
    "bf16": 0x7FFF,
    "tf32": 0x7FFFFFFF,
    "f32": 0x7FFFFFFF,
    "e4m3": 0x7F,
    "e5m2": 0x7F,
}


@dataclass(frozen=True)
class Case:
    """`reference` takes one lane's operands, integers signed as their kind is and
    floats as bits, and gives the result or a tuple of results. `close`: results are f32
    that may be off by a hair more than half a unit in the last place.
    """

    opcode: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    reference: Callable
    widths: tuple | None = None
    negated: frozenset = frozenset()
    close: bool = False

    @property
    def form(self):
        kinds = self.outputs + self.inputs
        widths = self.widths or tuple(width_of(kind) for kind in kinds)
        return alu.form(self.opcode, widths, self.negated)


def width_of(kind):
    if kind == "pred":
        return 1
    if kind == "amount":
        return 32
    element, pair, _ = kind.partition("x2")
    bits = 32 if kind == "tf32" else 8 if element in ("e4m3", "e5m2") else 0
    bits = bits or int(element.lstrip("busf"))
    return bits * (2 if pair else 1)


# Floats, exactly.


def decode(bits, kind):
    """The number that these bits are, as an f64."""
    exponent_bits, mantissa_bits = FLOATS[kind]
    if kind == "tf32":
        mantissa_bits = 23
    sign = -1.0 if bits >> (exponent_bits + mantissa_bits) & 1 else 1.0
    exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = bits & ((1 << mantissa_bits) - 1)
    if kind == "e4m3":
        if (exponent, mantissa) == (15, 7):
            return math.nan
    elif exponent == (1 << exponent_bits) - 1:
        return math.nan if mantissa else sign * math.inf
    bias = (1 << (exponent_bits - 1)) - 1
    scale = max(exponent, 1) - bias - mantissa_bits
    return sign * math.ldexp(mantissa + (bool(exponent) << mantissa_bits), scale)


def encode(value, kind, mode="rn", negative_zero=False, finite=False):
    """Bits of a Fraction or a float, rounded once; modes of PTX and "rna"."""
    exponent_bits, mantissa_bits = FLOATS[kind]
    sign_bit = 1 << (exponent_bits + mantissa_bits)
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    largest = 0x7E if kind == "e4m3" else infinity - 1
    if isinstance(value, float):
        if math.isnan(value):
            return 0x7FF << 52 | 1 << 51 if kind == "f64" else NAN[kind]
        if math.isinf(value):
            bits = (largest if finite else infinity) | (sign_bit if value < 0 else 0)
            return bits << 13 if kind == "tf32" else bits
        negative_zero = math.copysign(1, value) < 0
        value = Fraction(value)
    negative = negative_zero if value == 0 else value < 0
    number = abs(value)
    bits = 0
    if number:
        lowest = 2 - (1 << (exponent_bits - 1))
        exponent = max(floor_log2(number), lowest)
        scaled = number / Fraction(2) ** (exponent - mantissa_bits)
        whole = int(scaled)
        rest = scaled - whole
        up = {
            "rn": rest > Fraction(1, 2) or rest == Fraction(1, 2) and whole % 2 == 1,
            "rna": rest >= Fraction(1, 2),
            "rz": False,
            "rm": rest > 0 and negative,
            "rp": rest > 0 and not negative,
        }[mode]
        bits = ((exponent - lowest) << mantissa_bits) + whole + up
        if bits > largest:
            towards_zero = mode == "rz" or mode == ("rp" if negative else "rm")
            bits = largest if finite or towards_zero else infinity
    bits |= sign_bit if negative else 0
    return bits << 13 if kind == "tf32" else bits


def floor_log2(number):
    guess = number.numerator.bit_length() - number.denominator.bit_length()
    return guess if Fraction(2) ** guess <= number else guess - 1


def flushed(bits, kind):
    exponent_bits, mantissa_bits = FLOATS[kind]
    exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    return bits if exponent else bits & (1 << (exponent_bits + mantissa_bits))


def root(number):
    """Square root of a Fraction to 100 bits and more, a last bit set if it goes on."""
    scale = 1 << 2400
    whole = math.isqrt(number.numerator * scale // number.denominator)
    exact = Fraction(whole * whole, scale) == number
    return Fraction(2 * whole + (not exact), 2 << 1200)


EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: a * b + c,
    "mad": lambda a, b, c: a * b + c,
    "div": lambda a, b: a / b,
    "rcp": lambda a: 1 / a,
    "sqrt": root,
}


def in_f64(base, *values):
    """The operation by numpy in fp64: right for infinities, NaN, zeros and their signs."""
    values = [np.float64(value) for value in values]
    with np.errstate(all="ignore"):
        if base == "rcp":
            return float(1 / values[0])
        if base == "sqrt":
            return float(np.sqrt(values[0]))
        return float(EXACT[base](*values))


def float_operation(base, kind, mode="rn", ftz=False, sat=False, relu=False):
    """Reference of one operation, from the exact result."""

    def compute(*bits):
        if ftz:
            bits = [flushed(x, kind) for x in bits]
        values = [decode(x, kind) for x in bits]
        special = in_f64(base, *values)
        exact = None
        if all(map(math.isfinite, values)) and not (
            math.isnan(special) or base in ("div", "rcp") and values[-1] == 0
        ):
            exact = EXACT[base](*map(Fraction, values))
            negative_zero = math.copysign(1, special) < 0
            if mode == "rm" and base in ("add", "sub", "fma") and exact == 0:
                terms = [values[0], -values[1] if base == "sub" else values[1]]
                if base == "fma":
                    terms = [values[0] * values[1], values[2]]
                negative_zero = any(math.copysign(1, x) < 0 for x in terms)
            result = encode(exact, kind, mode, negative_zero)
        else:
            result = encode(special, kind)
        if ftz:
            result = flushed(result, kind)
        if sat:
            value = decode(result, kind)
            result = encode(min(max(value, 0.0), 1.0) if value > 0 else 0.0, kind)
        if relu and decode(result, kind) <= 0:
            result = 0
        return result

    return compute


def pairwise(reference, bits=16):
    """The reference of two halves in one register."""

    def compute(*operands):
        low = reference(*(x & ((1 << bits) - 1) for x in operands))
        high = reference(*(x >> bits for x in operands))
        return high << bits | low

    return compute


def minimum(base, kind, keeps_nan=False, xorsign=False):
    def compute(a, b):
        sign = (a ^ b) >> (width_of(kind) - 1)
        if xorsign:
            a, b = (x & ((1 << (width_of(kind) - 1)) - 1) for x in (a, b))
        x, y = decode(a, kind), decode(b, kind)
        if (
            math.isnan(x)
            and math.isnan(y)
            or keeps_nan
            and (math.isnan(x) or math.isnan(y))
        ):
            return encode(math.nan, kind)
        if math.isnan(x) or math.isnan(y):
            result = b if math.isnan(x) else a
        else:
            keys = [(x, math.copysign(1, x), a), (y, math.copysign(1, y), b)]
            result = (min(keys) if base == "min" else max(keys))[2]
        if xorsign:
            result |= sign << (width_of(kind) - 1)
        return result

    return compute


# Integers.


def integer(opcode, reference, inputs=None, output=None, **more):
    """A case whose operands are of the last word's kind unless said otherwise."""
    kind = opcode.split(".")[-1]
    inputs = inputs or (kind,) * count_operands(reference)
    return Case(opcode, (output or kind,), inputs, reference, **more)


def count_operands(reference):
    parameters = inspect.signature(reference).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in parameters)


def cut(value, kind):
    """The value as an integer of this kind."""
    value &= (1 << width_of(kind)) - 1
    return signed(value, width_of(kind)) if kind[0] == "s" else value


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def clamp(value, kind):
    bits = width_of(kind)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    if kind[0] == "u":
        low, high = 0, (1 << bits) - 1
    return min(max(value, low), high)


def quotient(a, b):
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a, b):
    return a if b == 0 else a - quotient(a, b) * b


def extract(kind):
    """bfe, bit by bit as the ISA's pseudocode does."""
    msb = width_of(kind) - 1

    def compute(a, position, length):
        position, length = position & 0xFF, length & 0xFF
        sign = 0
        if kind[0] == "s" and length:
            sign = a >> min(position + length - 1, msb) & 1
        result = 0
        for i in range(msb + 1):
            inside = i < length and position + i <= msb
            result |= (a >> (position + i) & 1 if inside else sign) << i
        return result

    return compute


def insert(kind):
    msb = width_of(kind) - 1

    def compute(a, b, position, length):
        position, length = position & 0xFF, length & 0xFF
        for i in range(length):
            if position + i <= msb:
                b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
        return b

    return compute


def find(kind, shift_amount=False):
    msb = width_of(kind) - 1

    def compute(a):
        if a < 0:
            a = ~a
        place = a.bit_length() - 1
        return msb - place if shift_amount and place >= 0 else place

    return compute


def mask_of(mode):
    def compute(first, count):
        if mode == "wrap":
            first, count = first & 31, count & 31
        return sum(1 << i for i in range(32) if first <= i < first + count)

    return compute


def permute(mode=None):
    tables = {
        "f4e": ((3, 2, 1, 0), (4, 3, 2, 1), (5, 4, 3, 2), (6, 5, 4, 3)),
        "b4e": ((5, 6, 7, 0), (6, 7, 0, 1), (7, 0, 1, 2), (0, 1, 2, 3)),
        "rc8": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)),
        "ecl": ((3, 2, 1, 0), (3, 2, 1, 1), (3, 2, 2, 2), (3, 3, 3, 3)),
        "ecr": ((0, 0, 0, 0), (1, 1, 1, 0), (2, 2, 1, 0), (3, 2, 1, 0)),
        "rc16": ((1, 0, 1, 0), (3, 2, 3, 2), (1, 0, 1, 0), (3, 2, 3, 2)),
    }

    def compute(a, b, c):
        source = (b << 32 | a).to_bytes(8, "little")
        if mode:
            chosen = tables[mode][c & 3][::-1]
        else:
            chosen = [c >> 4 * i & 0xF for i in range(4)]
        bytes_ = [source[i & 7] for i in chosen]
        if not mode:
            signs = [0xFF if byte & 0x80 else 0 for byte in bytes_]
            bytes_ = [s if i & 8 else x for i, x, s in zip(chosen, bytes_, signs)]
        return int.from_bytes(bytes(bytes_), "little")

    return compute


def funnel(left, wrap):
    def compute(a, b, c):
        n = c & 31 if wrap else min(c, 32)
        both = b << 32 | a
        return both << n >> 32 if left else both >> n

    return compute


def dot(a_kind, b_kind, count, upper=False):
    def compute(a, b, c):
        bits = 8 if count == 4 else 16
        b >>= 16 if upper else 0
        for i in range(count):
            x = a >> bits * i & ((1 << bits) - 1)
            y = b >> 8 * i & 0xFF
            x = signed(x, bits) if a_kind[0] == "s" else x
            y = signed(y, 8) if b_kind[0] == "s" else y
            c += x * y
        return c

    return compute


def multiply_24(kind, high):
    def compute(a, b):
        a, b = (signed(x, 24) if kind == "s32" else x & 0xFFFFFF for x in (a, b))
        return a * b >> (16 if high else 0)

    return compute


def integer_cases():
    for bits in (16, 32, 64):
        for sign in "us":
            kind = f"{sign}{bits}"
            yield integer(f"add.{kind}", lambda a, b: a + b)
            yield integer(f"sub.{kind}", lambda a, b: a - b)
            yield integer(f"mul.lo.{kind}", lambda a, b: a * b)
            yield integer(
                f"mul.hi.{kind}", lambda a, b, n=bits: a * b >> n, (kind,) * 2
            )
            yield integer(f"mad.lo.{kind}", lambda a, b, c: a * b + c)
            yield integer(
                f"mad.hi.{kind}", lambda a, b, c, n=bits: (a * b >> n) + c, (kind,) * 3
            )
            yield integer(f"div.{kind}", quotient)
            yield integer(f"rem.{kind}", remainder)
            yield integer(f"min.{kind}", lambda a, b: min(a, b))
            yield integer(f"max.{kind}", lambda a, b: max(a, b))
            yield integer(f"sad.{kind}", lambda a, b, c: c + abs(a - b))
            yield integer(f"shr.{kind}", lambda a, n: a >> min(n, 64), (kind, "amount"))
            if bits < 64:
                wide = f"{sign}{bits * 2}"
                yield integer(f"mul.wide.{kind}", lambda a, b: a * b, output=wide)
                yield integer(
                    f"mad.wide.{kind}",
                    lambda a, b, c: a * b + c,
                    (kind, kind, wide),
                    wide,
                )
            if bits > 16:
                yield integer(f"bfe.{kind}", extract(kind), (kind, "amount", "amount"))
                yield integer(f"bfind.{kind}", find(kind), output="u32")
                yield integer(f"bfind.shiftamt.{kind}", find(kind, True), output="u32")
        kind = f"b{bits}"
        if bits == 32:
            for mode in ("clamp", "wrap"):
                yield integer(f"bmsk.{mode}.b32", mask_of(mode), (kind, "amount"))
        yield integer(f"abs.s{bits}", lambda a: abs(a))
        yield integer(f"neg.s{bits}", lambda a: -a)
        yield integer(f"and.{kind}", lambda a, b: a & b)
        yield integer(f"or.{kind}", lambda a, b: a | b)
        yield integer(f"xor.{kind}", lambda a, b: a ^ b)
        yield integer(f"not.{kind}", lambda a: ~a)
        yield integer(f"cnot.{kind}", lambda a: a == 0)
        yield integer(f"shl.{kind}", lambda a, n: a << min(n, 64), (kind, "amount"))
        yield integer(f"mov.{kind}", lambda a: a)
        if bits > 16:
            yield integer(f"popc.{kind}", lambda a: a.bit_count(), output="u32")
            yield integer(
                f"clz.{kind}", lambda a, n=bits: n - a.bit_length(), (kind,), "u32"
            )
            yield integer(
                f"brev.{kind}", lambda a, n=bits: int(f"{a:0{n}b}"[::-1], 2), (kind,)
            )
            yield integer(f"bfi.{kind}", insert(kind), (kind, kind, "amount", "amount"))
    yield from odd_integer_cases()


def odd_integer_cases():
    yield integer("add.sat.s32", lambda a, b: clamp(a + b, "s32"))
    yield integer("sub.sat.s32", lambda a, b: clamp(a - b, "s32"))
    yield integer("mad.hi.sat.s32", lambda a, b, c: clamp((a * b >> 32) + c, "s32"))
    for kind in ("u32", "s32"):
        for part in ("lo", "hi"):
            reference = multiply_24(kind, part == "hi")
            yield integer(f"mul24.{part}.{kind}", reference)
            yield integer(
                f"mad24.{part}.{kind}",
                lambda a, b, c, f=reference: f(a, b) + c,
                (kind,) * 3,
            )
    yield integer(
        "mad24.hi.sat.s32",
        lambda a, b, c: clamp(cut(multiply_24("s32", True)(a, b), "s32") + c, "s32"),
    )
    for sign in "us":
        kind, half = f"{sign}16x2", f"{sign}16"
        for name, operation in (
            ("add", lambda a, b: a + b),
            ("sub", lambda a, b: a - b),
            ("min", min),
            ("max", max),
        ):
            reference = pairwise(
                lambda a, b, f=operation, half=half: f(cut(a, half), cut(b, half))
                & 0xFFFF
            )
            yield Case(f"{name}.{kind}", ("b32",), ("b32", "b32"), reference)
    yield integer("max.relu.s32", lambda a, b: max(a, b, 0))
    yield integer("lop3.b32", lop3, ("b32",) * 4)
    yield integer("prmt.b32", permute())
    for mode in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"):
        yield Case(f"prmt.b32.{mode}", ("b32",), ("b32",) * 3, permute(mode))
    for side in "lr":
        for mode in ("clamp", "wrap"):
            yield integer(
                f"shf.{side}.{mode}.b32",
                funnel(side == "l", mode == "wrap"),
                ("b32", "b32", "amount"),
            )
    for a in ("u32", "s32"):
        for b in ("u32", "s32"):
            result = "u32" if (a, b) == ("u32", "u32") else "s32"
            for name, count, upper in (
                ("dp4a", 4, False),
                ("dp2a.lo", 2, False),
                ("dp2a.hi", 2, True),
            ):
                yield Case(
                    f"{name}.{a}.{b}",
                    (result,),
                    ("b32", "b32", result),
                    dot(a, b, count, upper),
                )


def lop3(a, b, c, table):
    result = 0
    for i in range(32):
        row = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1
        result |= (table >> row & 1) << i
    return result


def predicate_cases():
    for name, operation in (
        ("and", lambda a, b: a & b),
        ("or", lambda a, b: a | b),
        ("xor", lambda a, b: a ^ b),
    ):
        yield integer(f"{name}.pred", operation, ("pred",) * 2)
    yield integer("not.pred", lambda a: 1 - a, ("pred",))
    yield integer("mov.pred", lambda a: a, ("pred",))
    yield integer(
        "and.pred", lambda a, b: a & (1 - b), ("pred",) * 2, negated=frozenset((2,))
    )
    for kind in ("b16", "b32", "b64", "s32", "f32", "f64", "u16"):
        yield integer(
            f"selp.{kind}", lambda a, b, p: a if p else b, (kind, kind, "pred")
        )
    yield integer(
        "selp.b32",
        lambda a, b, p: b if p else a,
        ("b32", "b32", "pred"),
        negated=frozenset((3,)),
    )
    yield Case(
        "slct.b32.s32",
        ("b32",),
        ("b32", "b32", "s32"),
        lambda a, b, c: a if c >= 0 else b,
    )
    yield Case(
        "slct.b64.f32",
        ("b64",),
        ("b64", "b64", "f32"),
        lambda a, b, c: a if decode(c, "f32") >= 0 else b,
    )
    yield Case(
        "slct.ftz.b32.f32",
        ("b32",),
        ("b32", "b32", "f32"),
        lambda a, b, c: a if decode(flushed(c, "f32"), "f32") >= 0 else b,
    )
    yield from comparison_cases()


RELATIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def float_relations(kind, ftz=False):
    """name → reference on bits."""

    def read(bits):
        return decode(flushed(bits, kind) if ftz else bits, kind)

    def ordered(relation, a, b, if_nan):
        a, b = read(a), read(b)
        nan = math.isnan(a) or math.isnan(b)
        return int(if_nan if nan else relation(a, b))

    for name, relation in RELATIONS.items():
        yield name, lambda a, b, f=relation: ordered(f, a, b, False)
        yield name + "u", lambda a, b, f=relation: ordered(f, a, b, True)
    yield "num", lambda a, b: ordered(lambda a, b: True, a, b, False)
    yield "nan", lambda a, b: ordered(lambda a, b: False, a, b, True)


def comparison_cases():
    for kind in ("s16", "s32", "s64", "u16", "u32", "u64"):
        for name, relation in RELATIONS.items():
            yield Case(f"setp.{name}.{kind}", ("pred",), (kind, kind), relation)
    for name, same in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")):
        yield Case(f"setp.{name}.u32", ("pred",), ("u32", "u32"), RELATIONS[same])
    for kind in ("b16", "b32", "b64"):
        for name in ("eq", "ne"):
            yield Case(f"setp.{name}.{kind}", ("pred",), (kind, kind), RELATIONS[name])
    for kind in ("f32", "f64", "f16", "bf16"):
        for name, relation in float_relations(kind):
            yield Case(f"setp.{name}.{kind}", ("pred",), (kind, kind), relation)
    for name, relation in float_relations("f32", ftz=True):
        yield Case(f"setp.{name}.ftz.f32", ("pred",), ("f32", "f32"), relation)
    yield Case(
        "setp.lt.f32",
        ("pred", "pred"),
        ("f32", "f32"),
        lambda a, b: (
            decode(a, "f32") < decode(b, "f32"),
            not decode(a, "f32") < decode(b, "f32"),
        ),
    )
    yield Case(
        "setp.gt.f16x2",
        ("pred", "pred"),
        ("f16x2", "f16x2"),
        lambda a, b: tuple(
            decode(a >> n & 0xFFFF, "f16") > decode(b >> n & 0xFFFF, "f16")
            for n in (0, 16)
        ),
    )
    for name, combine in (
        ("and", lambda a, b: a and b),
        ("or", lambda a, b: a or b),
        ("xor", lambda a, b: a != b),
    ):
        yield Case(
            f"setp.lt.{name}.s32",
            ("pred",),
            ("s32", "s32", "pred"),
            lambda a, b, c, f=combine: f(a < b, bool(c)),
        )
        yield Case(
            f"setp.lt.{name}.s32",
            ("pred", "pred"),
            ("s32", "s32", "pred"),
            lambda a, b, c, f=combine: (f(a < b, not c), f(not a < b, not c)),
            negated=frozenset((4,)),
        )
    yield Case("set.lt.u32.s32", ("u32",), ("s32", "s32"), lambda a, b: -(a < b))
    yield Case(
        "set.lt.f32.s32",
        ("f32",),
        ("s32", "s32"),
        lambda a, b: 0x3F800000 if a < b else 0,
    )
    for kind, one in (("f16", 0x3C00), ("bf16", 0x3F80)):
        yield Case(
            f"set.lt.{kind}.{kind}",
            (kind,),
            (kind, kind),
            lambda a, b, k=kind, n=one: n * (decode(a, k) < decode(b, k)),
        )
    yield Case(
        "set.ne.and.s32.u32",
        ("s32",),
        ("u32", "u32", "pred"),
        lambda a, b, c: -(a != b and bool(c)),
    )


def arithmetic_cases():
    for base in ("add", "sub", "mul", "fma", "div", "rcp", "sqrt"):
        count = count_operands(EXACT[base])

        def case(opcode, kind, **how):
            return Case(
                opcode, (kind,), (kind,) * count, float_operation(base, kind, **how)
            )

        yield case(f"{base}.rn.f64", "f64")
        for mode in ("rn", "rz", "rm", "rp"):
            yield case(f"{base}.{mode}.f32", "f32", mode=mode)
            yield case(f"{base}.{mode}.ftz.f32", "f32", mode=mode, ftz=True)
        if base in ("add", "sub", "mul", "fma"):
            yield case(f"{base}.rn.sat.f32", "f32", sat=True)
            for kind in ("f16", "bf16"):
                rn = ".rn" if base == "fma" else ""
                yield case(f"{base}{rn}.{kind}", kind)
                reference = pairwise(float_operation(base, kind))
                yield Case(
                    f"{base}{rn}.{kind}x2",
                    (f"{kind}x2",),
                    (f"{kind}x2",) * count,
                    reference,
                )
            yield case(f"{base}.rn.ftz.f16", "f16", ftz=True)
            yield case(f"{base}.rn.sat.f16", "f16", sat=True)
    for base in ("add", "sub", "mul"):
        yield Case(f"{base}.f32", ("f32",), ("f32",) * 2, float_operation(base, "f32"))
        yield Case(f"{base}.f64", ("f64",), ("f64",) * 2, float_operation(base, "f64"))
    yield Case("mad.rn.f32", ("f32",), ("f32",) * 3, float_operation("mad", "f32"))
    for kind in ("f16", "bf16"):
        yield Case(
            f"fma.rn.relu.{kind}",
            (kind,),
            (kind,) * 3,
            float_operation("fma", kind, relu=True),
        )
    for base in ("min", "max"):
        for kind in ("f16", "bf16", "f32", "f64"):
            yield Case(f"{base}.{kind}", (kind,), (kind,) * 2, minimum(base, kind))
            if kind == "f64":
                continue
            yield Case(
                f"{base}.NaN.{kind}", (kind,), (kind,) * 2, minimum(base, kind, True)
            )
            yield Case(
                f"{base}.xorsign.abs.{kind}",
                (kind,),
                (kind,) * 2,
                minimum(base, kind, xorsign=True),
            )
    for kind in ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2"):
        bits = width_of(kind)
        sign = 0x80008000 if kind.endswith("x2") else 1 << (bits - 1)
        yield Case(f"neg.{kind}", (kind,), (kind,), lambda a, s=sign: a ^ s)
        yield Case(f"abs.{kind}", (kind,), (kind,), lambda a, s=sign: a & ~s)
    yield Case("neg.ftz.f32", ("f32",), ("f32",), lambda a: flushed(a, "f32") ^ 1 << 31)
    for kind in ("f32", "f64"):
        sign = 1 << (width_of(kind) - 1)
        yield Case(
            f"copysign.{kind}",
            (kind,),
            (kind,) * 2,
            lambda a, b, s=sign: a & s | b & ~s,
        )
        yield from property_cases(kind)
    yield from approximate_cases()


def property_cases(kind):
    smallest = 2.0**-126 if kind == "f32" else 2.0**-1022
    tests = {
        "finite": math.isfinite,
        "infinite": math.isinf,
        "number": lambda x: not math.isnan(x),
        "notanumber": math.isnan,
        "normal": lambda x: math.isfinite(x) and abs(x) >= smallest,
        "subnormal": lambda x: 0 < abs(x) < smallest,
    }
    for name, test in tests.items():
        yield Case(
            f"testp.{name}.{kind}",
            ("pred",),
            (kind,),
            lambda a, f=test: f(decode(a, kind)),
        )


def approximate_cases():
    functions = {
        "rcp": lambda a: 1 / a,
        "sqrt": np.sqrt,
        "rsqrt": lambda a: 1 / np.sqrt(a),
        "sin": np.sin,
        "cos": np.cos,
        "lg2": np.log2,
        "ex2": np.exp2,
        "tanh": np.tanh,
    }
    for name, function in functions.items():
        yield Case(f"{name}.approx.f32", ("f32",), ("f32",), function, close=True)
    for name in ("approx", "full"):
        yield Case(
            f"div.{name}.f32", ("f32",), ("f32",) * 2, lambda a, b: a / b, close=True
        )


# Moves and conversions.


def move_cases():
    for kind in ("f16", "f32", "f64", "u16", "s32", "u64"):
        yield integer(f"mov.{kind}", lambda a: a)
    for bits, count in ((32, 2), (64, 2), (64, 4)):
        part = bits // count
        parts = (f"b{part}",) * count
        yield Case(
            f"mov.b{bits}",
            (f"b{bits}",),
            parts,
            lambda *x, n=part: sum(v << i * n for i, v in enumerate(x)),
        )
        yield Case(
            f"mov.b{bits}",
            parts,
            (f"b{bits}",),
            lambda x, n=part, c=count: tuple(x >> i * n for i in range(c)),
        )
    for space in ("global", "to.global", "param", "const"):
        yield integer(f"cvta.{space}.u64", lambda a: a)


INTEGER_KINDS = tuple(f"{sign}{bits}" for sign in "us" for bits in (8, 16, 32, 64))
WHOLE = {"rni": round, "rzi": int, "rmi": math.floor, "rpi": math.ceil}


def conversion_cases():
    for source in INTEGER_KINDS:
        for target in INTEGER_KINDS:
            # Registers of 8 bits are 16 bits wide in what compilers write.
            widths = tuple(max(16, width_of(kind)) for kind in (target, source))
            for sat in ("", ".sat"):
                yield Case(
                    f"cvt{sat}.{target}.{source}",
                    (target,),
                    (source,),
                    lambda a, t=target, s=sat: cut(clamp(a, t) if s else a, t),
                    widths=widths,
                )
        yield from from_integer_cases(source)
        yield from to_integer_cases(source)
    yield Case("cvt.s64.s32", ("s64",), ("s32",), lambda a: a)
    yield Case("cvt.u32.u16", ("u32",), ("u16",), lambda a: a, widths=(32, 32))
    yield from float_conversion_cases()
    yield from packed_conversion_cases()


def from_integer_cases(source):
    bits = width_of(source)
    for target in ("f32", "f64", "f16", "bf16"):
        for mode in ("rn", "rz", "rm", "rp"):
            if mode != "rn" and (bits == 64 or target in ("f16", "bf16")):
                continue
            if target == "bf16" and bits == 64:
                continue
            yield Case(
                f"cvt.{mode}.{target}.{source}",
                (target,),
                (source,),
                lambda a, t=target, m=mode: encode(Fraction(a), t, m),
                widths=(width_of(target), max(16, bits)),
            )


def to_integer_cases(target):
    bits = width_of(target)
    for source in ("f32", "f64", "f16", "bf16"):
        for name, whole in WHOLE.items():

            def reference(a, source=source, whole=whole):
                value = decode(a, source)
                if math.isnan(value):
                    is_wide = source == "f64" or bits == 64
                    return cut(1 << (bits - 1), target) if is_wide else 0
                if math.isinf(value):
                    return clamp(int(math.copysign(1 << 70, value)), target)
                return clamp(whole(value), target)

            yield Case(
                f"cvt.{name}.{target}.{source}",
                (target,),
                (source,),
                reference,
                widths=(max(16, bits), width_of(source)),
            )


def rounded(source, target, mode="rn", finite=False, relu=False, sat=False):
    def reference(a):
        value = decode(a, source)
        if relu and value <= 0:
            value = 0.0
        if sat:
            value = min(value, 1.0) if value > 0 else 0.0
        return encode(value, target, mode, finite=finite)

    return reference


def float_conversion_cases():
    def case(words, target, source, **how):
        return Case(
            f"cvt.{words}{target}.{source}",
            (target,),
            (source,),
            rounded(source, target, **how),
        )

    for mode in ("rn", "rz", "rm", "rp"):
        yield case(f"{mode}.", "f32", "f64", mode=mode)
    for mode in ("rn", "rz"):
        for target in ("f16", "bf16"):
            for source in ("f32", "f64"):
                yield case(f"{mode}.", target, source, mode=mode)
        yield case(f"{mode}.", "bf16", "f16", mode=mode)
        yield case(f"{mode}.", "f16", "bf16", mode=mode)
        yield case(f"{mode}.", "tf32", "f32", mode=mode)
    yield case("rna.", "tf32", "f32", mode="rna")
    yield case("rn.relu.", "tf32", "f32", relu=True)
    yield case("rn.satfinite.", "f16", "f32", finite=True)
    yield case("rn.relu.", "bf16", "f32", relu=True)
    yield case("rn.relu.", "f16", "f32", relu=True)
    yield case("sat.", "f32", "f32", sat=True)
    yield case("rn.sat.", "f16", "f32", sat=True)
    yield case("rn.sat.", "f32", "f64", sat=True)
    for source in ("f16", "bf16"):
        yield case("", "f32", source)
        yield case("", "f64", source)
    yield case("", "f64", "f32")
    for kind in ("f32", "f64", "f16"):
        for name, whole in WHOLE.items():

            def reference(a, kind=kind, whole=whole):
                value = decode(a, kind)
                if math.isfinite(value):
                    value = math.copysign(float(abs(whole(value))), value)
                return encode(value, kind)

            yield Case(f"cvt.{name}.{kind}.{kind}", (kind,), (kind,), reference)
    yield Case(
        "cvt.rn.ftz.f32.f64",
        ("f32",),
        ("f64",),
        lambda a: flushed(encode(decode(a, "f64"), "f32"), "f32"),
    )
    yield Case(
        "cvt.rzi.ftz.s32.f32",
        ("s32",),
        ("f32",),
        lambda a: (
            0
            if math.isnan(x := decode(a, "f32"))
            else clamp(int(max(min(x, 2e9 * 2), -2e9 * 2)), "s32")
        ),
    )


def packed_conversion_cases():
    packs = [
        ("f16", "rn", ""),
        ("bf16", "rn", ""),
        ("f16", "rz", ""),
        ("bf16", "rz", ""),
    ]
    packs += [("f16", "rn", ".relu"), ("bf16", "rn", ".relu")]
    packs += [(fp8, "rn", ".satfinite") for fp8 in ("e4m3", "e5m2")]
    packs += [(fp8, "rn", ".satfinite.relu") for fp8 in ("e4m3", "e5m2")]
    for kind, mode, more in packs:
        one = rounded("f32", kind, mode, "satfinite" in more, "relu" in more)
        yield Case(
            f"cvt.{mode}{more}.{kind}x2.f32",
            (f"{kind}x2",),
            ("f32", "f32"),
            lambda a, b, f=one, n=width_of(kind): f(a) << n | f(b),
        )
    for fp8 in ("e4m3", "e5m2"):
        for relu in ("", ".relu"):
            widen, narrow = (
                rounded(*kinds, finite=not i, relu=bool(relu))
                for i, kinds in enumerate((("f16", fp8), (fp8, "f16")))
            )
            yield Case(
                f"cvt.rn.satfinite{relu}.{fp8}x2.f16x2",
                (f"{fp8}x2",),
                ("f16x2",),
                lambda a, f=widen: f(a >> 16) << 8 | f(a & 0xFFFF),
            )
            yield Case(
                f"cvt.rn{relu}.f16x2.{fp8}x2",
                ("f16x2",),
                (f"{fp8}x2",),
                lambda a, f=narrow: f(a >> 8) << 16 | f(a & 0xFF),
            )


CASES = [
    *integer_cases(),
    *predicate_cases(),
    *arithmetic_cases(),
    *move_cases(),
    *conversion_cases(),
]


# Running.


@pytest.fixture(scope="module")
def functions():
    """Address of every case's function; compiled at once."""
    return alu.addresses(case.form for case in CASES)


def values(kind, generator):
    """32 operands of a kind as unsigned bits: edges and random ones."""
    bits = width_of(kind)
    if kind == "amount":
        edges = (0, 1, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 255, 256, 2**32 - 1)
        return [
            (
                generator.choice(edges)
                if generator.random() < 0.5
                else generator.randrange(70)
            )
            for _ in range(LANES)
        ]
    if kind == "pred":
        return [generator.getrandbits(1) for _ in range(LANES)]
    if kind in FLOATS:
        return [random_float(kind, generator) for _ in range(LANES)]
    if kind.endswith("x2") and kind[:-2] in FLOATS:
        pairs = [
            [random_float(kind[:-2], generator) for _ in range(2)] for _ in range(LANES)
        ]
        return [high << bits // 2 | low for high, low in pairs]
    top = 1 << (bits - 1)
    edges = (0, 1, 2, 3, top - 1, top, top + 1, 2 * top - 2, 2 * top - 1)
    return [
        (
            generator.choice(edges)
            if generator.random() < 0.4
            else generator.getrandbits(bits) >> generator.randrange(bits)
        )
        for _ in range(LANES)
    ]


def random_float(kind, generator):
    exponent_bits, mantissa_bits = FLOATS[kind]
    bits = width_of(kind)
    one = ((1 << (exponent_bits - 1)) - 1) << mantissa_bits
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    choice = generator.random()
    if choice < 0.3:
        number = generator.choice(
            (0, 1, 2, (1 << mantissa_bits) - 1, 1 << mantissa_bits, one, one + 1)
            + (infinity - 1, infinity, infinity | 1 << (mantissa_bits - 1))
        )
    elif choice < 0.7:
        # Near 1, so that sums and quotients meet each other's digits.
        number = one + generator.randrange(-(6 << mantissa_bits), 6 << mantissa_bits)
        number = max(number, 0) & ~((1 << generator.randrange(mantissa_bits)) - 1)
    else:
        number = generator.getrandbits(bits - 1)
    return number | generator.getrandbits(1) << (bits - 1)


def fill(registers, place, width, lanes):
    """Write 32 values, or one predicate, into the row at this place."""
    if width == 1:
        word = sum(bit << lane for lane, bit in enumerate(lanes))
        registers[place * ROW : place * ROW + 4].view(np.uint32)[0] = word
    else:
        registers[place * ROW :].view(f"u{width // 8}")[:LANES] = lanes


def read(registers, place, width):
    if width == 1:
        word = int(registers[place * ROW : place * ROW + 4].view(np.uint32)[0])
        return [word >> lane & 1 for lane in range(LANES)]
    return [int(x) for x in registers[place * ROW :].view(f"u{width // 8}")[:LANES]]


def call(address, registers, places, mask):
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    offsets = np.array(places, np.int32) * ROW
    function(address)(registers.ctypes.data, offsets.ctypes.data, mask)


def expected(case, operands):
    arguments = [
        cut(x, k) if k[0] in "us" else x for x, k in zip(operands, case.inputs)
    ]
    results = case.reference(*arguments)
    return results if isinstance(results, tuple) else (results,)


def written(value, kind, width):
    """The result as it stands in a register: extended by its kind's sign."""
    value = int(value) & ((1 << width_of(kind)) - 1)
    return cut(value, kind) & ((1 << width) - 1)


def any_nan(case, bits, kind):
    """Whether it is a NaN where PTX names none: of f64 and of conversions."""
    if kind == "f64" or kind == "f32" and case.opcode.startswith("cvt."):
        return math.isnan(decode(bits, kind))
    return False


def name_case(case):
    return f"{case.opcode}-{len(case.outputs)}-{len(case.inputs)}" + "!" * len(
        case.negated
    )


@pytest.mark.parametrize("case", [c for c in CASES if not c.close], ids=name_case)
def test_instruction(case, functions):
    generator = random.Random(case.opcode)
    form = case.form
    widths = form.key[1]
    count = len(case.outputs)
    assert form.writes == count
    for round_number in range(ROUNDS):
        registers = np.frombuffer(
            generator.randbytes(ROW * len(widths)), np.uint8
        ).copy()
        operands = [values(kind, generator) for kind in case.inputs]
        for place, (kind, lanes) in enumerate(zip(case.inputs, operands), count):
            fill(registers, place, widths[place], lanes)
        before = [read(registers, place, widths[place]) for place in range(count)]
        mask = 0xFFFFFFFF if round_number < 2 else generator.getrandbits(32) | 1
        call(functions[form.key], registers, range(len(widths)), mask)
        for lane in range(LANES):
            given = [lanes[lane] for lanes in operands]
            wanted = expected(case, given) if mask >> lane & 1 else None
            for place in range(count):
                found = read(registers, place, widths[place])[lane]
                kind = case.outputs[place]
                if wanted is None:
                    assert found == before[place][lane], "a lane outside the mask"
                    continue
                want = written(wanted[place], kind, widths[place])
                same = found == want or (
                    any_nan(case, found, kind) and any_nan(case, want, kind)
                )
                assert same, f"{[hex(x) for x in given]}: {found:#x}, not {want:#x}"


@pytest.mark.parametrize("case", [c for c in CASES if c.close], ids=name_case)
def test_approximation(case, functions):
    generator = random.Random(case.opcode)
    for _ in range(6 * ROUNDS):
        registers = np.zeros(ROW * 3, np.uint8)
        operands = [values("f32", generator) for _ in case.inputs]
        for place, lanes in enumerate(operands, 1):
            fill(registers, place, 32, lanes)
        call(functions[case.form.key], registers, range(1 + len(operands)), 0xFFFFFFFF)
        numbers = [np.array(x, np.uint32).view(np.float32) for x in operands]
        with np.errstate(all="ignore"):
            wanted = case.reference(*(x.astype(np.float64) for x in numbers))
            nearest = wanted.astype(np.float32)
            unit = np.spacing(np.abs(nearest)).astype(np.float64)
        found = registers.view(np.float32)[:LANES]
        special = ~np.isfinite(nearest) | (nearest == 0)
        np.testing.assert_array_equal(found[special], nearest[special])
        error = np.abs(found[~special].astype(np.float64) - wanted[~special])
        assert (error <= 0.501 * unit[~special]).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["ex2.approx", "tanh.approx"])
def test_approximation_of_small_floats(name, kind):
    """A quarter of all numbers, alone and in pairs: the f64 result rounded once."""
    flush = ".ftz" if (name, kind) == ("ex2.approx", "bf16") else ""
    one = alu.form(f"{name}{flush}.{kind}", (16, 16))
    pair = alu.form(f"{name}{flush}.{kind}x2", (32, 32))
    found = alu.addresses([one, pair])
    function = {"ex2.approx": np.exp2, "tanh.approx": np.tanh}[name]
    for start in range(0, 1 << 16, 256):
        numbers = range(start, start + 2 * LANES)
        registers = np.zeros(2 * ROW, np.uint8)
        registers[ROW:].view(np.uint16)[: 2 * LANES] = numbers
        call(found[pair.key], registers, (0, 1), 0xFFFFFFFF)
        halves = registers.view(np.uint16)[: 2 * LANES].copy()
        call(found[one.key], registers, (0, 1), 0xFFFFFFFF)
        alone = registers.view(np.uint16)[:LANES]
        np.testing.assert_array_equal(halves[:LANES], alone)
        for bits, half in zip(numbers, halves):
            given = decode(flushed(bits, kind) if flush else bits, kind)
            with np.errstate(all="ignore"):
                wanted = encode(float(function(np.float64(given))), kind)
            assert half == (flushed(wanted, kind) if flush else wanted), hex(bits)


def test_flushing_approximations():
    form = alu.form("ex2.approx.ftz.f32", (32, 32))
    registers = np.zeros(2 * ROW, np.uint8)
    registers[ROW:].view(np.float32)[:3] = (-126.0, -130.0, 1e-40)
    call(alu.addresses([form])[form.key], registers, (0, 1), 7)
    np.testing.assert_array_equal(
        registers.view(np.float32)[:4], (2.0**-126, 0.0, 1.0, 0.0)
    )


def run_alone(opcode, size, *operands):
    """The bits that one lane gets, of operands of this many bytes."""
    form = alu.form(opcode, (8 * size,) * (1 + len(operands)))
    registers = np.zeros(ROW * (1 + len(operands)), np.uint8)
    for place, bits in enumerate(operands, 1):
        fill(registers, place, 8 * size, [bits] * LANES)
    call(alu.addresses([form])[form.key], registers, range(1 + len(operands)), 1)
    return read(registers, 0, 8 * size)[0]


def test_comparisons_of_pairs_of_halves():
    found = run_alone("set.lt.f16x2.f16x2", 4, 0x3C00_7E00, 0x4000_3C00)
    assert found == 0x3C00_0000


@pytest.mark.parametrize(
    "name, given, expected",
    [
        ("rcp", 0x4008_0000_FFFF_FFFF, 0x3FD5_5555_0000_0000),
        ("rcp", 0x800F_FFFF_FFFF_FFFF, 0xFFF0_0000_0000_0000),
        ("rcp", 0xFFE0_0000_0000_0000, 0x8000_0000_0000_0000),
        ("rsqrt", 0x4022_0000_0000_0001, 0x3FD5_5555_0000_0000),
    ],
)
def test_approximations_of_the_upper_half_of_an_f64(name, given, expected):
    assert run_alone(f"{name}.approx.ftz.f64", 8, given) == expected


def test_a_result_may_stand_where_an_operand_stood():
    form = alu.form("sub.s32", (32, 32, 32))
    registers = np.zeros(2 * ROW, np.uint8)
    registers.view(np.int32)[:LANES] = np.arange(LANES)
    registers[ROW:].view(np.int32)[:LANES] = 100
    call(alu.addresses([form])[form.key], registers, (1, 0, 1), 0xFFFFFFFF)
    np.testing.assert_array_equal(
        registers[ROW:].view(np.int32)[:LANES], np.arange(LANES) - 100
    )


def test_constants_and_dropped_results_have_rows_of_the_kind():
    form = alu.form("mov.b32", (16, None, 32))
    assert (form.operand_types, form.writes) == (("b16", "b16", "b32"), 2)
    form = alu.form("fma.rn.f32", (32, 32, None, 32))
    assert form.operand_types == ("f32",) * 4
    form = alu.form("setp.lt.and.f64", (1, 64, None, None))
    assert form.operand_types == ("pred", "f64", "f64", "pred")
    form = alu.form("mov.b32", (32, None, 16))
    assert (form.operand_types, form.writes) == (("b32", "b16", "b16"), 1)
    assert alu.form("shl.b64", (64, 64, None)).operand_types == ("b64", "b64", "b32")


@pytest.mark.parametrize(
    "opcode, widths",
    [
        ("surprise.b32", (32, 32)),
        ("add", (32, 32, 32)),
        ("add.cc.u32", (32, 32, 32)),
        ("add.rz.f64", (64, 64, 64)),
        ("add.s32", (32, 32)),
        ("mul.s32", (32, 32, 32)),
        ("mul.wide.s64", (64, 64, 64)),
        ("div.approx.f64", (64, 64, 64)),
        ("sin.f32", (32, 32)),
        ("rsqrt.f32", (32, 32)),
        ("min.f32", (32, 32, 32, 32)),
        ("mov.b128", (None, 64, 64)),
        ("cvta.shared.u64", (64, 64)),
        ("cvt.f16.f32", (16, 32)),
        ("cvt.rn.e4m3x2.f32", (16, 32, 32)),
        ("cvt.rn.satfinite.e2m1x2.f32", (16, 32, 32)),
        ("cvt.s32.f32", (32, 32)),
        ("cvt.rn.f32.f16", (32, 16)),
        ("cvt.u32.pred", (32, 1)),
        ("setp.lt.b32", (1, 32, 32)),
        ("setp.lo.s32", (1, 32, 32)),
        ("setp.lt.u16x2", (1, 32, 32)),
        ("selp.pred", (1, 1, 1, 1)),
        ("selp.f16", (16, 16, 16, 1)),
        ("slct.pred.s32", (1, 1, 1, 32)),
        ("and.s32", (32, 32, 32)),
        ("add.b32", (32, 32, 32)),
        ("neg.u32", (32, 32)),
        ("shl.s32", (32, 32, 32)),
        ("shr.f32", (32, 32, 32)),
        ("rcp.approx.f64", (64, 64)),
        ("ld.global.b32", (32, 64)),
    ],
)
def test_what_is_not_known_is_declined(opcode, widths):
    with pytest.raises(UnknownOpcode, match=opcode.split(".")[0]):
        alu.form(opcode, widths)


def test_registers_that_are_too_narrow_are_refused():
    with pytest.raises(ValueError, match="operand 1 of add.s32 is 16 bits wide"):
        alu.form("add.s32", (32, 16, 32))
    with pytest.raises(ValueError, match="operand 0 of setp.eq.s32 is 32 bits wide"):
        alu.form("setp.eq.s32", (32, 32, 32))
