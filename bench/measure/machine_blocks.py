"""SASS as instructions in basic blocks.

A call leads to what it calls and to what is behind it: the assembler also leaves loops
by calls that never come back. An indirect branch leads nowhere that is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LINE = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;",
    re.MULTILINE,
)
_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_ENDS = ("BRA", "BRX", "EXIT", "RET", "JMP", "JMX", "CALL")
_UNIFORM = re.compile(r"!?UP\d")  # a branch's predicate may stand among its operands


@dataclass(frozen=True)
class Instruction:
    """Its address, its predicate ("" without one), its name and operands, and the
    address that it names last.
    """

    address: int
    predicate: str
    name: str
    operands: str
    target: int | None

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def text(self) -> str:
        return f"{f'@{self.predicate} ' if self.predicate else ''}{self.name} {self.operands}".rstrip()


def instructions(listing: str) -> list[Instruction]:
    """Those that can run, in order, of a listing of `sass`."""
    found = []
    for address, predicate, name, operands in _LINE.findall(listing):
        if predicate != "!PT":  # the assembler pads with such
            target = _TARGET.search(operands)
            found.append(
                Instruction(
                    int(address, 16),
                    predicate,
                    name,
                    operands,
                    int(target[1], 16) if target else None,
                )
            )
    return found


def blocks(
    code: Sequence[Instruction],
) -> tuple[list[list[Instruction]], list[tuple[int, ...]]]:
    """The code cut at what is branched to and behind branches; of each block, which may
    follow.
    """
    targets = {one.target for one in code if one.kind in _ENDS}
    cut: list[list[Instruction]] = [[]]
    for one in code:
        if cut[-1] and (one.address in targets or cut[-1][-1].kind in _ENDS):
            cut.append([])
        cut[-1].append(one)
    begins = {block[0].address: number for number, block in enumerate(cut) if block}
    return cut, [
        _followers(block, number, begins, len(cut)) for number, block in enumerate(cut)
    ]


def _followers(
    block: Sequence[Instruction], number: int, begins: dict[int, int], count: int
) -> tuple[int, ...]:
    onward = (number + 1,) if number + 1 < count else ()
    if not block or block[-1].kind not in _ENDS:
        return onward
    end = block[-1]
    there = (
        (begins[end.target],)
        if end.kind in ("BRA", "JMP", "CALL") and end.target in begins
        else ()
    )
    always = (
        end.predicate in ("", "PT")
        and ".DIV" not in end.name
        and not _UNIFORM.match(end.operands)
    )
    return there + (() if always and end.kind != "CALL" else onward)
