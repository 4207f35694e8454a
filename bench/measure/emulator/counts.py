"""What an execution did, in numbers that are the same each time and on any machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from batchline.bench.measure.emulator import matrix, ptx
from batchline.bench.measure.emulator.layout import Kind
from batchline.bench.measure.emulator.memory_access import SECTOR_BYTES
from batchline.bench.measure.emulator.program import Program
from batchline.bench.measure.emulator.ptx import Instruction

_MATRIX = (
    Kind.MMA,
    Kind.WGMMA,
    Kind.WMMA,
    Kind.TCGEN05_MMA,
    Kind.TCGEN05_PAIR_MMA,
)
_EXCHANGE = (
    Kind.SHUFFLE,
    Kind.VOTE,
    Kind.LDMATRIX,
    Kind.STMATRIX,
    Kind.REDUX,
    Kind.TCGEN05_LD,
    Kind.TCGEN05_ST,
)
_BARRIERS = (Kind.BARRIER, Kind.WARP_SYNC)
_CONTROL = (Kind.BRANCH, Kind.EXIT)
_ASYNCHRONOUS = (
    Kind.COPY,
    Kind.TENSOR_LOAD,
    Kind.TENSOR_STORE,
    Kind.BULK_COPY,
    Kind.TCGEN05_CP,
)
_STORES = (Kind.STORE, Kind.TENSOR_STORE, Kind.WMMA_STORE)
_FLOATS = ("f16", "f32", "f64", "bf16", "f16x2", "bf16x2")
_SHAPE = re.compile(r"\.m(\d+)n(\d+)k(\d+)\.")
_PRODUCT_TYPES = (*matrix.INPUT_TYPES, *matrix.ACCUMULATOR_TYPES, "f64")
_WARPS_OF_WGMMA = 4
_ELEMENT_OF_KIND = {"f16": "f16", "tf32": "tf32", "f8f6f4": "e4m3", "mxf8f6f4": "e4m3"}
_ELEMENT_BYTES = {
    "f16": 2,
    "bf16": 2,
    "tf32": 4,
    "e4m3": 1,
    "e5m2": 1,
    "s8": 1,
    "u8": 1,
}


@dataclass(frozen=True)
class Counts:
    """Of one launch, or of several together.

    Args:
        instructions: PTX instructions that warps executed, each once for a warp.
        by_class: the same by class: float, integer, move (mov, cvt, selp, ...), load,
            store, asynchronous (copies), matrix (mma, wgmma, tcgen05.mma),
            exchange (shuffles, ldmatrix, tcgen05.ld, ...), barrier, control, other.
        sectors: of 32 bytes of global memory that requests touched.
        sectors_needed: the fewest that would have held their bytes.
        passes: of shared memory, one word from each of its 32 banks at most in each.
        requests: the fewest passes that their bytes could have taken.
        read_bytes: asked for of global memory, by loads and copies.
        distinct_bytes: different ones among them; of several launches, of each.
        products: mma, wgmma and tcgen05.mma that were executed, a warp each.
        written_bytes: the sectors needed by stores, in bytes.
        matrix_flops: operations of those products, by the type of A's elements; a
            multiply-add is two.
        operand_bytes: of shared memory, that wgmma and tcgen05.mma read by themselves. `passes` are
            without them.
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
    written_bytes: int = 0
    matrix_flops: Mapping[str, int] = field(default_factory=dict)
    operand_bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            **{
                one.name: _sum(getattr(self, one.name), getattr(other, one.name))
                for one in fields(self)
            }
        )

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
class Product:
    """Of one warp, or of several: the type of A's elements, "bf16", its operations, and the bytes of
    shared memory that it reads for them by itself.
    """

    element: str
    flops: int
    operand_bytes: int


def _sum(one: int | Mapping[str, int], other: int | Mapping[str, int]):
    if isinstance(one, int):
        return one + other
    return dict(sorted((Counter(one) + Counter(other)).items()))


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
    if kind in _EXCHANGE:
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
    tensor_flops: np.ndarray,
    tensor_operand_bytes: np.ndarray,
    read_bytes: int,
    distinct_bytes: int,
) -> Counts:
    """Sum what each row of a program did."""
    by_class: Counter[str] = Counter()
    matrix_flops: Counter[str] = Counter()
    products, written_sectors, operand_bytes = 0, 0, 0
    for row, times in enumerate(executed.tolist()):
        if not times:
            continue
        name = class_of(program, row)
        by_class[name] += times
        if name == "matrix":
            products += times
            made = _products_of(
                program.instruction(row),
                times,
                int(tensor_flops[row]),
                int(tensor_operand_bytes[row]),
            )
            matrix_flops[made.element] += made.flops
            operand_bytes += made.operand_bytes
        if _is_store(program, row):
            written_sectors += int(sectors_needed[row])
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
        SECTOR_BYTES * written_sectors,
        dict(sorted(matrix_flops.items())),
        operand_bytes,
    )


def _is_store(program: Program, row: int) -> bool:
    """Whether it writes global memory, if it is of that."""
    kind = Kind(int(program.words[program.starts[row]]))
    if kind is Kind.BULK_COPY:  # its destination is named first
        return ".global.shared" in program.instruction(row).opcode
    return kind in _STORES


def _products_of(
    instruction: Instruction, times: int, tensor_flops: int, tensor_operand_bytes: int
) -> Product:
    """All that the executions of one instruction multiply. What a tcgen05.mma does the
    machine has counted; a type stands for all of its kind, which have one rate.
    """
    _, is_tensor, kind = instruction.opcode.partition(".kind::")
    if is_tensor:
        return Product(
            _ELEMENT_OF_KIND[kind.partition(".")[0]], tensor_flops, tensor_operand_bytes
        )
    one = product_of(instruction)
    return Product(one.element, times * one.flops, times * one.operand_bytes)


def product_of(instruction: Instruction) -> Product:
    """What a warp does of an mma, a wmma, or a wgmma, which four warps share.

    mma's types are those of D, A, B and C, wgmma's those of D, A and B; wmma of f16 has
    D's and C's alone.
    """
    m, n, k = map(int, _SHAPE.search(instruction.opcode).groups())
    types = [one for one in instruction.opcode.split(".") if one in _PRODUCT_TYPES]
    element = types[1] if len(types) > 2 else "f16"
    if not instruction.opcode.startswith("wgmma"):
        return Product(element, 2 * m * n * k, 0)
    _, a, *_ = instruction.operands
    is_in_registers = len(ptx.flatten((a,))) > 1
    rows = n if is_in_registers else m + n
    read_bytes = rows * k * _ELEMENT_BYTES[element]
    return Product(
        element, 2 * m * n * k // _WARPS_OF_WGMMA, read_bytes // _WARPS_OF_WGMMA
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
