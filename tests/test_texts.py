"""Text from outside: what a run keeps of it, and what it can't do any more."""

import json
import re

import pytest
import torch

from batchline.bench import texts
from batchline.bench.texts import clean, clean_line, cleaned, error_line


@pytest.mark.parametrize(
    "text, kept",
    [
        ("a plain line", "a plain line"),
        ("größer als 5 µs", "größer als 5 µs"),
        ("a\udcffb", "a\ufffdb"),
        ("red \x1b[31mcell\x1b[0m, title \x1b]0;mine\x07!", "red cell, title !"),
        ("over\rwritten\r\nline", "over\nwritten\nline"),
        ("bell \x07, nul \0, turned \u202e", "bell \ufffd, nul \ufffd, turned \ufffd"),
        ("::error::gone", ": :error::gone"),
        ("fine\n  ::stop-commands::x", "fine\n  : :stop-commands::x"),
        ("in the middle::Warning file=a::b", "in the middle: :Warning file=a::b"),
        (
            "##[group]x ##vso[task] ##teamcity[x]",
            "## [group]x ## vso[task] ## teamcity[x]",
        ),
        ("at::native::add of std::vector", "at::native::add of std::vector"),
    ],
)
def test_what_steers_a_terminal_or_a_ci_is_taken_out(text, kept):
    assert clean(text) == kept
    clean(text).encode()


def test_a_long_text_is_cut_in_the_middle_and_says_so():
    text = clean("a" * 60_000_000 + "z", 300)
    assert (
        re.fullmatch(r"a{176} … 59,999,737 characters left out … a{87}z", text)
        and len(text) == 300
    )
    assert clean(text, 300) == text
    assert clean("a" * 300, 300) == "a" * 300


def test_a_line_has_no_line_break():
    assert clean_line(" two\n\tlines ") == "two lines"


def test_data_is_cleaned_in_all_its_depths():
    whole = cleaned({"\ud800": [1, None, ("::error::", {"x": 0.5})]})
    assert whole == {"\ufffd": [1, None, [": :error::", {"x": 0.5}]]}
    json.dumps(whole, ensure_ascii=False).encode()


class CompilationError(Exception):
    """As Triton's: the place, the source, a caret, and the cause if it has one."""


class TypingError(Exception):
    pass


def _raised_from(error, cause):
    error.__cause__ = cause
    return error


PLACE = "at 3:4:\ndef kernel(x):\n    pid = 0\n    load(y)\n    ^"


class _Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no")


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("not on a Sunday\nand more"), "ValueError: not on a Sunday"),
        (ValueError(), "ValueError: no message"),
        (_Unspeakable(), "_Unspeakable: its message can't be had (ValueError)"),
        (
            CompilationError(f"{PLACE}\nNameError('y is not defined')"),
            "CompilationError: NameError('y is not defined')",
        ),
        (
            _raised_from(CompilationError(PLACE), NameError("y is not defined")),
            "CompilationError: NameError: y is not defined",
        ),
        (
            _raised_from(
                CompilationError("at 1:0:\ndef outer(x):\n^"),
                CompilationError(f"{PLACE}\nno such load"),
            ),
            "CompilationError: CompilationError: no such load",
        ),
        (
            TypingError(
                "Failed in nopython mode pipeline (step: nopython frontend)\n\x1b[1mNo implementation of function "
                "Function(add) found for signature:\n \n >>> add(int64, str)\n\nThere are 22 candidates"
            ),
            "TypingError: No implementation of function Function(add) found for signature: >>> add(int64, str)",
        ),
        (
            RuntimeError(
                "backend='inductor' raised:\nCppCompileError: C++ compile error\n\nCommand:\ng++ -x\n\nOutput:\n"
                "/a.cpp:3:1: warning: odd\n/a.cpp:4:2: error: 'b' was not declared"
            ),
            "RuntimeError: CppCompileError: C++ compile error: /a.cpp:4:2: error: 'b' was not declared",
        ),
        (
            RuntimeError(
                "PTXAS error: Internal Triton PTX codec error\n`ptxas` stderr:\nptxas fatal   : no sm_999 here"
            ),
            "RuntimeError: PTXAS error: Internal Triton PTX codec error: ptxas fatal   : no sm_999 here".replace(
                "   ", " "
            ),
        ),
    ],
)
def test_an_error_is_told_by_its_cause(error, line):
    assert error_line(error) == line


def test_an_error_of_sixty_megabytes_is_a_line():
    line = error_line(ValueError("::error::" + "\udcff" * 60_000_000))
    assert (
        line.startswith("ValueError: : :error::") and len(line) < 2 * texts.MOST_IN_LINE
    )
    assert line.endswith("(and 59,934,473 characters more)")
    line.encode()


def test_numba_and_triton_really_say_it_there():
    numba = pytest.importorskip("numba")

    @numba.njit
    def add(a):
        return a + "x"

    with pytest.raises(numba.core.errors.TypingError) as raised:
        add(1)
    assert error_line(raised.value).startswith(
        "TypingError: No implementation of function Function(<built-in"
    )
    errors = pytest.importorskip("triton.compiler.errors")
    node = __import__("ast").parse("load(y)").body[0]
    told = error_line(errors.CompilationError("load(y)", node, "y is not defined"))
    assert told == "CompilationError: y is not defined"


def test_torch_compile_names_what_it_could_not_compile():
    def graph_break(x):
        torch._dynamo.graph_break()
        return x

    with pytest.raises(torch._dynamo.exc.Unsupported) as raised:
        torch.compile(graph_break, fullgraph=True)(torch.ones(2))
    assert "graph_break" in error_line(raised.value)


def test_a_shortened_line_keeps_its_ends():
    assert texts.shortened("a line", 6) == "a line"
    assert texts.shortened("scenario_of_17\nfloat32", 12) == "scenar…oat32"
