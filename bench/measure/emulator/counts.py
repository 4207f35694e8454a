"""What an execution did, in numbers that are the same each time and on any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from batchline.bench.measure.emulator.layout import Kind
from batchline.bench.measure.emulator.program import Program

_MATRIX = (Kind.MMA, Kind.WGMMA, Kind.WMMA)
_BARRIERS = (Kind.BARRIER, Kind.WARP_SYNC)
_CONTROL = (Kind.BRANCH, Kind.EXIT)
_ASYNCHRONOUS = (Kind.COPY, Kind.TENSOR_LOAD, Kind.TENSOR_STORE, Kind.BULK_COPY)
_FLOATS = ("f16", "f32", "f64", "bf16", "f16x2", "bf16x2")


@dataclass(frozen=True)
class Counts:
    """Of one launch, or of several together.

    Args:
        instructions: PTX instructions that warps executed, each once for a warp.
        by_class: the same by class: float, integer, move (mov, cvt, selp, ...), load,
            store, asynchronous (copies), matrix (mma, wgmma), exchange (shuffles,
            ldmatrix, ...), barrier, control, other.
        sectors: of 32 bytes of global memory that requests touched.
        sectors_needed: the fewest that would have held their bytes.
        passes: of shared memory, one word from each of its 32 banks at most in each.
        requests: the fewest passes that their bytes could have taken.
        read_bytes: asked for of global memory, by loads and copies.
        distinct_bytes: different ones among them; of several launches, of each.
        products: mma and wgmma that were executed, a warp each.
    """

    instructions: int
    by_class: Mapping[str, int]
    sectors: int
    sectors_needed: int
    passes: int
    requests: int
    read_bytes: int
    distinct_bytes: int
    products: int

    def __add__(self, other: Counts) -> Counts:
        numbers = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "by_class"
        }
        both = Counter(self.by_class)
        both.update(other.by_class)
        return Counts(by_class=dict(sorted(both.items())), **numbers)

    @property
    def sector_excess(self) -> float | None:
        """Sectors asked for over sectors needed; None where none was."""
        return self.sectors / self.sectors_needed if self.sectors_needed else None

    @property
    def bank_excess(self) -> float | None:
        """Passes of shared memory over the fewest; None where none was needed."""
        return self.passes / self.requests if self.requests else None

    @property
    def reads(self) -> float | None:
        """Bytes read over distinct bytes: how often each is read; None without any."""
        return self.read_bytes / self.distinct_bytes if self.distinct_bytes else None


@dataclass(frozen=True)
class LineCounts:
    """What the instructions of one line of the source did."""

    line: str
    instructions: int
    sectors: int
    sectors_needed: int
    passes: int
    requests: int


def class_of(program: Program, row: int) -> str:
    """The class of a row of a program; see `Counts`."""
    kind = Kind(int(program.words[program.starts[row]]))
    if kind is Kind.ARITHMETIC:
        return _class_of_arithmetic(program.instruction(row).opcode)
    if kind in (Kind.LOAD, Kind.ATOMIC, Kind.WMMA_LOAD):
        return "load"
    if kind in (Kind.STORE, Kind.WMMA_STORE):
        return "store"
    for kinds, name in (
        (_MATRIX, "matrix"),
        (_BARRIERS, "barrier"),
        (_CONTROL, "control"),
        (_ASYNCHRONOUS, "asynchronous"),
    ):
        if kind in kinds:
            return name
    if kind in (Kind.SHUFFLE, Kind.VOTE, Kind.LDMATRIX, Kind.STMATRIX, Kind.REDUX):
        return "exchange"
    return "other"


def _class_of_arithmetic(opcode: str) -> str:
    head, *rest = opcode.split(".")
    if head in ("mov", "cvt", "selp", "cvta", "ld", "prmt"):
        return "move"
    return "float" if rest and rest[-1] in _FLOATS else "integer"


def count(
    program: Program,
    executed: np.ndarray,
    sectors: np.ndarray,
    sectors_needed: np.ndarray,
    passes: np.ndarray,
    requests: np.ndarray,
    read_bytes: int,
    distinct_bytes: int,
) -> Counts:
    """Sum what each row of a program did."""
    by_class: Counter[str] = Counter()
    products = 0
    for row, times in enumerate(executed.tolist()):
        if times:
            name = class_of(program, row)
            by_class[name] += times
            products += times if name == "matrix" else 0
    return Counts(
        int(executed.sum()),
        dict(sorted(by_class.items())),
        int(sectors.sum()),
        int(sectors_needed.sum()),
        int(passes.sum()),
        int(requests.sum()),
        read_bytes,
        distinct_bytes,
        products,
    )


def count_lines(executions: Iterable) -> list[LineCounts]:
    """What each line of the source did in these executions, the busiest first."""
    sums: dict[str, np.ndarray] = {}
    for execution in executions:
        program = execution.program
        arrays = [
            getattr(execution, name)
            for name in (
                "executed",
                "sectors",
                "sectors_needed",
                "passes",
                "requests",
            )
        ]
        for row in range(len(program.forms)):
            source = program.instruction(row).source
            line = source.user_line if source else "the PTX alone"
            numbers = np.array([int(array[row]) for array in arrays])
            sums[line] = sums.get(line, 0) + numbers
    return sorted(
        (LineCounts(line, *map(int, numbers)) for line, numbers in sums.items()),
        key=lambda one: -one.instructions,
    )
