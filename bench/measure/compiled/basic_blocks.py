"""SASS as instructions in basic blocks.

A call leads to what it calls and to what is behind it: the assembler also leaves loops
by calls that never come back. An indirect branch leads nowhere that is known.

Graphs of basic blocks, numbered from 0 where the code begins: what a branch decides
over, and how deep loops are.

PTX as statements in basic blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Followers = Sequence[Sequence[int]]  # of each block, the blocks that may run next


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
    """Statements that run one after the other, and the numbers of the blocks that may
    follow.
    """

    statements: list[Statement]
    followers: tuple[int, ...] = ()


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
    for label, statement in _parts(text, start):
        if label:
            blocks.append(Block([]))
            labels[label] = len(blocks) - 1
        elif statement.name == ".branchtargets":
            tables[len(blocks) - 1] = statement.operands
        elif not statement.name.startswith("."):
            blocks[-1].statements.append(statement)
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
        return tuple(labels[label] for label in tables[labels[last.operands[1]]])
    onward = (
        (number + 1,)
        if not last or last.predicate or kind not in ("bra", *_LEAVES)
        else ()
    )
    if kind == "bra":
        return (labels[last.operands[0]], *onward)
    return (end, *onward) if kind in _LEAVES else onward


def _parts(text: str, start: int) -> Iterator[tuple[str | None, Statement | None]]:
    """(label, None) or (None, statement), up to the brace that closes the body."""
    line, counted, depth, at = text.count("\n", 0, start) + 1, start, 1, start
    while depth and (part := _PART.match(text, at)):
        at = part.end()
        if part["brace"]:
            depth += 1 if part["brace"] == "{" else -1
        elif part["label"]:
            yield part["label"], None
        else:
            begins = part.start("statement")
            line, counted = line + text.count("\n", counted, begins), begins
            predicate, name, operands = _STATEMENT.match(part["statement"]).groups()
            yield None, Statement(
                line,
                predicate or "",
                name,
                tuple(map(str.strip, _OPERAND.findall(operands))),
            )


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
