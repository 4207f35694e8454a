"""What cubins hold: their resources and their instructions, read by the tools that
Triton bundles.

The loop in which a kernel's time goes, out of its disassembly, and what each of its
instructions is for.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.kernels import architectures
from batchline.kernels.architectures import Architecture

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
    """Those of a listing (bench.measure.compiled.sass.listing) that can run, in order."""
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


_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!PT\s)?(?:@!?\w+\s+)?([A-Z][\w.]+)", re.MULTILINE
)
_MATRIX = re.compile(r"HMMA|HGMMA|QGMMA|QMMA|IMMA|IGMMA|UTC\w*MMA")
_BARRIER = re.compile(
    r"(BAR|SYNCS|UTCBAR|UCGABAR_\w+)\b"
)  # of a block's threads, in shared memory, of a cluster
_GLOBAL_LOAD = re.compile(r"(LDG|LDGSTS|UTMALDG|UBLKCP)\b")
_GLOBAL_STORE = re.compile(r"(STG|UTMASTG)\b")
TMA = "TMA"


@dataclass(frozen=True)
class Binary:
    """One kernel's cubin. Bytes of stack and registers are per thread, of shared memory
    per block.

    `code_bytes` is the size of the machine code, `matrix` counts the tensor-core
    instructions, `spills` the loads and stores of the stack, `barriers` the
    instructions on barriers (of a block, a cluster, or in shared memory). `loads` and
    `stores` count those on global memory by the bytes that each moves for a thread
    ("16", "4"…), or "TMA". `listing` is the disassembly, with addresses that may begin
    anywhere.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    code_bytes: int
    matrix: int
    spills: int
    barriers: int
    loads: dict[str, int]
    stores: dict[str, int]
    listing: str


def read(cubins: Sequence[bytes], architecture: int) -> list[Binary]:
    """Disassemble cubins of one kernel each (device functions beside it count with it),
    for one architecture.

    All at once: the disassembler takes a third of a second to start, and a few
    milliseconds for a kernel.

    Raises:
        ValueError: if one is no cubin, or it is an architecture whose instructions are
        not known here. subprocess.CalledProcessError: if the disassembler refuses it.
    """
    target = architectures.known(architecture)
    distinct = list(dict.fromkeys(cubins))
    codes = [b"".join(_code_sections(cubin)) for cubin in distinct]
    binaries = {
        cubin: _binary(_resources(cubin), len(code), listed)
        for cubin, code, listed in zip(distinct, codes, _listings(codes, target))
    }
    return [binaries[cubin] for cubin in cubins]


def listing(cubin: bytes, architecture: int) -> str:
    """The disassembly of a cubin's code, an instruction a line, each behind its
    address.
    """
    return _disassembled(
        b"".join(_code_sections(cubin)), architectures.known(architecture)
    )


def _binary(resources: dict[str, int], code_bytes: int, listed: str) -> Binary:
    # What is predicated on !PT never runs: the assembler pads with such loads.
    instructions = Counter(
        name for _, never, name in _INSTRUCTION.findall(listed) if not never
    )
    return Binary(
        resources["REG"],
        resources["STACK"],
        resources["SHARED"],
        code_bytes,
        matrix=sum(
            count for name, count in instructions.items() if _MATRIX.match(name)
        ),
        spills=sum(
            count
            for name, count in instructions.items()
            if name.partition(".")[0] in ("LDL", "STL")
        ),
        barriers=sum(
            count for name, count in instructions.items() if _BARRIER.match(name)
        ),
        loads=_widths(instructions, _GLOBAL_LOAD),
        stores=_widths(instructions, _GLOBAL_STORE),
        listing=listed,
    )


def _code_sections(cubin: bytes) -> Iterator[bytes]:
    """The .text sections of an ELF64 file (System V ABI, "Sections")."""
    if cubin[:4] != b"\x7fELF":
        raise ValueError("not a cubin: it does not start as an ELF file does")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    count, of_names = struct.unpack_from("<HH", cubin, 0x3C)
    headers = [
        struct.unpack_from("<IIQQQQ", cubin, table + 64 * number)
        for number in range(count)
    ]
    names_at = headers[of_names][4]
    for name, _, _, _, offset, size in headers:
        if cubin.startswith(b".text", names_at + name):
            yield cubin[offset : offset + size]


def _listings(codes: Sequence[bytes], target: Architecture) -> list[str]:
    """The disassembly of each of the codes, out of that of all of them in a row."""
    text = _disassembled(b"".join(codes), target)
    lines = {int(line[1], 16): line.start() for line in _INSTRUCTION.finditer(text)}
    ends = list(itertools.accumulate(map(len, codes)))
    return [
        text[lines[end - len(code)] : lines.get(end)] for code, end in zip(codes, ends)
    ]


def _disassembled(code: bytes, target: Architecture) -> str:
    dialect = f"SM{target.number}{target.suffix}"
    return _run("nvdisasm", code, "--no-dataflow", "--binary", dialect) if code else ""


def _resources(cubin: bytes) -> dict[str, int]:
    text = _run("cuobjdump", cubin, "--dump-resource-usage")
    return {
        name: max(map(int, re.findall(rf"\b{name}:(\d+)", text)))
        for name in ("REG", "STACK", "SHARED")
    }


def _run(tool: str, content: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        return subprocess.run(
            [_bundled(tool), *options, file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout


def _widths(instructions: Counter, wanted: re.Pattern) -> dict[str, int]:
    """Counts by bytes, the widest first."""
    found: Counter = Counter()
    for name, count in instructions.items():
        if wanted.match(name):
            parts = name.split(".")
            by_tma = parts[0].startswith("U")
            found[
                (
                    TMA
                    if by_tma
                    else str(
                        next((_BYTES[part] for part in parts if part in _BYTES), 4)
                    )
                )
            ] += count
    return dict(
        sorted(
            found.items(),
            key=lambda item: (item[0] != TMA, -int(item[0]) if item[0] != TMA else 0),
        )
    )


def _bundled(tool: str) -> Path:
    return (
        Path(importlib.util.find_spec("triton").origin).parent
        / "backends/nvidia/bin"
        / tool
    )
