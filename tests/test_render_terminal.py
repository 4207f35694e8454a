"""What goes to a terminal fits: tables wrapped in their cells or parted, prose wrapped;
no colours unless they are asked for.
"""

import itertools
from pathlib import Path

import pytest

from batchline.bench import report
from batchline.bench.report.render.terminal import COLUMNS, draw, wrapped
from batchline.bench.store import run_json
from batchline.bench.store.files import stored_below
from tests.comparisons import HOSTILE

EVIDENCE = sorted(
    stored_below(
        Path(__file__).resolve().parents[1] / "reports" / "evidence", "run.json"
    )
)
WORDS = "a variant that needs a GPU and says so at some length, as they do "


def _widest(text):
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize(
    "columns, words", [*itertools.product((1, 2, 5, 12, 40), (1, 4, 40))]
)
def test_a_table_fits_and_loses_no_word(columns, words):
    rows = [
        [
            f"row{row}",
            *(f"r{row}c{column} " + WORDS * words for column in range(1, columns)),
        ]
        for row in range(3)
    ]
    text = draw([f"h{column}" for column in range(columns)], rows)
    assert _widest(text) <= COLUMNS
    for row in range(3):
        assert all(f"r{row}c{column}" in text.split() for column in range(1, columns))
    assert all(f"h{column}" in text.split() for column in range(columns))


def test_a_narrow_table_is_one():
    assert draw(["a", "b"], [["1", "2 µs*"]]).splitlines() == [
        "a    b",
        "---  -----",
        "1    2 µs*",
    ]


def test_a_table_of_many_columns_is_parted_under_its_first():
    text = draw(
        ["", *(f"B={batch}" for batch in range(1000, 1040))],
        [["variant", *["12.3µs"] * 40]],
    )
    tables = text.split("\n\n")
    assert (
        len(tables) > 2
        and all("variant" in table for table in tables)
        and text.count("12.3µs") == 40
    )


def test_a_word_that_is_too_long_is_broken():
    assert _widest(draw(["case", "what"], [["x" * 300, "y" * 300]])) <= COLUMNS
    assert _widest(wrapped("x" * 300)) <= COLUMNS


@pytest.mark.parametrize(
    "folder", [path.parent for path in EVIDENCE], ids=lambda path: path.name
)
def test_every_stored_run_fits(folder):
    text = report.terminal(report.RunReport(run_json.load(folder)))
    assert _widest(text) <= COLUMNS
    assert text.startswith("Which wins where") and "\x1b" not in text
    assert "\n\nWhich variant: On " in text


def test_what_would_steer_the_terminal_does_not():
    text = draw(["case"], [[HOSTILE]])
    assert "\x1b" not in text and "tail" in text and len(text.splitlines()) > 2
