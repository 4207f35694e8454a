"""Integers wider than a register, word by word: a sum hands its carry, or a difference
its borrow, to the next one (PTX ISA, "Extended-Precision Integer Arithmetic").
"""

from __future__ import annotations

from collections.abc import Sequence

from batchline.bench.measure.emulator.lanes import Lanes
from batchline.bench.measure.emulator.ptx import Operand, Register

CARRY = "CC.CF"  # the register of the condition code: a predicate of each thread
TYPES = ("u32", "s32", "u64", "s64", "b32", "b64")
_BASES = ("add", "sub", "mad")
_READERS = ("addc", "subc", "madc")


def writes_carry(opcode: str) -> bool:
    base, *words = opcode.split(".")
    return "cc" in words and base in (*_BASES, *_READERS)


def reads_carry(opcode: str) -> bool:
    return opcode.split(".")[0] in _READERS


def with_carry(opcode: str, operands: Sequence[Operand]) -> tuple[Operand, ...]:
    """An instruction's operands with the condition code behind what it writes, and
    behind what it reads.
    """
    result, *rest = operands
    carry = [Register(CARRY)]
    written = carry if writes_carry(opcode) else []
    read = carry if reads_carry(opcode) else []
    return (result, *written, *rest, *read)


def add(a: Lanes, b: Lanes, carry: Lanes | None = None) -> tuple[Lanes, Lanes]:
    """The sum with what is carried in, and whether it has wrapped."""
    total = a + b
    wraps = total.compare("ult", a)
    if carry is None:
        return total, wraps
    carried = carry.choose(total.constant(1), 0)
    result = total + carried
    return result, wraps | result.compare("ult", carried)


def subtract(a: Lanes, b: Lanes, borrow: Lanes | None = None) -> tuple[Lanes, Lanes]:
    """The difference with what is borrowed, and whether it has wrapped."""
    difference = a - b
    wraps = a.compare("ult", b)
    if borrow is None:
        return difference, wraps
    borrowed = borrow.choose(difference.constant(1), 0)
    return difference - borrowed, wraps | difference.compare("ult", borrowed)
