"""The loop in which a kernel's time goes, out of its disassembly, and what each of its
instructions is for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(\S.*?)\s*;", re.MULTILINE)
_OPCODE = re.compile(r"^(?:@!?\w+\s+)?([A-Z][\w.]*)")
_JUMP = re.compile(r"\bBRA(?:\.\w+)*\s.*?0x([0-9a-f]+)\s*$")
_NEVER = "@!PT"  # what never runs: the assembler pads with such loads
TENSOR, GLOBAL_LOAD, OTHER = "tensor core", "global load", "integer, address, move"
_KINDS = (  # the first that fits
    (TENSOR, r"HMMA|HGMMA|QGMMA|QMMA|IMMA|IGMMA|DMMA|UTC\w*MMA"),
    (GLOBAL_LOAD, r"LDG|LDGSTS|UTMALDG|UBLKCP"),
    ("global store", r"STG|UTMASTG|RED|ATOMG"),
    ("shared load", r"LDS|LDSM|LDTM"),
    ("shared store", r"STS|STSM|STTM"),
    ("spill", r"LDL|STL"),
    (
        "barrier or wait",
        r"BAR|SYNCS|DEPBAR|LDGDEPBAR|WARPGROUP|WARPSYNC|UTCBAR|UCGABAR\w*|FENCE|MEMBAR|ERRBAR|CCTL",
    ),
    ("multiply or add", r"[FHD](FMA|MUL|ADD)\w*"),
    ("conversion", r"[FI]2\w+|HADD2_32|PRMT|FRND"),
    ("between threads", r"SHFL|VOTE|MATCH|REDUX|R2UR"),
    ("constant load", r"LDC\w*|ULDC|LDCU"),
    ("branch", r"BRA|EXIT|BSSY|BSYNC|BREAK|CALL|RET|JMP|BRX"),
)
_PATTERNS = tuple((kind, re.compile(rf"(?:{names})(?:\.|$)")) for kind, names in _KINDS)
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address, its text, what kind of work it is; `loops_to` where
    it jumps back to, or None.
    """

    address: int
    text: str
    kind: str
    loops_to: int | None


def instructions(listing: str) -> list[Instruction]:
    """Those of a listing (bench.measure.sass.listing) that can run, in order."""
    return [
        _instruction(int(address, 16), " ".join(text.split()))
        for address, text in _LINE.findall(listing)
        if not text.startswith(_NEVER)
    ]


def hot_loop(code: Sequence[Instruction]) -> list[Instruction]:
    """The innermost loop with the most tensor-core instructions, or else global loads,
    or else the longest; [] without.

    A loop is what a jump goes back over; innermost ones hold no other. Unrolled copies
    of a loop are loops of their own, and then one of them is given.
    """
    spans = [(one.loops_to, one.address) for one in code if one.loops_to is not None]
    inner = [
        (first, last)
        for first, last in spans
        if not any(
            first <= begin and end <= last and (begin, end) != (first, last)
            for begin, end in spans
        )
    ]
    loops = [
        [one for one in code if first <= one.address <= last] for first, last in inner
    ]
    return max(
        loops,
        key=lambda loop: (_count(loop, TENSOR), _count(loop, GLOBAL_LOAD), len(loop)),
        default=[],
    )


def work(loop: Sequence[Instruction]) -> list[tuple[str, int]]:
    """How many instructions of each kind, the most first."""
    return Counter(one.kind for one in loop).most_common()


def _count(loop: Sequence[Instruction], kind: str) -> int:
    return sum(one.kind.startswith(kind) for one in loop)


def _instruction(address: int, text: str) -> Instruction:
    found = _OPCODE.match(text)
    jump = _JUMP.search(text)
    target = int(jump.group(1), 16) if jump else None
    return Instruction(
        address,
        text,
        _kind(found.group(1) if found else text),
        target if target is not None and target < address else None,
    )


def _kind(opcode: str) -> str:
    kind = next((kind for kind, pattern in _PATTERNS if pattern.match(opcode)), OTHER)
    if kind not in (GLOBAL_LOAD, "global store", "shared load", "shared store"):
        return kind
    if opcode.startswith("U"):
        return f"{kind}, TMA"
    if opcode.startswith(("LDSM", "STSM", "LDTM", "STTM")):
        return f"{kind}, matrices"
    return f"{kind}, {next((_BYTES[part] for part in opcode.split('.') if part in _BYTES), 4)} B"
