"""Graphs of basic blocks, numbered from 0 where the code begins: what a branch decides
over, and how deep loops are.
"""

from __future__ import annotations

from collections.abc import Sequence

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
