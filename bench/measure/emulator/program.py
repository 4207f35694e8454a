"""From a kernel's PTX to the rows of words that the machine executes.

Raises UnknownOpcode for a form of an instruction that the machine does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from batchline.bench.measure.emulator import (
    alu,
    clusters,
    copy_arrivals,
    matrix,
    matrix_units,
    ptx,
    tensor_maps,
    tcgen05,
    wmma,
)
from batchline.bench.measure.emulator.calls import inline_calls
from batchline.bench.measure.emulator.carries import (
    CARRY,
    reads_carry,
    with_carry,
    writes_carry,
)
from batchline.bench.measure.emulator.layout import (
    ACQUIRES,
    IS_OF_BLOCK,
    IS_READ_ONLY,
    IS_STRONG,
    FEEDS_WGMMA,
    GUARD_NEGATED,
    HAS_RESULT,
    LANES,
    LOCAL_WINDOW,
    RELEASES,
    SHARED_WINDOW,
    WRITTEN_SHIFT,
    BulkCopy,
    Kind,
    MbarrierAction,
    Number,
    Space,
    Update,
)
from batchline.bench.measure.emulator.rows import Place, Row, named_space
from batchline.bench.measure.emulator.shared_arrays import SharedLayout, lay_out_shared
from batchline.bench.measure.emulator.tensor_maps import REDUCTIONS, reduces
from batchline.bench.measure.emulator.ptx import (
    Address,
    Immediate,
    Instruction,
    Register,
    Sink,
    Special,
    Symbol,
    UnknownOpcode,
)

_ROW_BYTES = 64  # rows of registers are aligned to it
SINK_BYTES = 512
_CHOSEN = "brx.idx"  # a predicate: the index is that of the target at hand
# Their parameters begin with the space, a count and the bytes of an element.
_ACCESSES = (Kind.LOAD, Kind.STORE, Kind.ATOMIC, Kind.WMMA_LOAD, Kind.WMMA_STORE)
_VECTORS = {"v2": 2, "v4": 4, "v8": 8}


@dataclass(frozen=True, eq=False)
class Program:
    """A kernel as rows of int32 words.

    `words` holds the rows one after another and `starts` where each begins;
    `instruction_of` names, for each row, the number of the PTX instruction it is of;
    `forms` the arithmetic form of a row, or None. `constants` are (offset in a warp's
    registers, bytes of an element, elements, its bits or Place); `specials` the offset of each
    special register's row by its name.
    """

    kernel: ptx.Kernel
    variables: dict[str, ptx.Variable]
    words: np.ndarray
    starts: np.ndarray
    instruction_of: np.ndarray
    forms: tuple
    constants: tuple[tuple[int, int, int, object], ...]
    specials: dict[str, int]
    register_bytes: int
    shared: SharedLayout
    local_bytes: int
    kinds: frozenset[Kind]
    narrowest_shared: int
    narrowest_global: int
    has_atomics: bool  # or what is ordered like them
    errors: tuple[str, ...] = ()

    def instruction(self, row: int) -> Instruction:
        """The PTX instruction of a row."""
        return self.kernel.instructions[int(self.instruction_of[row])]


def decode(module: ptx.Module, name: str) -> Program:
    """The program of a module's kernel.

    Raises:
        UnknownOpcode: for an instruction that the machine does not know. KeyError: if
        there is no such kernel.
    """
    return _Decoder(module, inline_calls(module, module.kernels[name])).decode()


@dataclass
class _Registers:
    """Where rows lie in a warp's registers: declared ones, constants, specials."""

    widths: dict[str, int]
    offsets: dict[str, int] = field(default_factory=dict)
    constants: dict[tuple[int, object], int] = field(default_factory=dict)
    specials: dict[str, int] = field(default_factory=dict)
    size: int = SINK_BYTES  # the sink lies first

    def place(self, name: str) -> int:
        if name not in self.offsets:
            self.offsets[name] = self._take(self.widths[name])
        return self.offsets[name]

    def constant(self, width: int, value: object) -> int:
        key = width, value
        if key not in self.constants:
            self.constants[key] = self._take(width)
        return self.constants[key]

    def special(self, name: str) -> int:
        if name not in self.specials:
            self.specials[name] = self._take(special_width(name))
        return self.specials[name]

    def _take(self, width: int) -> int:
        before = self.size
        needed = 4 if width == 1 else LANES * width // 8
        self.size += -(-needed // _ROW_BYTES) * _ROW_BYTES
        return before


def special_width(name: str) -> int:
    """Bits of a special register."""
    wide = ("%clock64", "%globaltimer", "%gridid", "%clock_hi", "%aggr_smem_size")
    return 64 if name in wide[:3] else 32


class _Decoder:
    def __init__(self, module: ptx.Module, kernel: ptx.Kernel):
        self._module, self._kernel = module, kernel
        self._registers = _Registers(dict(kernel.registers))
        self._parameters = {one.name: one for one in kernel.parameters}
        self._shared = lay_out_shared(
            [
                *(v for v in module.variables.values() if v.space == "shared"),
                *kernel.shared,
            ]
        )
        self._local, self._local_bytes = _lay_out(kernel.local)
        self._feeding = self._feeding_registers()

    def decode(self) -> Program:
        rows: list[tuple[Instruction, Row]] = []
        first_row: list[int] = []
        for instruction in self._kernel.instructions:
            first_row.append(len(rows))
            rows += [(instruction, row) for row in self._rows(instruction)]
        first_row.append(len(rows))
        words, starts = self._write(rows, first_row)
        shared = [
            row.parameters[2]
            for _, row in rows
            if row.kind in _ACCESSES
            and row.parameters[0] in (Space.SHARED, Space.CLUSTER, Space.GENERIC)
        ]
        in_global = [
            row.parameters[2]
            for _, row in rows
            if row.kind in _ACCESSES
            and row.parameters[0] in (Space.GLOBAL, Space.GENERIC)
        ]
        registers = self._registers
        return Program(
            self._kernel,
            self._module.variables,
            words,
            starts,
            np.array([instruction.index for instruction, _ in rows], np.int32),
            tuple(row.form for _, row in rows),
            tuple(
                (offset, *((4, 1) if width == 1 else (width // 8, LANES)), value)
                for (width, value), offset in registers.constants.items()
            ),
            dict(registers.specials),
            registers.size,
            self._shared,
            self._local_bytes,
            frozenset(row.kind for _, row in rows),
            min(shared, default=4),
            min(in_global, default=4),
            any(_is_like_an_atomic(row) for _, row in rows),
        )

    def _write(self, rows, first_row) -> tuple[np.ndarray, np.ndarray]:
        words: list[int] = []
        starts: list[int] = []
        for instruction, row in rows:
            starts.append(len(words))
            guard, flags = -1, row.written << WRITTEN_SHIFT
            if row.guard is not None:
                guard = row.guard
            elif instruction.guard is not None:
                guard = self._registers.place(instruction.guard)
                flags |= GUARD_NEGATED if instruction.guard_negated else 0
            if self._feeding.intersection(row.operands[: row.written]):
                if row.kind != Kind.WGMMA:
                    flags |= FEEDS_WGMMA
            parameters = list(row.parameters)
            if row.kind is Kind.BRANCH:
                parameters[0] = first_row[parameters[0]]
            parameters += [0] * (8 - len(parameters))
            words += [int(row.kind), guard, flags, len(row.operands), *parameters]
            words += row.operands
        starts.append(len(words))
        return np.array(words, np.int32), np.array(starts, np.int32)

    def _feeding_registers(self) -> frozenset[int]:
        """The rows of the registers that wgmma reads or accumulates in."""
        feeding = set()
        for instruction in self._kernel.instructions:
            if instruction.opcode.startswith("wgmma.mma_async"):
                for operand in ptx.flatten(instruction.operands):
                    if isinstance(operand, Register):
                        if self._registers.widths[operand.name] == 32:
                            feeding.add(self._registers.place(operand.name))
        return frozenset(feeding)

    # --- operands -------------------------------------------------------------------

    def offset(self, operand, operand_type: str) -> int:
        """The row of an operand, which as an immediate is of this type."""
        if isinstance(operand, Register):
            return self._registers.place(operand.name)
        if isinstance(operand, Sink):
            return 0
        if isinstance(operand, Special):
            return self._special(operand.name)
        width = 1 if operand_type == "pred" else int(operand_type[1:])
        if isinstance(operand, Immediate):
            bits = operand.bits(operand_type)
            if width == 1:  # in all lanes
                bits = 0xFFFFFFFF if bits else 0
            return self._registers.constant(width, bits)
        if isinstance(operand, Symbol):
            return self._registers.constant(width, self._value_of(operand))
        raise ValueError(f"{operand} where an operand is due")

    def _special(self, name: str) -> int:
        if name == "WARP_SZ":
            return self._registers.constant(32, LANES)
        if name not in SPECIALS:
            raise UnknownOpcode(f"the special register {name}")
        return self._registers.special(name)

    def temporary(self, name: str, bits: int) -> Register:
        """A register that no PTX text names."""
        self._registers.widths[name] = bits
        return Register(name)

    def _value_of(self, symbol: Symbol) -> object:
        """A symbol's address, in shared memory with the rank of the block."""
        if symbol.name in self._shared.offsets:
            return Place("shared", symbol.name, self._symbol(symbol))
        return self._symbol(symbol)

    def _symbol(self, symbol: Symbol) -> object:
        name, offset = symbol.name, symbol.offset
        if name in self._shared.offsets:
            return self._shared.offsets[name] + offset
        if name in self._local:
            return self._local[name] + offset
        if name in self._parameters:
            return Place("parameter", name, self._parameters[name].offset + offset)
        if name in self._module.variables:
            return Place("variable", name, offset)
        raise ValueError(f"{name} is not declared")

    def _width(self, operand) -> int | None:
        """Bits of a register; None for what has none of its own."""
        if isinstance(operand, Register):
            return self._registers.widths[operand.name]
        if isinstance(operand, Special):
            return special_width(operand.name)
        return None

    def _widths_within(self, operand) -> list[int | None]:
        """Those of the operands in a vector or a pair, where `_` is as wide as its
        neighbours.
        """
        inside = ptx.flatten((operand,))
        widths = [self._width(one) for one in inside]
        known = next((width for width in widths if width is not None), None)
        return [
            known if isinstance(one, Sink) else width
            for one, width in zip(inside, widths)
        ]

    def address(self, operand) -> tuple[int, int, int]:
        """The base's row, the offset in bytes and the bytes of the base (0: absolute,
        in the offset alone).
        """
        if not isinstance(operand, Address):
            raise ValueError(f"{operand} where an address is due")
        base = operand.base
        if base is None:
            return 0, operand.offset, 0
        if isinstance(base, Register):
            width = self._registers.widths[base.name]
            return self._registers.place(base.name), operand.offset, width // 8
        value = self._symbol(Symbol(base.name, getattr(base, "offset", 0)))
        if isinstance(value, int):
            return 0, value + operand.offset, 0
        return self._registers.constant(64, value), operand.offset, 8

    # --- instructions ---------------------------------------------------------------

    def _rows(self, instruction: Instruction) -> Iterator[Row]:
        head = instruction.opcode.split(".")[0]
        decoder = _DECODERS.get(head)
        if decoder is not None:
            yield from decoder(self, instruction)
        elif writes_carry(instruction.opcode) or reads_carry(instruction.opcode):
            self.temporary(CARRY, 1)
            operands = with_carry(instruction.opcode, instruction.operands)
            yield self.arithmetic(instruction.opcode, operands)
        else:
            yield self.arithmetic(instruction.opcode, instruction.operands)

    def arithmetic(self, opcode: str, operands: Sequence) -> Row:
        flat = ptx.flatten(tuple(operands))
        widths = [
            width for operand in operands for width in self._widths_within(operand)
        ]
        negated = frozenset(
            place
            for place, operand in enumerate(flat)
            if isinstance(operand, Register) and operand.negated
        )
        form = alu.form(opcode, tuple(widths), negated)
        return Row(
            Kind.ARITHMETIC,
            tuple(
                self.offset(operand, kind)
                for operand, kind in zip(flat, form.operand_types)
            ),
            written=form.writes,
            form=form,
        )

    def _branch(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        if tokens not in (["bra"], ["bra", "uni"]):
            raise UnknownOpcode(instruction.opcode)
        target = instruction.operands[0].name
        yield Row(Kind.BRANCH, parameters=(self._kernel.labels[target],))

    def _branch_by_index(self, instruction: Instruction) -> Iterator[Row]:
        """brx.idx: a comparison and a branch for each target. A thread whose index is
        beyond the list, which PTX leaves open, asks again for ever: a hang.
        """
        tokens = instruction.opcode.split(".")
        if tokens not in (["brx", "idx"], ["brx", "idx", "uni"]) or instruction.guard:
            raise UnknownOpcode(instruction.opcode)
        index, targets = instruction.operands
        chosen = self.temporary(_CHOSEN, 1)
        for number, target in enumerate(self._kernel.branch_targets[targets.name]):
            wanted = Immediate(str(number), "integer", number)
            yield self.arithmetic("setp.eq.u32", (chosen, index, wanted))
            yield Row(
                Kind.BRANCH,
                parameters=(self._kernel.labels[target],),
                guard=self._registers.place(_CHOSEN),
            )
        yield Row(Kind.BRANCH, parameters=(instruction.index,))

    def _exit(self, instruction: Instruction) -> Iterator[Row]:
        yield Row(Kind.EXIT)

    def _trap(self, instruction: Instruction) -> Iterator[Row]:
        yield Row(Kind.TRAP)
        yield Row(Kind.EXIT)

    def _nothing(self, instruction: Instruction) -> Iterator[Row]:
        yield Row(Kind.NOTHING)

    def _load(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        kind = tokens[-1]
        if kind in ("b128",) or "async" in tokens:
            raise UnknownOpcode(instruction.opcode)
        size, signed = int(kind[1:]) // 8, kind[0] == "s"
        target, source = instruction.operands[0], instruction.operands[1]
        targets = ptx.flatten((target,))
        if "param" in tokens:
            yield from self._load_argument(instruction, targets, source, size, signed)
            return
        base, offset, width = self.address(source)
        yield Row(
            Kind.LOAD,
            (*(self.offset(one, f"b{8 * size}") for one in targets), base),
            (
                named_space(tokens),
                len(targets),
                size,
                self._register_bytes(targets, size),
                offset,
                width,
                int(signed),
                _semantics(tokens),
            ),
            written=len(targets),
        )

    def _load_argument(self, instruction, targets, source, size, signed):
        """ld.param: its value is known before the kernel starts."""
        base = source.base
        if not isinstance(base, Symbol) or base.name not in self._parameters:
            raise UnknownOpcode(f"{instruction.opcode} from an address in a register")
        first = self._parameters[base.name].offset + base.offset + source.offset
        for number, target in enumerate(targets):
            width = self._width(target) or 8 * size
            place = Place(
                "argument", base.name, first + number * size, size, bool(signed)
            )
            value = self._registers.constant(width, place)
            form = alu.form(f"mov.b{width}", (width, width), frozenset())
            yield Row(
                Kind.ARITHMETIC,
                (self.offset(target, f"b{width}"), value),
                written=1,
                form=form,
            )

    def _register_bytes(self, operands, size: int) -> int:
        widths = [self._width(one) for one in operands]
        return max((width // 8 for width in widths if width), default=size)

    def _store(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        kind = tokens[-1]
        if kind == "b128" or "async" in tokens or "param" in tokens:
            raise UnknownOpcode(instruction.opcode)
        size = int(kind[1:]) // 8
        sources = ptx.flatten((instruction.operands[1],))
        base, offset, width = self.address(instruction.operands[0])
        bytes_each = self._register_bytes(sources, size)
        constant = f"{'f' if kind[0] == 'f' else 'b'}{8 * bytes_each}"
        yield Row(
            Kind.STORE,
            (base, *(self.offset(one, constant) for one in sources)),
            (
                named_space(tokens),
                len(sources),
                size,
                bytes_each,
                offset,
                width,
                0,
                _semantics(tokens),
            ),
        )

    def _atomic(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        has_result = tokens[0] == "atom"
        kind = tokens[-1]
        update = next((_UPDATES[one] for one in tokens if one in _UPDATES), None)
        number = _NUMBERS.get(kind, _NUMBERS.get(kind[:1]))
        if update is None or number is None or kind == "b128":
            raise UnknownOpcode(instruction.opcode)
        if kind == "b16" and update is not Update.COMPARE:
            raise UnknownOpcode(instruction.opcode)
        if "async" in tokens:
            raise UnknownOpcode(instruction.opcode)
        size = 4 if kind.endswith("x2") else int(kind.lstrip("bfsu")) // 8
        operands = list(instruction.operands)
        targets = ptx.flatten((operands.pop(0),)) if has_result else ()
        base, offset, width = self.address(operands.pop(0))
        elements = next((_VECTORS[one] for one in tokens if one in _VECTORS), 1)
        constant = f"{'f' if number is Number.FLOAT else 'b'}{8 * size}"
        values = [self.offset(one, constant) for one in ptx.flatten(operands[:2])]
        action = int(update) | (HAS_RESULT if has_result else 0) | _semantics(tokens)
        if len(values) == 1:
            values.append(values[0])
        results = [self.offset(one, constant) for one in targets]
        yield Row(
            Kind.ATOMIC,
            (*results, base, *values),
            (
                named_space(tokens),
                elements,
                size,
                size,
                offset,
                width,
                int(number),
                action,
            ),
            written=len(results),
        )

    def _barrier(self, instruction: Instruction) -> Iterator[Row]:
        tokens = [one for one in instruction.opcode.split(".") if one != "cta"]
        if tokens[1] == "cluster":
            yield from clusters.decode_barrier(self, instruction)
            return
        if tokens[1] == "warp":
            yield Row(Kind.WARP_SYNC, (self.offset(instruction.operands[0], "b32"),))
            return
        modes = {"sync": 0, "arrive": 1, "popc": 2, "and": 3, "or": 4}
        word = tokens[2] if tokens[1] == "red" else tokens[1]
        if word not in modes:
            raise UnknownOpcode(instruction.opcode)
        mode = modes[word]
        if mode < 2:
            operands = [self.offset(one, "b32") for one in instruction.operands]
            yield Row(Kind.BARRIER, tuple(operands), (mode,))
            return
        target, *rest, asked = instruction.operands
        yield Row(
            Kind.BARRIER,
            (
                self.offset(target, "b32" if mode == 2 else "pred"),
                *(self.offset(one, "b32") for one in rest),
                self.offset(asked, "pred"),
            ),
            (mode, int(getattr(asked, "negated", False))),
            written=1,
        )

    def _shuffle(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        modes = {"up": 0, "down": 1, "bfly": 2, "idx": 3}
        if len(tokens) != 4 or tokens[1] != "sync":
            raise UnknownOpcode(instruction.opcode)
        first, *rest = instruction.operands
        target, valid = _pair(first)
        yield Row(
            Kind.SHUFFLE,
            (
                self.offset(target, "b32"),
                self.offset(valid, "pred"),
                *(self.offset(one, "b32") for one in rest),
            ),
            (modes[tokens[2]],),
            written=2,
        )

    def _vote(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        modes = {"all": 0, "any": 1, "uni": 2, "ballot": 3}
        if tokens[1] != "sync" or tokens[2] not in modes:
            raise UnknownOpcode(instruction.opcode)
        mode = modes[tokens[2]]
        target, asked, members = instruction.operands
        yield Row(
            Kind.VOTE,
            (
                self.offset(target, "b32" if mode == 3 else "pred"),
                self.offset(asked, "pred"),
                self.offset(members, "b32"),
            ),
            (mode, int(getattr(asked, "negated", False))),
            written=1,
        )

    def _active_mask(self, instruction: Instruction) -> Iterator[Row]:
        yield Row(
            Kind.ACTIVE_MASK, (self.offset(instruction.operands[0], "b32"),), written=1
        )

    def _match(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        if tokens[2] != "sync":
            raise UnknownOpcode(instruction.opcode)
        size = int(tokens[3][1:])
        first, value, members = instruction.operands
        target, valid = _pair(first)
        yield Row(
            Kind.MATCH,
            (
                self.offset(target, "b32"),
                self.offset(valid, "pred"),
                self.offset(value, f"b{size}"),
                self.offset(members, "b32"),
            ),
            (int(tokens[1] == "all"), size // 8),
            written=2,
        )

    def _redux(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        names = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5}
        if len(tokens) != 4 or tokens[2] not in names or tokens[3][0] == "f":
            raise UnknownOpcode(instruction.opcode)
        yield Row(
            Kind.REDUX,
            tuple(self.offset(one, "b32") for one in instruction.operands),
            (names[tokens[2]], int(tokens[3] == "s32")),
            written=1,
        )

    def _elect(self, instruction: Instruction) -> Iterator[Row]:
        first, members = instruction.operands
        target, valid = _pair(first)
        yield Row(
            Kind.ELECT,
            (
                self.offset(target, "b32"),
                self.offset(valid, "pred"),
                self.offset(members, "b32"),
            ),
            written=2,
        )

    def _cp(self, instruction: Instruction) -> Iterator[Row]:
        opcode = instruction.opcode
        tokens = opcode.split(".")
        operands = instruction.operands
        if tokens[1] != "async" and not opcode.startswith("cp.reduce"):
            raise UnknownOpcode(opcode)
        if opcode == "cp.async.commit_group":
            yield Row(Kind.COPY_COMMIT)
        elif opcode == "cp.async.wait_group":
            yield Row(Kind.COPY_WAIT, parameters=(operands[0].value, 0))
        elif opcode == "cp.async.wait_all":
            yield Row(Kind.COPY_WAIT, parameters=(0, 1))
        elif tokens[2] in ("ca", "cg"):
            yield self._copy(operands)
        elif opcode == "cp.async.bulk.commit_group":
            yield Row(Kind.BULK_COMMIT)
        elif opcode.startswith("cp.async.bulk.wait_group"):
            is_read = int(tokens[-1] == "read")
            yield Row(Kind.BULK_WAIT, parameters=(operands[0].value, is_read))
        elif tokens[:4] == ["cp", "async", "bulk", "tensor"]:
            yield self._tensor_copy(instruction, tokens)
        elif tokens[:5] == ["cp", "reduce", "async", "bulk", "tensor"]:
            yield self._tensor_copy(instruction, ["cp", *tokens[2:]])
        elif tokens[1] == "reduce":
            yield self._bulk_copy(instruction, ["cp", *tokens[2:]])
        elif tokens[2] == "bulk":
            yield self._bulk_copy(instruction, tokens)
        elif tokens[2] == "mbarrier":
            yield from copy_arrivals.decode(self, instruction)
        else:
            raise UnknownOpcode(opcode)

    def _copy(self, operands) -> Row:
        to, to_offset, to_width = self.address(operands[0])
        source, from_offset, from_width = self.address(operands[1])
        rest = operands[3:]
        if rest and self._width(rest[0]) in (1, 64):
            raise UnknownOpcode("cp.async with a predicate or a cache policy")
        sizes = [self.offset(rest[0], "b32")] if rest else []
        return Row(
            Kind.COPY,
            (to, source, *(sizes or [0])),
            (
                operands[2].value,
                int(bool(sizes)),
                to_offset,
                from_offset,
                to_width,
                from_width,
            ),
        )

    def _tensor_copy(self, instruction: Instruction, tokens) -> Row:
        """cp.async.bulk.tensor, in tile mode, from this block's shared memory, or to
        that of one or several blocks of its cluster.
        """
        rank = int(tokens[4][0])
        words = set(tokens[5:])
        if words & {"im2col", "im2col_no_offs"}:
            raise UnknownOpcode(instruction.opcode)
        operands = instruction.operands
        memory = [one for one in tokens[5:] if not one.startswith("cta_group::")]
        if memory[0] in ("shared::cta", "shared::cluster") and memory[1] == "global":
            to, to_offset, to_width = self.address(operands[0])
            coordinates = operands[1].coordinates
            base, base_offset, _ = self.address(Address(operands[1].base))
            bar, bar_offset, bar_width = self.address(operands[2])
            blocks = self._blocks(words, operands[3:])
            return Row(
                Kind.TENSOR_LOAD,
                (
                    to,
                    base,
                    bar,
                    *(self.offset(one, "b32") for one in coordinates),
                    *blocks,
                ),
                (
                    rank,
                    to_offset,
                    base_offset,
                    bar_offset,
                    to_width,
                    bar_width,
                    len(blocks),
                    int("cta_group::2" in words),
                ),
            )
        if memory[:2] == ["global", "shared::cta"]:
            coordinates = operands[0].coordinates
            base, base_offset, _ = self.address(Address(operands[0].base))
            source, offset, width = self.address(operands[1])
            return Row(
                Kind.TENSOR_STORE,
                (
                    source,
                    base,
                    0,
                    *(self.offset(one, "b32") for one in coordinates),
                ),
                (rank, offset, base_offset, 0, width, 0, _reduction(words)),
            )
        raise UnknownOpcode(instruction.opcode)

    def _blocks(self, words: Iterable[str], operands: Sequence) -> tuple[int, ...]:
        """The row of a multicast's mask of blocks; none for another copy."""
        is_multicast = "multicast::cluster" in words
        return (self.offset(operands[0], "b16"),) if is_multicast else ()

    def _bulk_copy(self, instruction: Instruction, tokens) -> Row:
        """cp.async.bulk between global memory and this block's shared memory, or to
        that of blocks of its cluster.
        """
        operands = instruction.operands
        to, to_offset, to_width = self.address(operands[0])
        source, from_offset, from_width = self.address(operands[1])
        size = self.offset(operands[2], "b32")
        directions = {
            ("shared::cta", "global"): BulkCopy.LOAD,
            ("shared::cluster", "global"): BulkCopy.LOAD,
            ("shared::cluster", "shared::cta"): BulkCopy.TO_BLOCK,
        }
        direction = directions.get(tuple(tokens[3:5]))
        if direction is not None:
            bar, bar_offset, bar_width = self.address(operands[3])
            blocks = self._blocks(tokens, operands[4:])
            return Row(
                Kind.BULK_COPY,
                (to, source, size, bar, *blocks),
                (
                    direction,
                    to_offset,
                    from_offset,
                    bar_offset,
                    to_width,
                    from_width,
                    bar_width,
                    len(blocks),
                ),
            )
        if tokens[3] == "global" and tokens[4] == "shared::cta":
            reduction = _reduction(tokens)
            element_type = _element_type(instruction.opcode) if reduction else 0
            if reduction and not reduces(reduction - 1, element_type):
                raise UnknownOpcode(instruction.opcode)
            return Row(
                Kind.BULK_COPY,
                (to, source, size, 0),
                (
                    BulkCopy.STORE,
                    to_offset,
                    from_offset,
                    reduction,
                    to_width,
                    from_width,
                    0,
                    element_type,
                ),
            )
        raise UnknownOpcode(instruction.opcode)

    def _matrices(self, instruction: Instruction) -> Iterator[Row]:
        """ldmatrix and stmatrix."""
        tokens = instruction.opcode.split(".")
        if tokens[3] != "m8n8" or tokens[-1] != "b16":
            raise UnknownOpcode(instruction.opcode)
        count, transposed = int(tokens[4][1:]), int("trans" in tokens)
        if tokens[0] == "ldmatrix":
            vector, address = instruction.operands
        else:
            address, vector = instruction.operands
        rows = [self.offset(one, "b32") for one in ptx.flatten((vector,))]
        base, offset, width = self.address(address)
        parameters = (count, transposed, 0, 0, offset, width)
        if tokens[0] == "ldmatrix":
            yield Row(Kind.LDMATRIX, (*rows, base), parameters, written=count)
        else:
            yield Row(Kind.STMATRIX, (base, *rows), parameters)

    def _movmatrix(self, instruction: Instruction) -> Iterator[Row]:
        d, a = (self.offset(one, "b32") for one in instruction.operands)
        yield Row(Kind.MMA, (d, a), (matrix_units.MOVMATRIX, 1, 1, 0, 0), written=1)

    def _mma(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        # mma.sync.aligned.shape.row.col(.satfinite).d.a.b.c
        if tokens[1:3] != ["sync", "aligned"] or tokens[4:6] != ["row", "col"]:
            raise UnknownOpcode(instruction.opcode)
        saturates = "satfinite" in tokens
        types = [one for one in tokens[6:] if one != "satfinite"]
        if len(types) != 4 or len(instruction.operands) != 4:
            raise UnknownOpcode(instruction.opcode)
        d_type, a_type, b_type, c_type = types
        counts = [len(ptx.flatten((one,))) for one in instruction.operands]
        if types == ["f64"] * 4:
            kind, constant = matrix_units.MMA_F64, "f64"
        elif tokens[3].startswith("m16n8") and d_type == c_type:
            constant = "b32"
            try:
                kind = matrix.encode_kind(d_type, a_type, b_type, saturates)
            except KeyError:
                raise UnknownOpcode(instruction.opcode) from None
        else:
            raise UnknownOpcode(instruction.opcode)
        yield Row(
            Kind.MMA,
            tuple(
                self.offset(one, constant) for one in ptx.flatten(instruction.operands)
            ),
            (kind, *counts),
            written=counts[0],
        )

    def _wgmma(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        if tokens[1] == "fence":
            yield Row(Kind.WGMMA_FENCE)
        elif tokens[1] == "commit_group":
            yield Row(Kind.WGMMA_COMMIT)
        elif tokens[1] == "wait_group":
            yield Row(Kind.WGMMA_WAIT, parameters=(instruction.operands[0].value,))
        elif tokens[1] == "mma_async":
            yield self._product(instruction, tokens)
        else:
            raise UnknownOpcode(instruction.opcode)

    def _product(self, instruction: Instruction, tokens) -> Row:
        """wgmma.mma_async.sync.aligned.shape.d.a.b: D, A, B, scale-d, imm-scale-a,
        imm-scale-b and, of 16-bit types, imm-trans-a (if A is in shared memory) and
        imm-trans-b.
        """
        types = [one for one in tokens[5:] if one != "satfinite"]
        if "sp" in tokens or len(types) != 3:
            raise UnknownOpcode(instruction.opcode)
        try:
            kind = matrix.encode_kind(*types, "satfinite" in tokens)
        except KeyError:
            raise UnknownOpcode(instruction.opcode) from None
        d, a, b, scale, *more = instruction.operands
        a_rows = ptx.flatten((a,))
        numbers = [one.value for one in more]
        flags = 0
        if numbers[:1] == [-1]:
            flags |= matrix.NEGATE_A
        if numbers[1:2] == [-1]:
            flags |= matrix.NEGATE_B
        transposed = numbers[2:]
        in_registers = len(a_rows) > 1
        if transposed and not in_registers:
            flags |= matrix.TRANSPOSE_A if transposed[0] else 0
        if transposed:
            flags |= matrix.TRANSPOSE_B if transposed[-1] else 0
        accumulators = [self.offset(one, "b32") for one in ptx.flatten((d,))]
        operand_type = "b32" if in_registers else "b64"
        return Row(
            Kind.WGMMA,
            (
                *accumulators,
                *(self.offset(one, operand_type) for one in a_rows),
                self.offset(b, "b64"),
                self.offset(scale, "pred"),
            ),
            (kind, flags, len(accumulators), int(in_registers)),
            written=len(accumulators),
        )

    def _mbarrier(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        words, operands = set(tokens), list(instruction.operands)
        in_cluster = int("shared::cluster" in words)
        if words & {"noComplete", "pending_count"}:
            raise UnknownOpcode(instruction.opcode)
        if in_cluster and tokens[1] not in ("arrive", "expect_tx", "complete_tx"):
            raise UnknownOpcode(instruction.opcode)
        action = {
            "init": MbarrierAction.INIT,
            "inval": MbarrierAction.INVAL,
            "arrive": MbarrierAction.ARRIVE,
            "arrive_drop": MbarrierAction.DROP,
            "expect_tx": MbarrierAction.EXPECT,
            "complete_tx": MbarrierAction.COMPLETE,
            "test_wait": MbarrierAction.TEST,
            "try_wait": MbarrierAction.TRY,
        }.get(tokens[1])
        if action is None or tokens[1] == "arrive_drop" and "expect_tx" in words:
            raise UnknownOpcode(instruction.opcode)
        if action is MbarrierAction.ARRIVE and "expect_tx" in words:
            action = MbarrierAction.ARRIVE_EXPECT
        is_test = action in (MbarrierAction.TEST, MbarrierAction.TRY)
        states = []
        if is_test or not isinstance(operands[0], Address):
            states = [operands.pop(0)]
        has_state = bool(states) and not is_test and not isinstance(states[0], Sink)
        base, offset, width = self.address(operands.pop(0))
        by_parity = int("parity" in words)
        rows = [self.offset(one, "pred" if is_test else "b64") for one in states]
        if not has_state and not is_test:
            rows = []
        if width == 0:
            base, width = self._registers.constant(32, 0), 4
        counts = operands[:1]
        if is_test:
            kind = "b32" if by_parity else "b64"
            rows += [base, *(self.offset(one, kind) for one in counts)]
        else:
            rows += [base, *(self.offset(one, "b32") for one in counts)]
        yield Row(
            Kind.MBARRIER,
            tuple(rows),
            (
                int(action),
                offset,
                width,
                int(has_state),
                int(bool(counts) and not is_test),
                by_parity,
                in_cluster,
                int("relaxed" in words),
            ),
            written=1 if is_test or has_state else 0,
        )

    def _fence(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        if tokens[1:2] == ["proxy"]:
            if tokens[2] == "async":
                yield Row(Kind.FENCE_PROXY)
            elif tokens[2].startswith("tensormap"):
                yield Row(Kind.MAP_ACQUIRE)
            elif tokens[2] == "alias":
                yield Row(Kind.NOTHING)
            else:
                raise UnknownOpcode(instruction.opcode)
        elif tokens[1:2] == ["mbarrier_init"]:
            yield Row(Kind.CLUSTER_BARRIER, parameters=(clusters.FENCE,))
        else:
            is_of_block = bool({"cta", "cluster"} & set(tokens))
            yield Row(Kind.FENCE, parameters=(int(is_of_block),))

    def _tensormap(self, instruction: Instruction) -> Iterator[Row]:
        tokens = instruction.opcode.split(".")
        operands = instruction.operands
        if tokens[1] == "cp_fenceproxy":
            to, to_offset, to_width = self.address(operands[0])
            source, offset, width = self.address(operands[1])
            yield Row(
                Kind.MAP_PUBLISH,
                (to, source),
                (operands[2].value, to_offset, offset, to_width, width),
            )
            return
        if tokens[1:3] != ["replace", "tile"]:
            raise UnknownOpcode(instruction.opcode)
        base, offset, width = self.address(operands[0])
        ordinal = operands[1].value if len(operands) == 3 else 0
        value_type = tokens[-1]
        yield Row(
            Kind.MAP_REPLACE,
            (base, self.offset(operands[-1], value_type)),
            (
                TENSOR_MAP_FIELDS.index(tokens[3]),
                ordinal,
                offset,
                width,
                int(any(one.startswith("shared") for one in tokens)),
                int(value_type[1:]) // 8,
            ),
        )

    def _convert_address(self, instruction: Instruction) -> Iterator[Row]:
        """cvta: shared and local memory have windows of the generic addresses."""
        tokens = instruction.opcode.split(".")
        target, source = instruction.operands
        to_space = "to" in tokens
        windows = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}
        window = next(
            (
                windows[one.split("::")[0]]
                for one in tokens
                if one.split("::")[0] in windows
            ),
            None,
        )
        if tokens[-1] != "u64":
            raise UnknownOpcode(instruction.opcode)
        if window is None:
            yield self.arithmetic("mov.b64", (target, source))
            return
        operation = "sub.s64" if to_space else "add.s64"
        added = Immediate(str(window), "integer", window)
        yield self.arithmetic(operation, (target, source, added))


def _semantics(tokens) -> int:
    """How a load, a store or an atomic orders others, and within which scope."""
    words = set(tokens)
    is_strong = words & {"volatile", "relaxed", "acquire", "release", "acq_rel"}
    return (
        (RELEASES if words & {"release", "acq_rel"} else 0)
        | (ACQUIRES if words & {"acquire", "acq_rel"} else 0)
        | (IS_OF_BLOCK if words & {"cta", "cluster"} else 0)
        | (IS_STRONG if is_strong else 0)
        | (IS_READ_ONLY if "nc" in words else 0)
    )


def _is_like_an_atomic(row: Row) -> bool:
    """Whether others that are so conflict with it less than a plain access does."""
    parameters = row.parameters
    if row.kind in (Kind.LOAD, Kind.STORE):
        return bool(parameters[7] & ~IS_READ_ONLY)
    if row.kind is Kind.BULK_COPY:
        return parameters[0] == BulkCopy.STORE and parameters[3] > 0
    if row.kind is Kind.TENSOR_STORE:
        return parameters[6] > 0
    return row.kind is Kind.ATOMIC


def _reduction(words: Iterable[str]) -> int:
    """1 + the operation of a bulk store that combines; 0 of one that stores."""
    named = [REDUCTIONS[one] + 1 for one in words if one in REDUCTIONS]
    return named[0] if named else 0


def _element_type(opcode: str) -> int:
    """What the elements of a bulk reduction are."""
    kind = opcode.rpartition(".")[2]
    if kind not in _ELEMENT_TYPES:
        raise UnknownOpcode(opcode)
    return _ELEMENT_TYPES[kind]


def _pair(operand) -> tuple:
    return (
        (operand.first, operand.second)
        if isinstance(operand, ptx.Pair)
        else (operand, Sink())
    )


def _lay_out(variables: Sequence[ptx.Variable]) -> tuple[dict[str, int], int]:
    """Offsets by name, and the bytes of all."""
    offsets: dict[str, int] = {}
    end = 0
    for variable in variables:
        end = -(-end // variable.align) * variable.align
        offsets[variable.name] = end
        end += variable.size_bytes
    return offsets, end


_UPDATES = {
    "add": Update.ADD,
    "min": Update.MIN,
    "max": Update.MAX,
    "and": Update.AND,
    "or": Update.OR,
    "xor": Update.XOR,
    "exch": Update.EXCHANGE,
    "cas": Update.COMPARE,
    "inc": Update.INCREMENT,
    "dec": Update.DECREMENT,
}
_NUMBERS = {
    "b": Number.UNSIGNED,
    "u": Number.UNSIGNED,
    "s": Number.SIGNED,
    "f": Number.FLOAT,
    "f16x2": Number.F16_PAIR,
    "bf16x2": Number.BF16_PAIR,
    "f16": Number.F16,
    "bf16": Number.BF16,
}
_ELEMENT_TYPES = {
    "u32": tensor_maps.U32,
    "s32": tensor_maps.S32,
    "b32": tensor_maps.U32,
    "u64": tensor_maps.U64,
    "s64": tensor_maps.S64,
    "b64": tensor_maps.U64,
    "f16": tensor_maps.F16,
    "bf16": tensor_maps.BF16,
    "f32": tensor_maps.F32,
}
TENSOR_MAP_FIELDS = (
    "global_address",
    "rank",
    "box_dim",
    "global_dim",
    "global_stride",
    "element_stride",
    "elemtype",
    "interleave_layout",
    "swizzle_mode",
    "fill_mode",
    "swizzle_atomicity",
)
SPECIALS = frozenset(
    "%tid.x %tid.y %tid.z %ntid.x %ntid.y %ntid.z %ctaid.x %ctaid.y %ctaid.z "
    "%nctaid.x %nctaid.y %nctaid.z %laneid %warpid %nwarpid %smid %nsmid %gridid "
    "%lanemask_eq %lanemask_le %lanemask_lt %lanemask_ge %lanemask_gt "
    "%clusterid.x %clusterid.y %clusterid.z %nclusterid.x %nclusterid.y %nclusterid.z "
    "%cluster_ctaid.x %cluster_ctaid.y %cluster_ctaid.z %cluster_ctarank "
    "%cluster_nctaid.x %cluster_nctaid.y %cluster_nctaid.z %cluster_nctarank "
    "%dynamic_smem_size %total_smem_size %clock %clock64 %globaltimer".split()
)

_Decode = Callable[[_Decoder, Instruction], Iterator[Row]]
_DECODERS: dict[str, _Decode] = {
    "bra": _Decoder._branch,
    "brx": _Decoder._branch_by_index,
    "ret": _Decoder._exit,
    "exit": _Decoder._exit,
    "trap": _Decoder._trap,
    "ld": _Decoder._load,
    "ldu": _Decoder._load,
    "st": _Decoder._store,
    "atom": _Decoder._atomic,
    "red": _Decoder._atomic,
    "bar": _Decoder._barrier,
    "barrier": _Decoder._barrier,
    "shfl": _Decoder._shuffle,
    "vote": _Decoder._vote,
    "activemask": _Decoder._active_mask,
    "match": _Decoder._match,
    "redux": _Decoder._redux,
    "elect": _Decoder._elect,
    "cp": _Decoder._cp,
    "ldmatrix": _Decoder._matrices,
    "stmatrix": _Decoder._matrices,
    "movmatrix": _Decoder._movmatrix,
    "mma": _Decoder._mma,
    "wgmma": _Decoder._wgmma,
    "wmma": wmma.decode,
    "tcgen05": tcgen05.decode,
    "mapa": clusters.decode_map,
    "mbarrier": _Decoder._mbarrier,
    "fence": _Decoder._fence,
    "membar": _Decoder._fence,
    "tensormap": _Decoder._tensormap,
    "cvta": _Decoder._convert_address,
    "setmaxnreg": _Decoder._nothing,
    "prefetch": _Decoder._nothing,
    "prefetchu": _Decoder._nothing,
    "nanosleep": _Decoder._nothing,
    "pmevent": _Decoder._nothing,
    "griddepcontrol": _Decoder._nothing,
    "discard": _Decoder._nothing,
    "applypriority": _Decoder._nothing,
}
