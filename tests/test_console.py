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


class _Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal


@pytest.mark.parametrize(
    "is_terminal, no_color, term, takes",
    [
        (True, None, "xterm", True),
        (True, "", "xterm", True),
        (True, "1", "xterm", False),
        (True, None, "dumb", False),
        (False, None, "xterm", False),
    ],
)
def test_colours_are_for_a_terminal_that_wants_them(
    monkeypatch, is_terminal, no_color, term, takes
):
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert console.takes_colour(_Stream(is_terminal)) is takes
