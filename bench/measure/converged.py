"""Whether all lanes of a warp run the instructions that are a whole warp's: products,
matrix copies, shuffles.

Three things must hold, of the PTX (what LLVM did) and of the machine code (what the
assembler did with it). No branch and no predicate that may differ among a warp's lanes
decides over them in the PTX (bench.measure.lane_values). None is predicated in the
machine code, or lies between BSSY and where that meets again: so the assembler marks a
branch that may part a warp. They are as deep in loops in the machine code as in the
PTX; shuffles are no deeper, for the assembler drops those of a value that all lanes
have.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchline.bench.measure import flow, machine_blocks, ptx_blocks
from batchline.bench.measure.lane_values import LaneValues
from batchline.bench.measure.machine_blocks import Instruction


@dataclass(frozen=True)
class _Kind:
    """Instructions of a whole warp: how they begin in PTX, all of it in machine code;
    `kept`: none is ever dropped.
    """

    name: str
    in_ptx: re.Pattern
    in_machine_code: re.Pattern
    kept: bool


_KINDS = (
    _Kind("mma.sync", re.compile(r"mma\.sync"), re.compile(r"[HQIDB]MMA$"), kept=True),
    _Kind(
        "wgmma.mma_async",
        re.compile(r"wgmma\.mma_async"),
        re.compile(r"[HQIB]GMMA$"),
        kept=True,
    ),
    _Kind("ldmatrix", re.compile(r"ldmatrix"), re.compile(r"LDSM$"), kept=True),
    _Kind("stmatrix", re.compile(r"stmatrix"), re.compile(r"STSM$"), kept=True),
    _Kind("shfl.sync", re.compile(r"shfl\.sync"), re.compile(r"SHFL$"), kept=False),
)


def fault(ptx: str, listing: str) -> str | None:
    """The first place where a warp's instruction may run without all of the warp, or is
    in another loop; or None.

    `listing` is the machine code as bench.measure.sass lists it.
    """
    if not any(kind.in_ptx.search(ptx) for kind in _KINDS):
        return None
    code = machine_blocks.instructions(listing)
    return next(
        itertools.chain(_in_ptx(ptx), _parted(code), _in_other_loops(ptx, code)), None
    )


def _in_ptx(ptx: str) -> Iterator[str]:
    for blocks in ptx_blocks.functions(ptx):
        lanes = LaneValues(blocks)
        for number, block in enumerate(blocks):
            for statement in block.statements:
                if not any(kind.in_ptx.match(statement.name) for kind in _KINDS):
                    continue
                where = f"PTX line {statement.line}, {statement.text}"
                if lanes.differs(statement.predicate):
                    yield f"{where}: its predicate may differ among a warp's lanes"
                elif branch := lanes.parted.get(number):
                    yield f"{where}: line {branch.line}, {branch.text}, may part a warp's lanes before it"


def _parted(code: Sequence[Instruction]) -> Iterator[str]:
    spans = [
        (one.address, one.target)
        for one in code
        if one.kind == "BSSY" and one.target is not None
    ]
    for one in code:
        if not any(kind.in_machine_code.match(one.kind) for kind in _KINDS):
            continue
        if one.predicate.lstrip("!").startswith("P") and one.predicate != "PT":
            yield f"SASS {one.address:#x}, {one.text}: it is predicated"
        elif begins := [first for first, last in spans if first < one.address < last]:
            yield f"SASS {one.address:#x}, {one.text}: BSSY at {begins[0]:#x} says that a warp may be parted there"


def _in_other_loops(ptx: str, code: Sequence[Instruction]) -> Iterator[str]:
    blocks, followers = machine_blocks.blocks(code)
    if any(one.kind in ("BRX", "JMX") for one in code):
        return  # where an indirect branch leads is not in the listing
    in_code = [
        (one.kind, depth)
        for block, depth in zip(blocks, flow.loop_depths(followers))
        for one in block
    ]
    in_ptx = [
        (statement.name, depth)
        for function in ptx_blocks.functions(ptx)
        for block, depth in zip(
            function, flow.loop_depths([block.followers for block in function])
        )
        for statement in block.statements
    ]
    for kind in _KINDS:
        meant = max(
            (depth for name, depth in in_ptx if kind.in_ptx.match(name)), default=None
        )
        depth = max(
            (depth for name, depth in in_code if kind.in_machine_code.match(name)),
            default=None,
        )
        moved_in = depth is not None and (meant is None or depth > meant)
        moved_out = (
            kind.kept and depth is not None and meant is not None and depth < meant
        )
        if moved_in or moved_out:
            yield f"{kind.name} is in {meant} loops in the PTX, in {depth} in the SASS"
