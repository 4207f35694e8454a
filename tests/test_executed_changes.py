"""What differs between two executions is told with the line that accounts for it."""

import pytest

from batchline.bench.verdicts.compiled_changes import BETTER, GONE, NEW, OPEN, WORSE
from batchline.bench.verdicts.executed_changes import line_changes, moves

ROW = {
    "variant": "bmm/triton_tiled",
    "dtype": "float16",
    "scenario": "square_64",
    "batch": 2,
    "architecture": 90,
    "launch": 0,
    "kernel": "_kernel",
    "config": "BLOCK_M=64, 4 warps, 3 stages",
    "grid": [4, 1, 1],
    "block": [128, 1, 1],
    "instructions": 1000,
    "classes": {"float": 600, "load": 400},
    "sectors": 1024,
    "sectors_needed": 1024,
    "passes": 64,
    "requests": 64,
    "read_bytes": 4096,
    "distinct_bytes": 4096,
    "products": 16,
    "lines": {
        "a.py": [
            "50 aaa 400 0 0 0 0",
            "57 bbb 400 1024 1024 0 0",
            "61 ccc 200 0 0 64 64",
        ]
    },
}


def changed(**facts):
    return ROW | facts


def only_change(after):
    (move,) = moves([ROW], [after])
    (change,) = move.changes
    return move, change


def test_nothing_moves_where_nothing_differs_but_where_lines_are():
    assert moves([ROW], [dict(ROW)]) == ()
    moved = {"a.py": [f"{line[0]}9{line[2:]}" for line in ROW["lines"]["a.py"]]}
    assert moves([ROW], [changed(lines=moved)]) == ()


def test_more_sectors_are_worse_and_the_line_is_named():
    lines = {"a.py": ["50 aaa 400 0 0 0 0", "58 ddd 400 2048 1024 0 0"]}
    move, change = only_change(changed(sectors=2048, lines=lines))
    assert move.verdict == WORSE
    assert (
        change.text == "sectors 1,024 → 2,048 (1.00x → 2.00x of the fewest) at a.py:58"
    )
    (back,) = moves([changed(sectors=2048, lines=lines)], [ROW])
    assert back.verdict == BETTER and back.text.endswith(" at a.py:57")


def test_more_instructions_are_for_a_gpu_to_judge():
    lines = {"a.py": ["50 aaa 1400 0 0 0 0", *ROW["lines"]["a.py"][1:]]}
    classes = {"float": 600, "integer": 900, "load": 500}
    _, change = only_change(changed(instructions=2000, classes=classes, lines=lines))
    assert change.verdict == OPEN
    assert change.text == (
        "instructions 1,000 → 2,000 (+100.0%) at a.py:50: integer 0 → 900, load 400 → 500"
    )


@pytest.mark.parametrize(
    "facts, words",
    [
        (
            {"passes": 128},
            "shared-memory passes 64 → 128 (1.00x → 2.00x of the fewest)",
        ),
        (
            {"read_bytes": 8192},
            "bytes read 4,096 → 8,192 (1.00x → 2.00x of the distinct",
        ),
        ({"products": 8}, "products 16 → 8"),
        ({"grid": [8, 1, 1]}, "blocks 4x1x1 → 8x1x1"),
        (
            {"sectors_needed": 512},
            "sectors 1,024 → 1,024 (1.00x → 2.00x of the fewest)",
        ),
    ],
    ids=["passes", "reads", "products", "blocks", "needed"],
)
def test_each_count_is_told(facts, words):
    assert words in only_change(changed(**facts))[1].text


def test_traffic_of_another_configuration_is_no_verdict():
    config = "BLOCK_M=128, 4 warps, 3 stages"
    (move,) = moves([ROW], [changed(config=config, sectors=2048)])
    assert move.reconfigured == "BLOCK_M 64 → 128" and move.verdict == OPEN


def test_launches_come_and_go():
    second = changed(launch=1)
    assert [move.kind for move in moves([ROW], [ROW, second])] == [NEW]
    assert [move.kind for move in moves([ROW, second], [ROW])] == [GONE]
    place = {name: ROW[name] for name in list(ROW)[:6]}
    (failed,) = moves([ROW], [place | {"error": "ValueError: no"}])
    assert failed.verdict == WORSE and "ValueError: no" in failed.text
    (again,) = moves([place | {"error": "ValueError: no"}], [ROW])
    assert again.verdict == BETTER


def test_lines_that_were_changed_stand_for_those_that_they_replaced():
    was = {"a.py": ["1 aaa 10", "2 bbb 20", "3 ccc 30"]}
    now = {"a.py": ["1 aaa 10", "3 ddd 25", "5 ccc 30", "6 eee 1"]}
    grown = line_changes(was, now, lambda counts: counts[0])
    assert grown == {"a.py:1": 0, "a.py:3": 5, "a.py:5": 0, "a.py:6": 1}
