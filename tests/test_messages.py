"""A worker's answer is believed as far as its parent can check it, and reading it runs
nothing.
"""

import json
import os
import pickle

import pytest

from batchline.bench.measure.worker import task
from batchline.bench.measure.worker.task import (
    DONE,
    LOST,
    RAISED,
    TAMPERED,
    Answer,
    Asked,
    Forged,
    Lines,
    Outcome,
    decoded,
    encoded,
)
from batchline.bench.statuses import MEASURED, WRONG

ASKED = Asked("1234", "measure", ("a", "b"), 100.0)
NOW_S = 110.0
FACTS = {
    "clock": "host",
    "clocks": {
        "host": {"median_s": 1.0, "samples": 2, "iterations": 1},
        "host_cold": {"median_s": 0.5, "samples": 4, "iterations": 1},
    },
}
OUTCOMES = {
    "a": Outcome(MEASURED, "", (1.0, 1.5), 2, FACTS),
    "b": Outcome(WRONG, "it changed its inputs"),
}


def line(content=OUTCOMES, kind=DONE, number="1234", began_s=101.0, ended_s=109.0):
    return encoded(number, Answer(kind, content, began_s, ended_s)).rstrip(b"\n")


def changed(label="a", **fields):
    """An answer whose outcome of `label` has other fields."""
    message = json.loads(line())
    message["content"][label] |= fields
    return json.dumps(message).encode()


def test_outcomes_come_as_they_were_sent():
    assert decoded(line(), ASKED, NOW_S).content == OUTCOMES


@pytest.mark.parametrize(
    "method, content, read",
    [
        ("turn", [[1e-3, 2e-3], None], ([1e-3, 2e-3], None)),
        ("turn", [[], "thermal slowdown"], ([], "thermal slowdown")),
        (
            "release",
            [{"a": OUTCOMES["b"]}, {"mhz": 1}],
            ({"a": OUTCOMES["b"]}, {"mhz": 1}),
        ),
        ("room", 2**40, 2**40),
        ("audit", [{"op": "bmm"}], [{"op": "bmm"}]),
    ],
)
def test_other_answers(method, content, read):
    assert (
        decoded(line(content), Asked("1234", method, (), 100.0), NOW_S).content == read
    )


def test_what_is_no_result():
    assert (
        decoded(line("KeyError: 'x'", RAISED), ASKED, NOW_S).content == "KeyError: 'x'"
    )
    assert (
        decoded(line("illegal access", LOST), ASKED, NOW_S).content == "illegal access"
    )
    assert decoded(line(("a", "it set a rlimit"), TAMPERED), ASKED, NOW_S).content == (
        "a",
        "it set a rlimit",
    )
    assert decoded(line((None, "\x1b[2J"), TAMPERED), ASKED, NOW_S).content == (
        None,
        "",
    )


@pytest.mark.parametrize(
    "forged",
    [
        line(number="other"),
        line(kind="guessed"),
        line(kind=RAISED),
        line((1, "x"), TAMPERED),
        line(began_s=99.0),
        line(began_s=105.0, ended_s=104.0),
        line(ended_s=111.0),
        line(ended_s=float("nan")),
        line({"a": OUTCOMES["a"]}),
        line(OUTCOMES | {"c": OUTCOMES["a"]}),
        line([]),
        line(None),
        changed(status="fast"),
        changed(reason=None),
        changed(iterations=0),
        changed(iterations=True),
        changed(iterations=10),
        changed(samples_s=[]),
        changed(samples_s=[-1.0]),
        changed(samples_s=[0.0]),
        changed(samples_s=["1"]),
        changed(samples_s=[float("inf")]),
        changed(samples_s=[float("nan")]),
        changed(samples_s=[1e-6] * 10**5),
        changed(samples_s=[6.0]),
        changed(samples_s="1"),
        changed(facts=[]),
        changed("b", samples_s=[9.0]),
        changed(more=1),
        changed(facts={"clocks": {"host_cold": {"median_s": "1"}}}),
        changed(
            facts={
                "clocks": {
                    "host_cold": {"median_s": 1.0, "samples": 1000, "iterations": 1}
                }
            }
        ),
        pickle.dumps((DONE, {})),
        b"",
        b"{",
        b"[" * 10**6,
        b"[]",
        b"1",
        b"{}",
        b"1" * 5000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_answer_to_what_was_asked(forged):
    with pytest.raises(Forged) as refusal:
        decoded(forged, ASKED, NOW_S)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "method, content",
    [
        ("turn", None),
        ("turn", [[1e-3]]),
        ("turn", [[-1e-3], None]),
        ("turn", [[20.0], None]),
        ("turn", [[1e-3], 1]),
        ("release", {}),
        ("release", [{}, None]),
        ("release", [{"a": {"status": "measured"}}, {}]),
    ],
)
def test_what_no_runner_gives(method, content):
    with pytest.raises(Forged):
        decoded(line(content), Asked("1234", method, (), 100.0), NOW_S)


def test_texts_are_cleaned_where_they_enter():
    facts = {"memory_method": "::error::\x1b[31m\ud800"}
    outcomes = decoded(
        line(
            {
                "a": Outcome(WRONG, "::error::" + "x" * 10**6, facts=facts),
                "b": OUTCOMES["b"],
            }
        ),
        ASKED,
        NOW_S,
    ).content
    assert len(outcomes["a"].reason) < 600 and not outcomes["a"].reason.startswith("::")
    assert outcomes["a"].facts["memory_method"].isprintable()
    assert not outcomes["a"].facts["memory_method"].startswith("::")


def test_what_is_not_json_is_an_error_of_ours():
    with pytest.raises(TypeError, match="can't answer with a object"):
        line({"a": object()})


class TestLines:
    @pytest.fixture
    def pipe(self):
        reading, writing = os.pipe()
        yield Lines(reading), writing
        os.close(reading)

    def test_a_line_that_comes_in_parts(self, pipe):
        lines, writing = pipe
        for part, read in (
            (b"one ", None),
            (b"line\n", b"one line"),
            (b"another\n", b"another"),
        ):
            os.write(writing, part)
            assert lines.next() == read
        os.close(writing)
        with pytest.raises(EOFError):
            lines.next()

    def test_more_than_one_and_too_much(self, pipe, monkeypatch):
        lines, writing = pipe
        os.write(writing, b"one\ntwo\n")
        with pytest.raises(Forged, match="more than one answer"):
            lines.next()
        monkeypatch.setattr(task, "MOST_BYTES", 2**10)
        os.write(writing, b"x" * 2**11)
        with pytest.raises(Forged, match="in one answer"):
            lines.next()
