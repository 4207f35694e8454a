"""What a PTX instruction is decoded to: rows for the machine, whose operands are rows
of a warp's registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from batchline.bench.measure.emulator.layout import Kind, Space
from batchline.bench.measure.emulator.ptx import Operand, Register

_SPACES = {
    "global": Space.GLOBAL,
    "const": Space.GLOBAL,
    "shared": Space.SHARED,
    "shared::cta": Space.SHARED,
    "shared::cluster": Space.CLUSTER,
    "local": Space.LOCAL,
}


@dataclass(frozen=True)
class Place:
    """A constant whose value is known once the kernel is bound: the address of a
    parameter ("parameter", its offset), of a variable ("variable", its name and what is
    added) or of one in shared memory ("shared", its offset there), or the bytes of an
    argument ("argument", offset, bytes, whether signed).
    """

    what: str
    name: str
    offset: int
    bytes: int = 8
    is_signed: bool = False


@dataclass(frozen=True)
class Row:
    """What the machine executes for (a part of) an instruction."""

    kind: Kind
    operands: tuple[int, ...] = ()
    parameters: tuple[int, ...] = ()
    written: int = 0
    form: object = None
    guard: int | None = None  # the row of a predicate in place of the instruction's


class Operands(Protocol):
    """What finds the rows of an instruction's operands in a warp's registers, and makes
    the row of an arithmetic instruction.
    """

    def offset(self, operand: Operand, operand_type: str) -> int:
        """The row of an operand, which as an immediate is of this type."""

    def address(self, operand: Operand) -> tuple[int, int, int]:
        """The base's row, the offset in bytes and the bytes of the base (0: absolute,
        in the offset alone).
        """

    def temporary(self, name: str, bits: int) -> Register:
        """A register that no PTX text names."""

    def arithmetic(self, opcode: str, operands: Sequence[Operand]) -> Row:
        """The row of an instruction that alu.py knows."""


def named_space(tokens: Sequence[str]) -> Space:
    """The memory that the words of an opcode name."""
    return next((_SPACES[one] for one in tokens if one in _SPACES), Space.GENERIC)
