"""What a command prints on the stand-in for a GPU: a mark on each line, however the
lines are written.
"""

import io
import sys

import pytest

from batchline.bench import console
from batchline.bench.console import ERASED


@pytest.mark.parametrize(
    "parts, marked",
    [
        (["one\n"], "- one\n"),
        (["one", " more", "\n", "two\n"], "- one more\n- two\n"),
        (["a\n\nb\n"], "- a\n\n- b\n"),
        (["", "a\n"], "- a\n"),
        (
            [f"{ERASED}1 of 2", f"{ERASED}2 of 2", ERASED, "end\n"],
            f"{ERASED}- 1 of 2{ERASED}- 2 of 2{ERASED}- end\n",
        ),
    ],
)
def test_every_line_is_marked_once(monkeypatch, parts, marked):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    console.mark_lines("- ")
    for stream in (sys.stdout, sys.stderr):
        for part in parts:
            print(part, end="", file=stream)
        assert stream.getvalue() == marked


def test_a_marked_line_fits_the_terminal(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    wide = console.columns()
    console.mark_lines("- ")
    assert console.columns() == wide - 2
