"""Which rows the instructions of the fifth generation's tensor cores are decoded to (PTX
ISA, "TensorCore 5th Generation Family Instructions"): those of one block or of a pair of
blocks, with A and B in shared memory, and of copies those of scales. All others are
refused by their names.
"""

from __future__ import annotations

from collections.abc import Iterator

from batchline.bench.measure.emulator import ptx
from batchline.bench.measure.emulator.layout import Kind
from batchline.bench.measure.emulator.ptx import (
    Address,
    Immediate,
    Instruction,
    UnknownOpcode,
)
from batchline.bench.measure.emulator.rows import Operands, Row
from batchline.bench.measure.emulator.tensor_memory import OF_LOADS, OF_STORES, WHOLE
from batchline.bench.measure.emulator.tensor_products import KINDS, SCALED

ALL = frozenset(
    {
        Kind.TCGEN05_ALLOC,
        Kind.TCGEN05_DEALLOC,
        Kind.TCGEN05_RELINQUISH,
        Kind.TCGEN05_LD,
        Kind.TCGEN05_ST,
        Kind.TCGEN05_WAIT,
        Kind.TCGEN05_MMA,
        Kind.TCGEN05_PAIR_MMA,
        Kind.TCGEN05_COMMIT,
        Kind.TCGEN05_CP,
    }
)
GROUPS = ("cta_group::1", "cta_group::2")  # of one block, of a pair of blocks
_OF_ONE_BLOCK, _OF_PAIR = GROUPS
_MULTICAST = "multicast::cluster"
_BLOCK_SCALED = ["kind::mxf8f6f4", "block_scale", "scale_vec::1X"]
_OF_SCALES = {"32x128b", "warpx4"}
_WHOLE_WARP = ["sync", "aligned"]
_SHARED = ({"b32"}, {"shared::cta", "b32"})  # the last words of an alloc


def decode(operands: Operands, instruction: Instruction) -> Iterator[Row]:
    """The row of an instruction that begins with "tcgen05".

    Raises:
        UnknownOpcode: for one that is not known here.
    """
    tokens = instruction.opcode.split(".")
    decoder = _DECODERS.get(tokens[1])
    row = decoder(operands, instruction, tokens[2:]) if decoder else None
    if row is None:
        raise UnknownOpcode(instruction.opcode)
    yield row


def _alloc(operands, instruction, words):
    if not _is_of_whole_warp(words[:3]) or set(words[3:]) not in _SHARED:
        return None
    to, columns = instruction.operands
    base, offset, width = operands.address(to)
    return Row(
        Kind.TCGEN05_ALLOC,
        (base, operands.offset(columns, "b32")),
        (int(words[0] == _OF_PAIR), offset, width),
    )


def _is_of_whole_warp(words):
    """Whether these are a group of blocks and the words of all threads of a warp."""
    return words[0] in GROUPS and words[1:] == _WHOLE_WARP


def _dealloc(operands, instruction, words):
    if not _is_of_whole_warp(words[:3]) or words[3:] != ["b32"]:
        return None
    rows = (operands.offset(one, "b32") for one in instruction.operands)
    return Row(Kind.TCGEN05_DEALLOC, tuple(rows), (int(words[0] == _OF_PAIR),))


def _relinquish(operands, instruction, words):
    if not _is_of_whole_warp(words):
        return None
    return Row(Kind.TCGEN05_RELINQUISH, (), (int(words[0] == _OF_PAIR),))


def _move(operands, instruction, words):
    """tcgen05.ld and .st of the shapes 32x32b and 16x32bx2, where a register is a
    column. The second has one more operand: how many columns its halves are apart.
    """
    is_load = instruction.opcode.startswith("tcgen05.ld")
    *places, split = _with_split(instruction.operands, words)
    if len(places) != 2:
        return None
    registers, address = places[:: 1 if is_load else -1]
    moved = ptx.flatten((registers,))
    shape = "32x32b" if split == WHOLE else "16x32bx2"
    if words != [*_WHOLE_WARP, shape, f"x{len(moved)}", "b32"]:
        return None
    base, offset, width = operands.address(address)
    rows = tuple(operands.offset(one, "b32") for one in moved)
    parameters = (len(rows), offset, width, split)
    if is_load:
        return Row(Kind.TCGEN05_LD, (*rows, base), parameters, written=len(rows))
    return Row(Kind.TCGEN05_ST, (base, *rows), parameters)


def _with_split(given, words):
    """The operands, and at their end the columns between halves, the only immediate
    among them; or WHOLE.
    """
    if "16x32bx2" not in words:
        return (*given, WHOLE)
    (split,) = (one.value for one in given if isinstance(one, Immediate))
    return (*(one for one in given if not isinstance(one, Immediate)), split)


def _wait(operands, instruction, words):
    if words != _WHOLE_WARP:
        return None
    is_load = instruction.opcode.startswith("tcgen05.wait::ld")
    return Row(Kind.TCGEN05_WAIT, parameters=(OF_LOADS if is_load else OF_STORES,))


def _mma(operands, instruction, words):
    """D's address, the descriptors of A, B and the instruction, with scales the
    addresses of A's and B's, and enable-input-d.
    """
    kind = _kind_of(words)
    expected = 7 if kind == SCALED else 5
    if kind is None or len(instruction.operands) != expected:
        return None
    d, a, b, description, *scales, adds = instruction.operands
    if isinstance(a, Address) or getattr(adds, "negated", False):
        return None  # A in tensor memory
    base, offset, width = operands.address(d)
    found = [operands.address(one) for one in scales]
    return Row(
        Kind.TCGEN05_MMA if words[0] == _OF_ONE_BLOCK else Kind.TCGEN05_PAIR_MMA,
        (
            base,
            operands.offset(a, "b64"),
            operands.offset(b, "b64"),
            operands.offset(description, "b32"),
            operands.offset(adds, "pred"),
            *(row for row, _, _ in found),
        ),
        (kind, offset, width, *(one for _, *place in found for one in place)),
    )


def _kind_of(words):
    """The place in KINDS of a product, or None for one not known here: with scales it is
    one block's.
    """
    if words == [_OF_ONE_BLOCK, *_BLOCK_SCALED]:
        return SCALED
    plain = {f"kind::{name}": number for number, name in enumerate(KINDS[:SCALED])}
    is_known = len(words) == 2 and words[0] in GROUPS
    return plain.get(words[1]) if is_known else None


def _copy(operands, instruction, words):
    """Of scales: 32 rows of 128 bits, to each of the four parts."""
    if words[:1] != [_OF_ONE_BLOCK] or set(words[1:]) != _OF_SCALES:
        return None
    to, source = instruction.operands
    base, offset, width = operands.address(to)
    rows = (base, operands.offset(source, "b64"))
    return Row(Kind.TCGEN05_CP, rows, (offset, width))


def _commit(operands, instruction, words):
    """The mbarrier's address, and of a multicast the mask of blocks."""
    told = [one for one in words if one not in ("shared::cluster", _MULTICAST)]
    if words[0] not in GROUPS or told[1:] != ["mbarrier::arrive::one", "b64"]:
        return None
    mbarrier, *masks = instruction.operands
    if len(masks) != words.count(_MULTICAST):
        return None
    base, offset, width = operands.address(mbarrier)
    rows = (operands.offset(one, "b16") for one in masks)
    return Row(Kind.TCGEN05_COMMIT, (base, *rows), (len(masks), offset, width))


def _fence(operands, instruction, words):
    """What it orders the machine orders without: Triton's code has none."""
    return Row(Kind.NOTHING)


_DECODERS = {
    "alloc": _alloc,
    "dealloc": _dealloc,
    "relinquish_alloc_permit": _relinquish,
    "ld": _move,
    "st": _move,
    "wait::ld": _wait,
    "wait::st": _wait,
    "mma": _mma,
    "commit": _commit,
    "cp": _copy,
    "fence::before_thread_sync": _fence,
    "fence::after_thread_sync": _fence,
}
