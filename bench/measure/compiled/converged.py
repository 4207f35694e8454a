"""Whether all lanes of a warp run the instructions that are a whole warp's: products,
matrix copies, shuffles.

Three things must hold, of the PTX (what LLVM did) and of the machine code (what the
assembler did with it). No branch and no predicate that may differ among a warp's lanes
decides over them in the PTX. None is predicated in the machine code, or lies between
BSSY and where that meets again: so the assembler marks a branch that may part a warp.
(The shuffles that it makes itself for atomics are for the lanes that there are.)
They are as deep in loops in the machine code as in the PTX; shuffles are no deeper, for
the assembler drops those of a value that all lanes have.

Both are read as graphs of basic blocks, numbered from 0 where the code begins. In SASS
a call leads to what it calls and to what is behind it: the assembler also leaves loops
by calls that never come back. An indirect branch leads nowhere that is known.

A register of the PTX is the bits in which lanes may differ, as a mask: %tid.x has five,
so `%tid.x >> 5` is the same in a warp (of blocks whose threads lie in x, as all here
do). What is loaded from one address is one value. What this does not know of an
instruction differs wholly where an operand differs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Followers = Sequence[Sequence[int]]  # of each block, the blocks that may run next
Scope = tuple[int, ...]  # the numbers of the braces around a place, from the outermost
# With the lines that say where in the source it is.
_COMMENT = re.compile(
    r"//[^\n]*|/\*.*?\*/|^\s*\.(?:loc|file)\b[^\n]*", re.DOTALL | re.MULTILINE
)
_BODY = re.compile(r"^\s*(?:\.\w+\s+)*\.(?:entry|func)\b[^;{]*\{", re.MULTILINE)
_PART = re.compile(
    r"\s*(?:(?P<label>[$\w]+)\s*:(?!:)|(?P<brace>[{}])|(?P<statement>(?:[^;{}]|\{[^{}]*\})*);)"
)
_STATEMENT = re.compile(r"\s*(?:@\s*(!?[%\w$]+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^]]*\]|\([^)]*\)|[^,\s{[(][^,]*")
_LEAVES = ("ret", "exit", "trap")
_LINE = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;",
    re.MULTILINE,
)
_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_ENDS = ("BRA", "BRX", "EXIT", "RET", "JMP", "JMX", "CALL")
_REGISTER = re.compile(r"\bR\d+\b")
_UNIFORM = re.compile(r"!?UP\d")  # a branch's predicate may stand among its operands
_ALL = (1 << 64) - 1
_SPECIAL = {"%tid.x": 31, "%tid.y": _ALL, "%tid.z": _ALL, "%laneid": 31}
_NAME = re.compile(r"%?[A-Za-z_$][\w$.]*")
_NO_RESULT = ("st", "bra", "brx", "bar", "ret", "exit", "red", "setmaxnreg", "call")
_OF_EACH_LANE = (
    "atom",
    "mma",
    "ldmatrix",
    "wgmma",
    "activemask",
    "elect",
    "match",
    "movmatrix",
)
_OF_THE_WARP = ("vote", "redux")


def decided_by(followers: Followers) -> list[set[int]]:
    """Of each block, the blocks for which its end decides whether they run: all up to
    where every way on meets again.

    (They are what is reached from its followers before a block that postdominates it.)
    """
    behind = _on_every_way(followers)
    return [
        (
            _reached(followers, followers[block], stops=behind[block] & ~(1 << block))
            if len(set(followers[block])) > 1
            else set()
        )
        for block in range(len(followers))
    ]


def loop_depths(followers: Followers) -> list[int]:
    """Of each block, how many loops it is in: an edge back to a block that is on every
    way to its start makes one.

    What can't be reached from block 0 is in none.
    """
    reachable = _reached(followers, (0,), stops=0)
    before: list[list[int]] = [[] for _ in followers]
    for block, next_ones in enumerate(followers):
        for follower in next_ones:
            before[follower].append(block)
    dominators = _on_every_way(
        [tuple(ones) for ones in before], is_end=lambda block: block == 0
    )
    loops: dict[int, set[int]] = {}
    for block in reachable:
        for head in followers[block]:
            if dominators[block] >> head & 1:
                loops.setdefault(head, {head}).update(
                    {block} - {head}, _reached(before, (block,), stops=1 << head)
                )
    return [
        sum(block in loop for loop in loops.values()) for block in range(len(followers))
    ]


def _on_every_way(followers: Followers, is_end=None) -> list[int]:
    """Of each block, as bits, the blocks on every way from it to an end (which is a
    block that nothing follows).
    """
    is_end = is_end or (lambda block: not followers[block])
    everything = (1 << len(followers)) - 1
    on_way = [
        1 << block if is_end(block) else everything for block in range(len(followers))
    ]
    moved = True
    while moved:
        moved = False
        for block in reversed(range(len(followers))):
            if is_end(block):
                continue
            common = everything
            for follower in followers[block]:
                common &= on_way[follower]
            found = common | 1 << block
            moved |= found != on_way[block]
            on_way[block] = found
    return on_way


def _reached(followers: Followers, starts: Sequence[int], stops: int) -> set[int]:
    """The blocks on all ways from `starts`, short of the blocks in the bits of `stops`."""
    reached: set[int] = set()
    waiting = list(starts)
    while waiting:
        block = waiting.pop()
        if block not in reached and not stops >> block & 1:
            reached.add(block)
            waiting += followers[block]
    return reached


@dataclass(frozen=True)
class Statement:
    """One instruction: its line in the PTX (from 1), what it is predicated on ("" if on
    nothing), name and operands.
    """

    line: int
    predicate: str
    name: str
    operands: tuple[str, ...]

    @property
    def text(self) -> str:
        guard = f"@{self.predicate} " if self.predicate else ""
        return f"{guard}{self.name} {', '.join(self.operands)}".rstrip()


@dataclass
class Block:
    """Statements that run one after the other, the numbers of the blocks that may
    follow, and the braces around the last one.
    """

    statements: list[Statement]
    followers: tuple[int, ...] = ()
    scope: Scope = ()


def functions(ptx: str) -> Iterator[list[Block]]:
    """The blocks of each kernel and function, in the order of their text."""
    text = _COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment.group()), ptx)
    for head in _BODY.finditer(text):
        yield _blocks(text, head.end())


def _blocks(text: str, start: int) -> list[Block]:
    """The function whose body begins at `start`, cut before labels and behind branches.
    The last block is its end.
    """
    blocks, labels, tables = [Block([])], {}, {}
    for label, statement, scope in _parts(text, start):
        if label:
            blocks.append(Block([]))
            labels[scope, label] = len(blocks) - 1
        elif statement.name == ".branchtargets":
            tables[len(blocks) - 1] = statement.operands
        elif not statement.name.startswith("."):
            blocks[-1].statements.append(statement)
            blocks[-1].scope = scope
            if statement.name.partition(".")[0] in ("bra", "brx", *_LEAVES):
                blocks.append(Block([]))
    blocks.append(Block([]))
    for number, block in enumerate(blocks[:-1]):
        block.followers = _ptx_followers(
            block, number, labels, tables, end=len(blocks) - 1
        )
    return blocks


def _ptx_followers(
    block: Block, number: int, labels: dict, tables: dict, end: int
) -> tuple[int, ...]:
    last = block.statements[-1] if block.statements else None
    kind = last.name.partition(".")[0] if last else ""
    if kind == "brx":
        table = tables[_labelled(labels, block.scope, last.operands[1])]
        return tuple(_labelled(labels, block.scope, label) for label in table)
    onward = (
        (number + 1,)
        if not last or last.predicate or kind not in ("bra", *_LEAVES)
        else ()
    )
    if kind == "bra":
        return (_labelled(labels, block.scope, last.operands[0]), *onward)
    return (end, *onward) if kind in _LEAVES else onward


def _labelled(labels: dict[tuple[Scope, str], int], scope: Scope, label: str) -> int:
    """The block behind a label, as it is known within braces: a label of the innermost
    ones that have it.
    """
    while (scope, label) not in labels and scope:
        scope = scope[:-1]
    return labels[scope, label]


def _parts(
    text: str, start: int
) -> Iterator[tuple[str | None, Statement | None, Scope]]:
    """(label, None, scope) or (None, statement, scope), up to the brace that closes the
    body.
    """
    line, counted, at = text.count("\n", 0, start) + 1, start, start
    scope, braces = (), 0
    while part := _PART.match(text, at):
        at = part.end()
        if part["brace"] == "{":
            braces += 1
            scope += (braces,)
        elif part["brace"]:
            if not scope:
                return
            scope = scope[:-1]
        elif part["label"]:
            yield part["label"], None, scope
        else:
            begins = part.start("statement")
            line, counted = line + text.count("\n", counted, begins), begins
            predicate, name, operands = _STATEMENT.match(part["statement"]).groups()
            yield None, Statement(
                line,
                predicate or "",
                name,
                tuple(map(str.strip, _OPERAND.findall(operands))),
            ), scope


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


def cut_into_blocks(
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
        _machine_followers(block, number, begins, len(cut))
        for number, block in enumerate(cut)
    ]


def _machine_followers(
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


class LaneValues:
    """`masks`: by register, the bits that may differ among lanes; `parted`: by block
    that only a part of a warp's lanes may run, a branch that parts them.
    """

    def __init__(self, blocks: Sequence[Block]):
        self._blocks = blocks
        self._decided = decided_by([block.followers for block in blocks])
        self._written = _times_written(blocks)
        self.masks: dict[str, int] = {}
        self.parted: dict[int, Statement] = {}
        known = None
        while known != (self.masks, len(self.parted)):
            known = dict(self.masks), len(self.parted)
            self._go_through()

    def differs(self, operand: str) -> bool:
        return bool(_union(self._sources([operand])))

    def _go_through(self) -> None:
        for number, block in enumerate(self._blocks):
            for statement in block.statements:
                self._note(statement, in_part=number in self.parted)
            end = block.statements[-1] if block.statements else None
            if (
                end
                and not end.name.startswith("bra.uni")
                and self._decides_by_lane(end)
            ):
                for inside in self._decided[number]:
                    self.parted.setdefault(inside, end)

    def _decides_by_lane(self, end: Statement) -> bool:
        chosen_by = end.operands[:1] if end.name.startswith("brx") else ()
        return any(self.differs(operand) for operand in (end.predicate, *chosen_by))

    def _note(self, statement: Statement, in_part: bool) -> None:
        results, operands = _split(statement)
        if not results:
            return
        mask = _result(statement.name, operands, self._sources(operands))
        if (
            self.differs(statement.predicate)
            or in_part
            and any(self._written[name] > 1 for name in results)
        ):
            mask = _ALL  # some lanes have it, others what was there before
        for name in results:
            self.masks[name] = self.masks.get(name, 0) | mask

    def _sources(self, operands: Sequence[str]) -> list[int]:
        """Of each operand, the bits that differ."""
        return [
            _union(
                _SPECIAL.get(name, self.masks.get(name, 0))
                for name in _NAME.findall(operand)
            )
            for operand in operands
        ]


def _times_written(blocks: Sequence[Block]) -> dict[str, int]:
    times: dict[str, int] = {}
    for block in blocks:
        for statement in block.statements:
            for name in _split(statement)[0]:
                times[name] = times.get(name, 0) + 1
    return times


def _split(statement: Statement) -> tuple[list[str], tuple[str, ...]]:
    """The registers that it writes, and its other operands."""
    first = statement.operands[0] if statement.operands else ""
    if (
        statement.name.partition(".")[0] in _NO_RESULT
        or first.startswith("[")
        or not _NAME.search(first)
    ):
        return [], statement.operands
    return _NAME.findall(first), statement.operands[1:]


def _result(name: str, operands: Sequence[str], masks: Sequence[int]) -> int:
    kind, *kinds = name.split(".")
    if (
        kind in _OF_THE_WARP
        or kind == "shfl"
        and "idx" in kinds
        and not _union(masks[1:])
    ):
        return 0  # one lane's value, for all of them
    if (
        kind in _OF_EACH_LANE
        or kind == "shfl"
        or kind == "tcgen05"
        or kind == "ld"
        and "local" in kinds
    ):
        return _ALL
    union = _union(masks)
    if not union:
        return 0
    if (
        kind in ("mov", "or", "xor", "not", "cvta")
        or kind == "cvt"
        and kinds[-1][0] in "ub"
        and kinds[-2][0] in "ub"
    ):
        return union if "{" not in "".join(operands) else _ALL
    if kind == "and":
        constants = [int(operand, 0) for operand in operands if _is_number(operand)]
        return union & constants[0] if constants else union
    if kind in ("shl", "shr") and _is_number(operands[1]):
        return _shifted(kind, kinds, union, int(operands[1], 0))
    if (
        kind in ("add", "sub", "mul", "mad")
        and "hi" not in kinds
        and not name.endswith(("f16", "bf16", "f32", "f64"))
    ):
        return _ALL & -(union & -union)  # a difference carries to the bits above it
    return _ALL


def _shifted(kind: str, kinds: Sequence[str], mask: int, by: int) -> int:
    if kind == "shl":
        return mask << by & _ALL
    signed = kinds[-1].startswith("s") and mask >> int(kinds[-1][1:]) - 1 & 1
    return _ALL if signed else mask >> by


def _is_number(operand: str) -> bool:
    return re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)", operand) is not None


def _union(masks) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


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

    `listing` is the machine code as bench.measure.compiled.sass lists it.
    """
    if not any(kind.in_ptx.search(ptx) for kind in _KINDS):
        return None
    code = instructions(listing)
    return next(
        itertools.chain(_in_ptx(ptx), _parted(code), _in_other_loops(ptx, code)), None
    )


def _in_ptx(ptx: str) -> Iterator[str]:
    for blocks in functions(ptx):
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
    blocks, _ = cut_into_blocks(code)
    spans = [  # up to the branch behind it a warp is as whole as at BSSY itself
        (one.address, block[-1].address, one.target)
        for block in blocks
        for one in block
        if one.kind == "BSSY" and one.target is not None
    ]
    own = _of_atomics(blocks)
    for one in code:
        if not any(kind.in_machine_code.match(one.kind) for kind in _KINDS):
            continue
        if one.address in own:
            continue
        if one.predicate.lstrip("!").startswith("P") and one.predicate != "PT":
            yield f"SASS {one.address:#x}, {one.text}: it is predicated"
        elif begins := [
            first for first, parts, last in spans if parts < one.address < last
        ]:
            yield f"SASS {one.address:#x}, {one.text}: BSSY at {begins[0]:#x} says that a warp may be parted there"


def _of_atomics(blocks: Sequence[Sequence[Instruction]]) -> set[int]:
    """The addresses of shuffles of the assembler's own: it adds up what the lanes of a
    warp add atomically, lets one of them do it, and hands out what that got, among the
    lanes that there are.
    """
    own = set()
    for block in blocks:
        got = set()
        for one in block:
            if one.kind == "ATOMG":
                got.update(_REGISTER.findall(one.operands)[:1])
            elif one.name.startswith("SHFL.IDX") and (
                set(_REGISTER.findall(one.operands)[1:2]) & got
            ):
                own.add(one.address)
    return own


def _in_other_loops(ptx: str, code: Sequence[Instruction]) -> Iterator[str]:
    blocks, followers = cut_into_blocks(code)
    if any(one.kind in ("BRX", "JMX") for one in code):
        return  # where an indirect branch leads is not in the listing
    in_code = [
        (one.kind, depth)
        for block, depth in zip(blocks, loop_depths(followers))
        for one in block
    ]
    in_ptx = [
        (statement.name, depth)
        for function in functions(ptx)
        for block, depth in zip(
            function, loop_depths([block.followers for block in function])
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
