"""What a cubin holds: its resources and its instructions, read by the disassembler that Triton bundles."""
from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!PT\s)?(?:@!?\w+\s+)?([A-Z][\w.]+)", re.MULTILINE)
_MATRIX = re.compile(r"HMMA|HGMMA|QGMMA|QMMA|IMMA|IGMMA|UTC\w*MMA")
_GLOBAL_LOAD = re.compile(r"(LDG|LDGSTS|UTMALDG|UBLKCP)\b")
_GLOBAL_STORE = re.compile(r"(STG|UTMASTG)\b")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
TMA = "TMA"


@dataclass(frozen=True)
class Binary:
    """One kernel's cubin. Bytes of stack and registers are per thread, of shared memory per block.

    `matrix` counts the tensor-core instructions, `spills` the loads and stores of the stack. `loads` and `stores` count
    the instructions on global memory by the bytes that each moves for a thread ("16", "4"…), or "TMA".
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    matrix: int
    spills: int
    loads: dict[str, int]
    stores: dict[str, int]


def read(cubin: bytes) -> Binary:
    """Disassemble a cubin of one kernel (device functions beside it count with it).

    Raises:
        subprocess.CalledProcessError: if it is no cubin.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([_bundled("cuobjdump"), "--dump-resource-usage", "--dump-sass", file.name],
                              check=True, capture_output=True, text=True).stdout
    resources = {name: max(map(int, re.findall(rf"\b{name}:(\d+)", text))) for name in ("REG", "STACK", "SHARED")}
    # What is predicated on !PT never runs: the assembler pads with such loads.
    instructions = Counter(name for never, name in _INSTRUCTION.findall(text) if not never)
    return Binary(
        resources["REG"], resources["STACK"], resources["SHARED"],
        matrix=sum(count for name, count in instructions.items() if _MATRIX.match(name)),
        spills=sum(count for name, count in instructions.items() if name.partition(".")[0] in ("LDL", "STL")),
        loads=_widths(instructions, _GLOBAL_LOAD), stores=_widths(instructions, _GLOBAL_STORE))


def _widths(instructions: Counter, wanted: re.Pattern) -> dict[str, int]:
    """Counts by bytes, the widest first."""
    found: Counter = Counter()
    for name, count in instructions.items():
        if wanted.match(name):
            parts = name.split(".")
            by_tma = parts[0].startswith("U")
            found[TMA if by_tma else str(next((_BYTES[part] for part in parts if part in _BYTES), 4))] += count
    return dict(sorted(found.items(), key=lambda item: (item[0] != TMA, -int(item[0]) if item[0] != TMA else 0)))


def _bundled(tool: str) -> Path:
    return Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin" / tool
