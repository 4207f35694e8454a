"""PTX's arithmetic: one entry per operation, compiled for all 32 lanes at once.

A `Form` is an opcode with the widths of its operands. Its native function is
`void f(uint8_t *registers, const int32_t *operands, uint32_t mask)`: operand i's row
lies operands[i] bytes into the registers, and only the lanes in `mask` (not 0) are
written. What is computed is said in the PTX ISA document under each instruction's name;
approximations (.approx, .full) are computed in fp64 and rounded once.

Declined with `UnknownOpcode`: 128 bits, cvta of shared and local memory, fns, szext,
fp4 and fp6, f64 rounded other than to nearest, forms of sm_100 (three-operand min,
add.f32.f16).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from batchline.bench.measure.emulator import carries, lanes
from batchline.bench.measure.emulator.lanes import FORMATS, LANES, Function, Lanes
from batchline.bench.measure.emulator.layout import LOCAL_WINDOW, SHARED_WINDOW
from batchline.bench.measure.emulator.ptx import UnknownOpcode

Width: TypeAlias = "int | None"
Key: TypeAlias = "tuple[str, tuple[Width, ...], frozenset[int]]"
Results: TypeAlias = "Lanes | tuple[Lanes, ...]"

_PARAMETERS = "ptr %registers, ptr %operands, i32 %mask"
_SMALL = ("f16", "bf16", "f16x2", "bf16x2")
_FLOATS = ("f32", "f64", *_SMALL)
_SIGNED = ("s16", "s32", "s64")
_NUMBERS = (*_SIGNED, "u16", "u32", "u64")
_ROUNDINGS = ("rn", "rz", "rm", "rp")
_TO_INTEGER = {"rni": "roundeven", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}


@dataclass(frozen=True)
class Form:
    """An opcode as it is used.

    `operand_types` says of each operand, vectors and pairs taken apart, how a constant
    in its place is made: "pred" (one word, all bits the same), "b16", "b32", "b64",
    "f16", "f32" or "f64" (32 values). The first `writes` operands are written.
    """

    key: Key
    operand_types: tuple[str, ...]
    writes: int


@dataclass(frozen=True)
class _Plan:
    """What a form computes: kinds of what it writes and reads, and the code.

    A kind is a PTX type; "pred" is an i1 per lane, "word" the same as one i32.
    """

    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    emit: Callable[..., Results]


class _Words:
    """The words of an opcode that are not read yet."""

    def __init__(self, opcode: str):
        self.opcode = opcode
        self.base, *self._rest = opcode.split(".")

    def take(self, *words: str) -> str | None:
        """The first of these words that the opcode has; it is read now."""
        for word in words:
            if word in self._rest:
                self._rest.remove(word)
                return word
        return None

    def demand(self, *words: str) -> str:
        return self.take(*words) or self.refuse()

    def has(self, *words: str) -> bool:
        """Whether all of these words are still to be read."""
        return all(word in self._rest for word in words)

    def take_last(self) -> str:
        return self._rest.pop() if self._rest else self.refuse()

    def finish(self) -> None:
        if self._rest:
            self.refuse()

    def refuse(self):
        raise UnknownOpcode(self.opcode)


@functools.lru_cache(maxsize=None)
def form(
    opcode: str, widths: tuple[Width, ...], negated: frozenset[int] = frozenset()
) -> Form:
    """The form of an opcode with operands of these widths in bits (1: a predicate;
    None: a constant, or a result that is dropped).

    `negated` are the places of predicates with a `!`. UnknownOpcode: not known here.
    """
    plan = _plan(opcode, widths)
    kinds = plan.outputs + plan.inputs
    for place, (kind, width) in enumerate(zip(kinds, widths)):
        is_predicate = kind in ("pred", "word")
        if width is not None and (
            is_predicate != (width == 1) or not is_predicate and width < _bits(kind)
        ):
            raise ValueError(f"operand {place} of {opcode} is {width} bits wide")
    if any(kinds[place] not in ("pred", "word") for place in negated):
        raise ValueError(f"{opcode} negates what is no predicate")
    return Form(
        (opcode, widths, frozenset(negated)),
        tuple(_operand_type(kind) for kind in kinds),
        len(plan.outputs),
    )


def addresses(forms: Iterable[Form]) -> dict[Key, int]:
    """Address of each form's native function; what is new in this process is compiled
    as one module.
    """
    keys = list(dict.fromkeys(one.key for one in forms))
    new = [key for key in keys if key not in _compiled()]
    if new:
        writers = [functools.partial(_write, key) for key in new]
        _compiled().update(zip(new, lanes.compile_functions(writers, _PARAMETERS)))
    return {key: _compiled()[key] for key in keys}


@functools.cache
def _compiled() -> dict[Key, int]:
    """The addresses of what this process has compiled."""
    return {}


def _plan(opcode: str, widths: tuple[Width, ...]) -> _Plan:
    words = _Words(opcode)
    special = _SPECIAL.get(words.base)
    if carries.writes_carry(opcode) or carries.reads_carry(opcode):
        plan = _carry(words)
    elif special is not None:
        plan = special(words, widths)
    else:
        kind = words.take_last()
        table = _FLOAT if kind in _FLOATS else _INTEGER
        if words.base not in table:
            words.refuse()
        plan = table[words.base](words, kind)
    words.finish()
    if len(widths) != len(plan.outputs) + len(plan.inputs):
        raise UnknownOpcode(f"{opcode} with {len(widths)} operands")
    return plan


# Kinds.


def _bits(kind: str) -> int:
    if kind in ("pred", "word"):
        return 1
    element, pair, _ = kind.partition("x2")
    if element in FORMATS:
        return FORMATS[element].bits * (2 if pair else 1)
    if kind == "tf32":
        return 32
    return int(element[1:]) * (2 if pair else 1)


def _operand_type(kind: str) -> str:
    if kind in ("pred", "word"):
        return "pred"
    if kind in ("f16", "f32", "f64"):
        return kind
    return f"b{max(_bits(kind), 16)}"


def _is_signed(kind: str) -> bool:
    return kind[0] == "s"


def _is_integer(kind: str) -> bool:
    return kind[0] in "bsu" and kind[1:].isdigit()


def _format(kind: str) -> lanes.Format:
    return FORMATS[kind.removesuffix("x2")]


def _from_bits(value: Lanes, kind: str) -> Lanes:
    """32 integers as the lanes of a kind: halves of a pair are lanes of their own."""
    if kind in ("f32", "f64"):
        return value.as_float
    if kind.endswith("x2"):
        return value.reinterpret(f"i{_bits(kind) // 2}")
    return value


# The function of a form.


def _write(key: Key, function: Function) -> None:
    opcode, widths, negated = key
    plan = _plan(opcode, widths)
    kinds = plan.outputs + plan.inputs
    rows = [_row(function, place) for place in range(len(widths))]
    inputs = []
    for place in range(len(plan.outputs), len(widths)):
        value = _load(function, rows[place], kinds[place], widths[place])
        inputs.append(~value if place in negated else value)
    results = plan.emit(*inputs)
    if isinstance(results, Lanes):
        results = (results,)
    rows_written = []
    for row, kind, width, value in zip(rows, plan.outputs, widths, results):
        if kind in ("pred", "word"):
            _store_predicate(function, row, value)
        else:
            bits = value.reinterpret(f"i{_bits(kind)}")
            if width is not None:
                bits = bits.resize(width, _is_signed(kind))
            rows_written.append((row, bits))
    if rows_written:
        _store_rows(function, rows_written)


def _row(function: Function, place: int) -> str:
    at = function.write(f"getelementptr i32, ptr %operands, i64 {place}")
    offset = function.write(f"load i32, ptr {at}")
    wide = function.write(f"sext i32 {offset} to i64")
    return function.write(f"getelementptr i8, ptr %registers, i64 {wide}")


def _load(function: Function, row: str, kind: str, width: Width) -> Lanes:
    if kind in ("pred", "word"):
        word = Lanes(function, function.write(f"load i32, ptr {row}"), "i32", 0)
        return _from_word(word) if kind == "pred" else word
    bits = _bits(kind)
    stored = Lanes(function, "", f"i{width or max(bits, 16)}")
    name = function.write(f"load {stored.type}, ptr {row}, align {stored.bits // 8}")
    value = Lanes(function, name, stored.element)
    return _from_bits(value.resize(bits), kind)


def _from_word(word: Lanes) -> Lanes:
    function = word.function
    name = function.write(f"bitcast i32 {word.name} to <{LANES} x i1>")
    return Lanes(function, name, "i1")


def _store_predicate(function: Function, row: str, value: Lanes) -> None:
    word = value.to_word() if value.count else value
    mask = Lanes(function, "%mask", "i32", 0)
    old = Lanes(function, function.write(f"load i32, ptr {row}"), "i32", 0)
    new = (old & ~mask) | (word & mask)
    function.lines.append(f"store i32 {new.name}, ptr {row}")


def _store_rows(function: Function, rows: list[tuple[str, Lanes]]) -> None:
    is_full = function.write("icmp eq i32 %mask, -1")
    function.lines.append(f"br i1 {is_full}, label %whole, label %part")
    function.begin("whole")
    for row, value in rows:
        _store(function, row, value)
    function.lines.append("ret void")
    function.begin("part")
    mask = _from_word(Lanes(function, "%mask", "i32", 0))
    for row, value in rows:
        align = value.bits // 8
        # Volatile, or LLVM makes a masked store of it: 5 times as long on AVX2.
        old = function.write(f"load volatile {value.type}, ptr {row}, align {align}")
        _store(function, row, mask.choose(value, Lanes(function, old, value.element)))


def _store(function: Function, row: str, value: Lanes) -> None:
    function.lines.append(
        f"store {value.type} {value.name}, ptr {row}, align {value.bits // 8}"
    )


# Integers. An entry gets the words and the kind, and returns the plan.


def _same(kinds: tuple[str, ...], arity: int, emit: Callable[..., Lanes]):
    """An operation whose result and operands are of one of these kinds."""

    def plan(words: _Words, kind: str) -> _Plan:
        if kind not in kinds:
            words.refuse()
        return _Plan((kind,), (kind,) * arity, functools.partial(emit, kind))

    return plan


def _add_or_subtract(words: _Words, kind: str) -> _Plan:
    is_sum = words.base == "add"
    if kind in ("u16x2", "s16x2"):
        return _Plan((kind,), (kind, kind), lambda a, b: a + b if is_sum else a - b)
    if kind not in _NUMBERS:
        words.refuse()
    if not words.take("sat"):
        return _Plan((kind,), (kind, kind), lambda a, b: a + b if is_sum else a - b)
    if kind != "s32":
        words.refuse()
    name = "sadd.sat" if is_sum else "ssub.sat"
    return _Plan((kind,), (kind, kind), lambda a, b: a.call(name, b))


def _minimum_or_maximum(words: _Words, kind: str) -> _Plan:
    relu = words.take("relu")
    kinds = ("s32", "s16x2") if relu else (*_NUMBERS, "u16x2", "s16x2")
    if kind not in kinds:
        words.refuse()
    name = f"{'s' if _is_signed(kind) else 'u'}{words.base}"

    def emit(a, b):
        result = a.call(name, b)
        return result.call("smax", result.constant(0)) if relu else result

    return _Plan((kind,), (kind, kind), emit)


def _multiply(words: _Words, kind: str) -> _Plan:
    """mul and mad."""
    part = words.demand("lo", "hi", "wide")
    if kind not in _NUMBERS:
        words.refuse()
    signed = _is_signed(kind)
    result = f"{kind[0]}{_bits(kind) * 2}" if part == "wide" else kind
    if _bits(result) > 64:
        words.refuse()
    saturates = words.take("sat")
    if saturates and (part, kind, words.base) != ("hi", "s32", "mad"):
        words.refuse()

    def emit(a, b, c=None):
        if part == "lo":
            product = a * b
        elif part == "hi":
            product = _high_product(a, b, signed)
        else:
            product = a.resize(_bits(result), signed) * b.resize(_bits(result), signed)
        if c is None:
            return product
        return product.call("sadd.sat", c) if saturates else product + c

    added = (result,) if words.base == "mad" else ()
    return _Plan((result,), (kind, kind, *added), emit)


def _carry(words: _Words) -> _Plan:
    """add, sub and mad that write or read the condition code, which is the last of what
    they write, and of what they read.
    """
    operation, kind = words.base[:3], words.take_last()
    part = words.demand("lo", "hi") if operation == "mad" else None
    writes = words.take("cc") is not None
    reads = carries.reads_carry(words.opcode)
    if kind not in carries.TYPES:
        words.refuse()

    def emit(a, b, *rest):
        if part is not None:
            signed = _is_signed(kind)
            product = a * b if part == "lo" else _high_product(a, b, signed)
            a, (b, *rest) = product, rest
        combine = carries.subtract if operation == "sub" else carries.add
        result, wraps = combine(a, b, *rest)
        return (result, wraps) if writes else result

    carry_out, carry_in = ("pred",) * writes, ("pred",) * reads
    arity = 2 if part is None else 3
    return _Plan((kind, *carry_out), (*(kind,) * arity, *carry_in), emit)


def _high_product(a: Lanes, b: Lanes, signed: bool) -> Lanes:
    bits = a.bits
    if bits < 64:
        product = a.resize(2 * bits, signed) * b.resize(2 * bits, signed)
        return product.shift_right(bits).resize(bits)
    low = 0xFFFFFFFF
    a_low, a_high = a & low, a.shift_right(32)
    b_low, b_high = b & low, b.shift_right(32)
    middle = a_high * b_low + (a_low * b_low).shift_right(32)
    other = a_low * b_high + (middle & low)
    high = a_high * b_high + middle.shift_right(32) + other.shift_right(32)
    if signed:
        high = high - (a.shift_right(63, True) & b) - (b.shift_right(63, True) & a)
    return high


def _multiply_24(words: _Words, kind: str) -> _Plan:
    """mul24 and mad24."""
    part = words.demand("lo", "hi")
    saturates = words.take("sat")
    if kind not in ("s32", "u32") or (
        saturates and (words.base, part, kind) != ("mad24", "hi", "s32")
    ):
        words.refuse()
    signed = _is_signed(kind)

    def emit(a, b, c=None):
        a, b = (
            x.shift_left(8).shift_right(8, signed).resize(64, signed) for x in (a, b)
        )
        product = (a * b).shift_right(16 if part == "hi" else 0).resize(32)
        if c is None:
            return product
        return product.call("sadd.sat", c) if saturates else product + c

    added = (kind,) if words.base == "mad24" else ()
    return _Plan((kind,), (kind, kind, *added), emit)


def _divide(words: _Words, kind: str) -> _Plan:
    """div and rem. By 0 the quotient is all ones and the remainder the dividend (PTX
    leaves it open).
    """
    if kind not in _NUMBERS:
        words.refuse()
    signed, is_quotient = _is_signed(kind), words.base == "div"

    def emit(a, b):
        by_zero = b.compare("eq", 0)
        divisor = by_zero.choose(1, b)
        quotient = _quotient(a, divisor, signed)
        if is_quotient:
            return by_zero.choose(-1, quotient)
        return by_zero.choose(a, a - quotient * divisor)

    return _Plan((kind,), (kind, kind), emit)


def _quotient(a: Lanes, b: Lanes, signed: bool) -> Lanes:
    sign, bits = "s" if signed else "u", a.bits
    if bits < 64:
        # Exact: of integers of 32 bits no quotient is within an f64's error of the
        # next integer.
        a, b = (x.convert(f"{sign}itofp", "double") for x in (a, b))
        return (a / b).convert("fptosi", "i64").resize(bits)
    if not signed:
        return a.one_by_one("udiv i64 {0}, {1}", b)
    # The smallest number over -1 traps.
    by_minus_one = b.compare("eq", -1)
    quotient = a.one_by_one("sdiv i64 {0}, {1}", by_minus_one.choose(1, b))
    return by_minus_one.choose(-a, quotient)


def _absolute(kind: str, a: Lanes) -> Lanes:
    return a.compare("slt", 0).choose(-a, a)


def _add_difference(kind: str, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    sign = "s" if _is_signed(kind) else "u"
    return c + a.call(f"{sign}max", b) - a.call(f"{sign}min", b)


def _logic(words: _Words, kind: str) -> _Plan:
    """and, or, xor, not and cnot."""
    if kind == "pred" and words.base != "cnot":
        kind = "word"
    elif kind not in ("b16", "b32", "b64"):
        words.refuse()
    emit, arity = {
        "and": (lambda a, b: a & b, 2),
        "or": (lambda a, b: a | b, 2),
        "xor": (lambda a, b: a ^ b, 2),
        "not": (lambda a: ~a, 1),
        "cnot": (lambda a: a.compare("eq", 0).choose(a.constant(1), 0), 1),
    }[words.base]
    return _Plan((kind,), (kind,) * arity, emit)


def _lop3(words: _Words, kind: str) -> _Plan:
    if kind != "b32":
        words.refuse()

    def emit(a, b, c, table):
        result = a.constant(0)
        for row in range(8):
            bit = (table.shift_right(row) & 1) * -1
            for value, weight in ((a, 4), (b, 2), (c, 1)):
                bit = bit & (value if row & weight else ~value)
            result = result | bit
        return result

    return _Plan((kind,), (kind,) * 4, emit)


def _shift(words: _Words, kind: str) -> _Plan:
    """shl and shr; more than the width counts as the width."""
    signed, left = _is_signed(kind), words.base == "shl"
    kinds = ("b16", "b32", "b64")
    if kind not in (kinds if left else (*kinds, *_NUMBERS)):
        words.refuse()

    def emit(a, amount):
        bits = a.bits
        if signed and not left:
            amount = amount.call("umin", amount.constant(bits - 1))
            return a.shift_right(amount.resize(bits), True)
        kept = amount.compare("ult", bits)
        amount = (amount & (bits - 1)).resize(bits)
        shifted = a.shift_left(amount) if left else a.shift_right(amount)
        return kept.choose(shifted, 0)

    return _Plan((kind,), (kind, "u32"), emit)


def _funnel_shift(words: _Words, kind: str) -> _Plan:
    left = words.demand("l", "r") == "l"
    clamps = words.demand("clamp", "wrap") == "clamp"
    if kind != "b32":
        words.refuse()

    def emit(low, high, amount):
        if clamps:
            amount = amount.call("umin", amount.constant(32))
        else:
            amount = amount & 31
        both = high.resize(64).shift_left(32) | low.resize(64)
        amount = amount.resize(64)
        if left:
            return both.shift_left(amount).shift_right(32).resize(32)
        return both.shift_right(amount).resize(32)

    return _Plan((kind,), (kind, kind, "u32"), emit)


def _permute(words: _Words, widths) -> _Plan:
    mode = words.take("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    if words.take_last() != "b32":
        words.refuse()

    def emit(a, b, selector):
        both = b.resize(64).shift_left(32) | a.resize(64)
        result = a.constant(0)
        for place in range(4):
            chosen = _selected_byte(mode, place, selector).resize(64)
            byte = both.shift_right((chosen & 7).shift_left(3)).resize(32) & 0xFF
            if mode is None:
                # The fourth bit asks for the byte's sign in all of its bits.
                sign = byte.shift_right(7) * 0xFF
                byte = (chosen & 8).compare("ne", 0).choose(sign, byte)
            result = result | byte.shift_left(8 * place)
        return result

    return _Plan(("b32",), ("b32",) * 3, emit)


def _selected_byte(mode: str | None, place: int, selector: Lanes) -> Lanes:
    """Number of the byte that goes to this place (prmt's tables)."""
    if mode is None:
        return selector.shift_right(4 * place) & 0xF
    first = selector & 3
    if mode == "f4e":
        return first + place
    if mode == "b4e":
        return (first - place) & 7
    if mode == "rc8":
        return first
    if mode == "rc16":
        return (first & 1).shift_left(1) + (place & 1)
    number = selector.constant(place)
    return first.call("umax" if mode == "ecl" else "umin", number)


def _extract_bits(words: _Words, kind: str) -> _Plan:
    """bfe."""
    if kind not in ("u32", "u64", "s32", "s64"):
        words.refuse()
    signed = _is_signed(kind)

    def emit(a, position, length):
        bits = a.bits
        position, length = ((x & 0xFF).resize(bits) for x in (position, length))
        inside = position.call("umin", a.constant(bits - 1))
        shifted = a.shift_right(inside, signed)
        if not signed:
            beyond = position.compare("uge", bits)
            shifted = beyond.choose(0, shifted)
        unused = a.constant(bits) - length.call("umin", a.constant(bits))
        is_empty = length.compare("eq", 0)
        unused = is_empty.choose(0, unused)
        cut = shifted.shift_left(unused).shift_right(unused, signed)
        return is_empty.choose(0, cut)

    return _Plan((kind,), (kind, "u32", "u32"), emit)


def _insert_bits(words: _Words, kind: str) -> _Plan:
    """bfi."""
    if kind not in ("b32", "b64"):
        words.refuse()

    def emit(a, b, position, length):
        bits = a.bits
        position, length = ((x & 0xFF).resize(bits) for x in (position, length))
        one = a.constant(1)
        ones = one.shift_left(length & (bits - 1)) - 1
        ones = length.compare("uge", bits).choose(-1, ones)
        shift = position & (bits - 1)
        mask = position.compare("uge", bits).choose(0, ones.shift_left(shift))
        return (b & ~mask) | (a.shift_left(shift) & mask)

    return _Plan((kind,), (kind, kind, "u32", "u32"), emit)


def _find_bit(words: _Words, kind: str) -> _Plan:
    """bfind."""
    shift_amount = words.take("shiftamt")
    if kind not in ("u32", "u64", "s32", "s64"):
        words.refuse()
    signed = _is_signed(kind)

    def emit(a):
        bits = a.bits
        if signed:
            a = a ^ a.shift_right(bits - 1, True)
        zeros = a.call("ctlz", tail=("i1 false",)).resize(32)
        if not shift_amount:
            return zeros.constant(bits - 1) - zeros
        return zeros.compare("eq", bits).choose(-1, zeros)

    return _Plan(("u32",), (kind,), emit)


def _count_bits(words: _Words, kind: str) -> _Plan:
    """popc and clz."""
    if kind not in ("b32", "b64"):
        words.refuse()
    name, tail = {"popc": ("ctpop", ()), "clz": ("ctlz", ("i1 false",))}[words.base]
    return _Plan(("u32",), (kind,), lambda a: a.call(name, tail=tail).resize(32))


def _make_mask(words: _Words, kind: str) -> _Plan:
    """bmsk: as many ones as b from bit a on."""
    wraps = words.demand("clamp", "wrap") == "wrap"
    if kind != "b32":
        words.refuse()

    def emit(a, b):
        first, count = ((x & 31).resize(64) for x in (a, b))
        ones = first.constant(1).shift_left(count) - 1
        if not wraps:
            ones = b.compare("uge", 32).choose(ones.constant(0xFFFFFFFF), ones)
        mask = ones.shift_left(first).resize(32)
        return mask if wraps else a.compare("uge", 32).choose(0, mask)

    return _Plan(("b32",), ("b32", "b32"), emit)


def _dot_product(words: _Words, widths) -> _Plan:
    """dp4a and dp2a."""
    upper = words.base == "dp2a" and words.demand("lo", "hi") == "hi"
    b_kind, a_kind = words.take_last(), words.take_last()
    if {a_kind, b_kind} - {"u32", "s32"}:
        words.refuse()
    signs = _is_signed(a_kind), _is_signed(b_kind)
    count, a_bits = (4, 8) if words.base == "dp4a" else (2, 16)

    def emit(a, b, c):
        b = b.shift_right(16) if upper else b
        for place in range(count):
            c = c + _field(a, place, a_bits, signs[0]) * _field(b, place, 8, signs[1])
        return c

    result = "s32" if any(signs) else "u32"
    return _Plan((result,), (a_kind, b_kind, result), emit)


def _field(value: Lanes, place: int, bits: int, signed: bool) -> Lanes:
    above = value.bits - bits
    return value.shift_left(above - place * bits).shift_right(above, signed)


# Floats.


def _arithmetic(arity: int, nearest, to_odd, function=None):
    """An operation on floats. `nearest` computes in the type itself, rounded to nearest
    even; `to_odd(rounding, ...)` of f64 for other roundings and for what has fewer
    bits; `function` of f64 is what .approx or .full asks for.
    """

    def plan(words: _Words, kind: str) -> _Plan:
        is_approximate = words.take("approx", "full") is not None
        rounding = words.take(*_ROUNDINGS) or "rn"
        flushes, saturates = bool(words.take("ftz")), bool(words.take("sat"))
        relu = bool(words.take("relu"))
        if (
            is_approximate
            and function is None
            or not is_approximate
            and nearest is None
            or kind != "f32"
            and rounding != "rn"
            or relu
            and kind not in _SMALL
            or kind == "f64"
            and (flushes or saturates)
            or is_approximate
            and kind != "f32"
            and words.base not in ("ex2", "tanh", "rsqrt")
        ):
            words.refuse()

        def compute(*values):
            if kind == "f64":
                return function(*values) if is_approximate else nearest(*values)
            if is_approximate:
                wide = function(*(x.convert("fpext", "double") for x in values))
                if kind in _SMALL:
                    return lanes.narrow_to_odd(wide)
                return wide.convert("fptrunc", "float")
            if rounding == "rn" and (kind == "f32" or arity < 3):
                return nearest(*values)
            wide = to_odd(rounding, *(x.convert("fpext", "double") for x in values))
            if kind in _SMALL:
                return lanes.narrow_to_odd(wide)
            return lanes.narrow(wide, rounding)

        def emit(*values):
            result = compute(*(_read_float(x, kind, flushes) for x in values))
            if saturates:
                result = lanes.saturate(result)
            if relu:
                result = result.compare("ole", 0.0).choose(0.0, result)
            return _write_float(result, kind, flushes)

        return _Plan((kind,), (kind,) * arity, emit)

    return plan


def _of_upper_half(function, otherwise):
    """rcp and rsqrt: .approx.ftz.f64 reads and gives the upper 32 bits of an f64."""

    def plan(words: _Words, kind: str) -> _Plan:
        if kind != "f64" or not words.has("approx", "ftz"):
            return otherwise(words, kind)
        words.demand("approx")
        words.demand("ftz")

        def emit(a):
            result = function(_without_lower_half(a))
            return _without_lower_half(lanes.canonical_nan(result))

        return _Plan((kind,), (kind,), emit)

    return plan


def _without_lower_half(value: Lanes) -> Lanes:
    """An f64 whose lower 32 bits are zeros; a subnormal one becomes zero."""
    bits = value.as_integer
    is_small = (bits & (0x7FF << 52)).compare("eq", 0)
    return is_small.choose(bits & (1 << 63), bits & (0xFFFFFFFF << 32)).as_float


def _read_float(value: Lanes, kind: str, flushes: bool) -> Lanes:
    """A float of any kind as f32 or f64."""
    if kind in _SMALL:
        format = _format(kind)
        if flushes:
            value = _flush_small(value, format)
        return lanes.widen_small(value, format)
    return lanes.flush_subnormal(value) if flushes else value


def _write_float(value: Lanes, kind: str, flushes: bool) -> Lanes:
    """f32 or f64 as the result of an instruction of this kind."""
    if kind in _SMALL:
        format = _format(kind)
        small = lanes.narrow_to_small(value, format)
        return _flush_small(small, format) if flushes else small
    if flushes:
        value = lanes.flush_subnormal(value)
    return lanes.canonical_nan(value)


def _flush_small(value: Lanes, format: lanes.Format) -> Lanes:
    is_small = (value & format.infinity).compare("eq", 0)
    return is_small.choose(value & format.sign, value)


def _library(name: str) -> Callable[[Lanes], Lanes]:
    """A function of f64 of the C library, lane by lane."""

    def emit(a: Lanes) -> Lanes:
        a.function.declarations.add(f"declare double @{name}(double)")
        return a.one_by_one(f"call double @{name}(double {{0}})")

    return emit


def _fused(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return a.call("fma", b, c)


def _reciprocal(a: Lanes) -> Lanes:
    return a.constant(1.0) / a


def _root(a: Lanes) -> Lanes:
    return a.call("sqrt")


def _float_minimum(words: _Words, kind: str) -> _Plan:
    """min and max."""
    flushes = bool(words.take("ftz"))
    keeps_nan = words.take("NaN")
    takes_signs = words.take("xorsign")
    if takes_signs:
        words.demand("abs")
    name = {"min": "minimum", "max": "maximum"}[words.base]
    name = name if keeps_nan else f"{name}num"

    def emit(a, b):
        a, b = (_read_float(x, kind, flushes) for x in (a, b))
        if not takes_signs:
            return _write_float(a.call(name, b), kind, False)
        bits = a.as_integer
        sign = (bits ^ b.as_integer) & (1 << (bits.bits - 1))
        result = lanes.magnitude(a).call(name, lanes.magnitude(b))
        signed = (result.as_integer | sign).as_float
        return _write_float(signed, kind, False)

    return _Plan((kind,), (kind, kind), emit)


def _float_sign(words: _Words, kind: str) -> _Plan:
    """abs and neg."""
    flushes = bool(words.take("ftz"))
    is_absolute = words.base == "abs"

    def emit(a):
        if flushes:
            if kind in _SMALL:
                a = _flush_small(a, _format(kind))
            else:
                a = lanes.flush_subnormal(a)
        bits = a.as_integer
        sign = 1 << (bits.bits - 1)
        return bits & (sign - 1) if is_absolute else bits ^ sign

    return _Plan((kind,), (kind,), emit)


def _copy_sign(words: _Words, kind: str) -> _Plan:
    if kind not in ("f32", "f64"):
        words.refuse()

    def emit(a, b):
        sign = a.as_integer & (1 << (a.bits - 1))
        return lanes.magnitude(b).as_integer | sign

    return _Plan((kind,), (kind, kind), emit)


def _test_property(words: _Words, kind: str) -> _Plan:
    """testp."""
    name = words.demand(
        "finite", "infinite", "number", "notanumber", "normal", "subnormal"
    )
    if kind not in ("f32", "f64"):
        words.refuse()
    infinity = 0x7F800000 if kind == "f32" else 0x7FF << 52
    smallest = 0x00800000 if kind == "f32" else 1 << 52

    def emit(a):
        bits = lanes.magnitude(a).as_integer
        if name == "normal":
            return (bits - smallest).compare("ult", infinity - smallest)
        if name == "subnormal":
            return (bits - 1).compare("ult", smallest - 1)
        relations = {"finite": "ult", "infinite": "eq", "number": "ule"}
        return bits.compare(relations.get(name, "ugt"), infinity)

    return _Plan(("pred",), (kind,), emit)


# Comparisons and choices.

_UNSIGNED_RELATIONS = {"lo": "ult", "ls": "ule", "hi": "ugt", "hs": "uge"}
_FLOAT_RELATIONS = (
    {relation: f"o{relation}" for relation in ("eq", "ne", "lt", "le", "gt", "ge")}
    | {f"{relation}u": f"u{relation}" for relation in ("lt", "le", "gt", "ge")}
    | {"equ": "ueq", "neu": "une", "num": "ord", "nan": "uno"}
)


def _comparison(words: _Words, relation: str, kind: str) -> Callable[..., Lanes]:
    """What compares two values of a kind: an i1 per lane."""
    flushes = bool(words.take("ftz"))
    if kind in _FLOATS:
        found = _FLOAT_RELATIONS.get(relation)
    elif not _is_integer(kind) or _bits(kind) == 8:
        found = None
    elif relation in ("eq", "ne"):
        found = relation
    elif kind[0] == "b":
        found = None
    elif relation in ("lt", "le", "gt", "ge"):
        found = ("s" if _is_signed(kind) else "u") + relation
    else:
        found = _UNSIGNED_RELATIONS.get(relation) if kind[0] == "u" else None
    if found is None:
        words.refuse()

    def compare(a, b):
        if kind in _FLOATS:
            a, b = (_read_float(x, kind, flushes) for x in (a, b))
        return a.compare(found, b)

    return compare


def _combine(operation: str, a: Lanes, b: Lanes) -> Lanes:
    return {"and": a & b, "or": a | b, "xor": a ^ b}[operation]


def _set_predicate(words: _Words, widths: tuple[Width, ...]) -> _Plan:
    """setp, with one result or two."""
    kind = words.take_last()
    relation = words.demand(*_FLOAT_RELATIONS, *_UNSIGNED_RELATIONS)
    combine = words.take("and", "or", "xor")
    is_pair = kind in ("f16x2", "bf16x2")
    compare = _comparison(words, relation, kind[:-2] if is_pair else kind)
    read = 3 if combine else 2
    writes = len(widths) - read
    if writes not in (1, 2) or is_pair and writes != 2:
        words.refuse()

    def compare_words(a, b):
        """Words of the first and of the second result, before they are combined."""
        if is_pair:
            halves = [(x.resize(16), x.shift_right(16).resize(16)) for x in (a, b)]
            return [compare(*pair).to_word() for pair in zip(*halves)]
        word = compare(a, b).to_word()
        return [word, ~word][:writes]

    def emit(a, b, c=None):
        results = compare_words(a, b)
        if combine:
            results = [_combine(combine, result, c) for result in results]
        return tuple(results)

    inputs = ("b32", "b32") if is_pair else (kind, kind)
    return _Plan(("word",) * writes, inputs + ("word",) * (read - 2), emit)


def _set(words: _Words, widths: tuple[Width, ...]) -> _Plan:
    source, target = words.take_last(), words.take_last()
    relation = words.demand(*_FLOAT_RELATIONS, *_UNSIGNED_RELATIONS)
    combine = words.take("and", "or", "xor")
    if source in _SMALL and target == source:
        return _set_small(words, relation, source, combine)
    true = {"u32": -1, "s32": -1, "f32": 1.0, "u16": -1, "s16": -1}.get(target)
    if true is None or source.endswith("x2"):
        words.refuse()
    compare = _comparison(words, relation, source)

    def emit(a, b, c=None):
        result = compare(a, b)
        if combine:
            result = _combine(combine, result, c)
        element = "float" if target == "f32" else f"i{_bits(target)}"
        yes = lanes.constant(a.function, element, LANES, true)
        return result.choose(yes, yes.constant(0))

    return _Plan((target,), (source, source) + ("pred",) * bool(combine), emit)


def _set_small(words: _Words, relation: str, kind: str, combine: str | None) -> _Plan:
    """set of halves to halves: 1.0 or 0.0."""
    if combine:
        words.refuse()
    compare = _comparison(words, relation, kind.removesuffix("x2"))
    one = 0x3C00 if _format(kind) is FORMATS["f16"] else 0x3F80

    def emit(a, b):
        yes = lanes.constant(a.function, "i16", a.count, one)
        return compare(a, b).choose(yes, yes.constant(0))

    return _Plan((kind,), (kind, kind), emit)


def _select(words: _Words, widths: tuple[Width, ...]) -> _Plan:
    """selp."""
    kind = words.take_last()
    if kind not in ("f32", "f64") and not _is_integer(kind) or _bits(kind) == 8:
        words.refuse()
    return _Plan((kind,), (kind, kind, "pred"), lambda a, b, c: c.choose(a, b))


def _select_by_sign(words: _Words, widths: tuple[Width, ...]) -> _Plan:
    """slct."""
    flushes = bool(words.take("ftz"))
    by, kind = words.take_last(), words.take_last()
    if by not in ("s32", "f32") or (
        kind not in ("f32", "f64") and (not _is_integer(kind) or _bits(kind) == 8)
    ):
        words.refuse()

    def emit(a, b, c):
        if by == "s32":
            return c.compare("sge", 0).choose(a, b)
        return _read_float(c, by, flushes).compare("oge", 0.0).choose(a, b)

    return _Plan((kind,), (kind, kind, by), emit)


# Moves and conversions.


def _move(words: _Words, widths: tuple[Width, ...]) -> _Plan:
    kind = words.take_last()
    if kind == "pred":
        return _Plan(("word",), ("word",), lambda a: a)
    if not _is_integer(kind) and kind not in ("f16", "bf16", "f32", "f64"):
        words.refuse()
    bits = _bits(kind)
    count = len(widths) - 1
    if bits > 64:
        words.refuse()
    if count == 1:
        return _Plan((kind,), (kind,), lambda a: a)
    if kind[0] != "b" or count not in (2, 4) or bits // count < 8:
        words.refuse()
    part = f"b{bits // count}"
    packs = widths[0] == bits or widths[0] is None and _bits(part) in widths[1:]

    def pack(*parts):
        result = parts[0].resize(bits)
        for place, value in enumerate(parts[1:], 1):
            result = result | value.resize(bits).shift_left(place * bits // count)
        return result

    def unpack(a):
        return tuple(
            a.shift_right(place * bits // count).resize(bits // count)
            for place in range(count)
        )

    if packs:
        return _Plan((kind,), (part,) * count, pack)
    return _Plan((part,) * count, (kind,), unpack)


def _convert_address(words: _Words, widths: tuple[Width, ...]) -> _Plan:
    """cvta: global and constant memory and parameters have one flat address."""
    words.take("to")
    words.demand("global", "const", "param")
    kind = words.take_last()
    if kind != "u64":
        words.refuse()
    return _Plan((kind,), (kind,), lambda a: a)


def _is_space(words: _Words, widths: tuple[Width, ...]) -> _Plan:
    """isspacep: whether a generic address leads to this memory."""
    space = words.demand("global", "shared", "shared::cta", "local")

    def emit(a):
        if space == "global":
            return a.compare("ult", SHARED_WINDOW).to_word()
        window = LOCAL_WINDOW if space == "local" else SHARED_WINDOW
        return a.shift_right(32).compare("eq", window >> 32).to_word()

    return _Plan(("word",), ("u64",), emit)


@dataclass(frozen=True)
class _Conversion:
    """The words of a cvt. `rounding`: of _ROUNDINGS, of _TO_INTEGER, rna or None."""

    source: str
    target: str
    rounding: str | None
    flushes: bool
    saturates: bool
    finite: bool
    relu: bool


def _convert(words: _Words, widths: tuple[Width, ...]) -> _Plan:
    source, target = words.take_last(), words.take_last()
    cvt = _Conversion(
        source,
        target,
        words.take(*_ROUNDINGS, *_TO_INTEGER, "rna"),
        bool(words.take("ftz")),
        bool(words.take("sat")),
        bool(words.take("satfinite")),
        bool(words.take("relu")),
    )
    for kind in (source, target):
        known = (*_FLOATS, "tf32", "e4m3x2", "e5m2x2")
        if kind not in known and (not _is_integer(kind) or kind[0] == "b"):
            words.refuse()
    if _is_integer(source):
        emit = _from_integer(words, cvt)
    elif _is_integer(target):
        emit = _to_integer(words, cvt)
    else:
        emit = _float_to_float(words, cvt)
    if len(widths) == 2:
        if source.endswith("x2") != target.endswith("x2"):
            words.refuse()
        return _Plan((target,), (source,), emit)
    if not target.endswith("x2") or source != "f32":
        words.refuse()

    def pack(high, low):
        bits = _bits(target)
        high, low = (emit(x).resize(bits) for x in (high, low))
        return high.shift_left(bits // 2) | low

    return _Plan((target,), (source, source), pack)


def _from_integer(words: _Words, cvt: _Conversion) -> Callable[[Lanes], Lanes]:
    signed = _is_signed(cvt.source)
    bits, target = _bits(cvt.source), cvt.target
    operation = "sitofp" if signed else "uitofp"
    if cvt.finite or cvt.relu or cvt.flushes and target != "f32":
        words.refuse()
    if _is_integer(target):
        if cvt.rounding:
            words.refuse()
        return functools.partial(_integer_to_integer, cvt)
    if cvt.rounding not in _ROUNDINGS:
        words.refuse()
    if target in ("f32", "f64"):
        if cvt.rounding != "rn" and bits == 64:
            words.refuse()

        def emit(a):
            if cvt.rounding == "rn":
                result = a.convert(operation, "float" if target == "f32" else "double")
            else:
                result = a.convert(operation, "double")
                if target == "f32":
                    result = lanes.narrow(result, cvt.rounding)
            return lanes.saturate(result) if cvt.saturates else result

        return emit
    if target not in ("f16", "bf16") or cvt.rounding not in ("rn", "rz"):
        words.refuse()
    if target == "bf16" and bits == 64 or cvt.saturates:
        words.refuse()

    def emit_small(a):
        if target == "f16" and bits > 16:
            # Beyond f16 all the same, and exact as f64.
            limit = 1 << 20
            a = a.call("smin" if signed else "umin", a.constant(limit))
            a = a.call("smax", a.constant(-limit)) if signed else a
        exact = a.convert(operation, "double")
        odd = lanes.narrow_to_odd(exact)
        return lanes.narrow_to_small(odd, _format(target), cvt.rounding)

    return emit_small


def _integer_to_integer(cvt: _Conversion, a: Lanes) -> Lanes:
    signed = _is_signed(cvt.source)
    target_bits = _bits(cvt.target)
    if cvt.saturates:
        (low, high), (target_low, target_high) = (
            _limits(kind) for kind in (cvt.source, cvt.target)
        )
        sign = "s" if signed else "u"
        if target_high < high:
            a = a.call(f"{sign}min", a.constant(target_high))
        if target_low > low:
            a = a.call(f"{sign}max", a.constant(target_low))
    return a.resize(target_bits, signed)


def _limits(kind: str) -> tuple[int, int]:
    bits = _bits(kind)
    if _is_signed(kind):
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def _to_integer(words: _Words, cvt: _Conversion) -> Callable[[Lanes], Lanes]:
    if cvt.rounding not in _TO_INTEGER or cvt.finite or cvt.relu:
        words.refuse()
    if cvt.source not in ("f16", "bf16", "f32", "f64"):
        words.refuse()
    bits = _bits(cvt.target)
    # "cvt", on NaN: 0 unless 64 bits wide on either side.
    of_nan = 1 << (bits - 1) if cvt.source == "f64" or bits == 64 else 0

    def emit(a):
        flushes = cvt.flushes and cvt.source == "f32"
        a = _read_float(a, cvt.source, flushes).call(_TO_INTEGER[cvt.rounding])
        result = a.to_saturated(bits, _is_signed(cvt.target))
        return a.compare("uno", a).choose(of_nan, result) if of_nan else result

    return emit


def _float_to_float(words: _Words, cvt: _Conversion) -> Callable[[Lanes], Lanes]:
    source, target = (kind.removesuffix("x2") for kind in (cvt.source, cvt.target))
    _check_float_to_float(words, cvt, source, target)

    def emit(a):
        if source in FORMATS:
            a = lanes.widen_small(a, FORMATS[source])
        elif cvt.flushes and source == "f32":
            a = lanes.flush_subnormal(a)
        if cvt.rounding in _TO_INTEGER:
            a = a.call(_TO_INTEGER[cvt.rounding])
        if cvt.saturates:
            a = lanes.saturate(a)
        if cvt.relu:
            a = a.compare("ole", 0.0).choose(0.0, a)
        if target in FORMATS:
            if a.element == "double":
                a = lanes.narrow_to_odd(a)
            rounding = "rz" if cvt.rounding == "rz" else "rn"
            return lanes.narrow_to_small(a, FORMATS[target], rounding, cvt.finite)
        if target == "tf32":
            return _to_tf32(a, cvt.rounding)
        if target == "f64":
            return a if a.element == "double" else a.convert("fpext", "double")
        if a.element == "double":
            a = lanes.canonical_nan(lanes.narrow(a, cvt.rounding))
        return lanes.flush_subnormal(a) if cvt.flushes else a

    return emit


def _check_float_to_float(
    words: _Words, cvt: _Conversion, source: str, target: str
) -> None:
    """UnknownOpcode for what is no conversion, or another rounding than it takes."""
    order = ("e4m3", "e5m2", "bf16", "f16", "tf32", "f32", "f64")
    narrows = order.index(target) < order.index(source)
    is_fp8 = target in ("e4m3", "e5m2")
    if source == target:
        fits = cvt.rounding is None or cvt.rounding in _TO_INTEGER
    elif target == "tf32":
        fits = source == "f32" and cvt.rounding in ("rn", "rz", "rna")
    elif is_fp8:
        fits = source in ("f32", "f16") and cvt.rounding == "rn" and cvt.finite
    elif source in ("e4m3", "e5m2"):
        fits = cvt.target == "f16x2" and cvt.rounding == "rn"
    elif target in FORMATS and (narrows or source in FORMATS):
        fits = cvt.rounding in ("rn", "rz")
    elif narrows:
        fits = cvt.rounding in _ROUNDINGS
    else:
        fits = cvt.rounding is None and source != "tf32"
    if cvt.relu or cvt.finite:
        fits = fits and (target in FORMATS or target == "tf32")
    if not fits:
        words.refuse()


def _to_tf32(value: Lanes, rounding: str) -> Lanes:
    """f32 with the lowest 13 bits rounded away."""
    bits = value.as_integer
    number = bits & 0x7FFFFFFF
    if rounding == "rn":
        rounded = bits + 0xFFF + (bits.shift_right(13) & 1)
    else:
        rounded = bits + (0x1000 if rounding == "rna" else 0)
    rounded = rounded & 0xFFFFE000
    is_nan = number.compare("ugt", 0x7F800000)
    return is_nan.choose(0x7FFFFFFF, rounded)


_INTEGER = {
    "add": _add_or_subtract,
    "sub": _add_or_subtract,
    "mul": _multiply,
    "mad": _multiply,
    "mul24": _multiply_24,
    "mad24": _multiply_24,
    "div": _divide,
    "rem": _divide,
    "sad": _same(_NUMBERS, 3, _add_difference),
    "abs": _same(_SIGNED, 1, _absolute),
    "neg": _same(_SIGNED, 1, lambda kind, a: -a),
    "min": _minimum_or_maximum,
    "max": _minimum_or_maximum,
    "and": _logic,
    "or": _logic,
    "xor": _logic,
    "not": _logic,
    "cnot": _logic,
    "lop3": _lop3,
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel_shift,
    "bfe": _extract_bits,
    "bfi": _insert_bits,
    "bfind": _find_bit,
    "bmsk": _make_mask,
    "brev": _same(("b32", "b64"), 1, lambda kind, a: a.call("bitreverse")),
    "popc": _count_bits,
    "clz": _count_bits,
}

_FLOAT = {
    "add": _arithmetic(
        2, lambda a, b: a + b, lambda r, a, b: lanes.add_to_odd(a, b, r)
    ),
    "sub": _arithmetic(
        2, lambda a, b: a - b, lambda r, a, b: lanes.add_to_odd(a, -b, r)
    ),
    "mul": _arithmetic(2, lambda a, b: a * b, lambda r, a, b: a * b),
    "fma": _arithmetic(3, _fused, lambda r, a, b, c: lanes.add_to_odd(a * b, c, r)),
    "mad": _arithmetic(3, _fused, lambda r, a, b, c: lanes.add_to_odd(a * b, c, r)),
    "div": _arithmetic(
        2,
        lambda a, b: a / b,
        lambda r, a, b: lanes.divide_to_odd(a, b),
        lambda a, b: a / b,
    ),
    "rcp": _of_upper_half(
        _reciprocal,
        _arithmetic(
            1,
            _reciprocal,
            lambda r, a: lanes.divide_to_odd(a.constant(1.0), a),
            _reciprocal,
        ),
    ),
    "sqrt": _arithmetic(1, _root, lambda r, a: lanes.root_to_odd(a), _root),
    "rsqrt": _of_upper_half(
        lambda a: _reciprocal(_root(a)),
        _arithmetic(1, None, None, lambda a: _reciprocal(_root(a))),
    ),
    "sin": _arithmetic(1, None, None, _library("sin")),
    "cos": _arithmetic(1, None, None, _library("cos")),
    "lg2": _arithmetic(1, None, None, _library("log2")),
    "ex2": _arithmetic(1, None, None, lanes.exp2),
    "tanh": _arithmetic(1, None, None, _library("tanh")),
    "abs": _float_sign,
    "neg": _float_sign,
    "min": _float_minimum,
    "max": _float_minimum,
    "copysign": _copy_sign,
    "testp": _test_property,
}

_SPECIAL = {
    "prmt": _permute,
    "dp4a": _dot_product,
    "dp2a": _dot_product,
    "setp": _set_predicate,
    "set": _set,
    "selp": _select,
    "slct": _select_by_sign,
    "mov": _move,
    "cvta": _convert_address,
    "isspacep": _is_space,
    "cvt": _convert,
}
