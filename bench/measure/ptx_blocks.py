"""PTX as statements in basic blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
        block.followers = _followers(block, number, labels, tables, end=len(blocks) - 1)
    return blocks


def _followers(
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
