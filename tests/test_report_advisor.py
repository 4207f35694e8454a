"""The advisor's section and its figures, from advice of each kind."""

from xml.etree import ElementTree

import pytest

from batchline.bench.noise.advice import CAVEAT
from batchline.bench.noise.advisor import advise
from batchline.bench.noise.time_to_target import compare
from batchline.bench.report import figures
from batchline.bench.report.findings import TrainingFindings
from batchline.bench.report.sections import advisor
from tests.documents import in_markdown
from tests.noise_evidence import noise as survey
from tests.test_noise_advisor import GIB, SILENT, UNBOUNDED, an_estimate, line_steps
from tests.test_noise_time_to_target import STEPS, a_sweep, noise

BOUNDED, OPEN, NONE = (an_estimate(**fields) for fields in ({}, UNBOUNDED, SILENT))
ADVICE = {
    "noise": advise(line_steps(), BOUNDED, 16 * GIB, current_batch=512),
    "memory": advise(line_steps(fixed=0), BOUNDED, 2**20 * 30.5, headroom=0.0),
    "cost": advise(line_steps(), BOUNDED, 16 * GIB, cost_cap=1.5),
    "unbounded": advise(line_steps(), OPEN, 2 * GIB),
    "nothing": advise(line_steps(per_sample=0), OPEN, 2 * GIB),
    "no signal": advise(line_steps(), NONE, 16 * GIB),
}


def _never_at(batch):
    sweep = a_sweep(0.1)
    for run in sweep["runs"]:
        if run["batch"] == batch:
            run["curve"]["train_loss"] = [1.0] * len(run["curve"]["train_loss"])
    return sweep


RESULTS = {
    "both": compare(a_sweep(0.1), STEPS, noise()),
    "one that never": compare(_never_at(1024), STEPS),
}


def _cells(text, first):
    (line,) = [
        line
        for line in text.splitlines()
        if line.startswith("|") and line.split("|")[1].strip() == first
    ]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_section_begins_with_the_answer_and_ends_with_the_caveat():
    text = in_markdown(*advisor.at_moment(ADVICE["noise"]))
    assert text.startswith("Train at batch 4") and text.endswith(CAVEAT)
    assert text.split("\n\n")[0] == " ".join(ADVICE["noise"].sentences)
    assert advisor.summary(ADVICE["noise"]).count(".") >= 2


def test_a_row_a_batch_with_the_best_and_the_current_marked():
    text = in_markdown(*advisor.at_moment(ADVICE["noise"]))
    best = _cells(text, f"**{ADVICE['noise'].best_batch}**")
    assert best[1].endswith("(not measured)") and best[4] == "1.00x"
    assert _cells(text, "512 (current)")[:5] == [
        "512 (current)",
        "11.2 ms",
        "22.0 µs",
        "1.50 GiB",
        "3.38x",
    ]
    assert (
        "A step takes 1.00 ms + 20.0 µs·B" in text
        and "The noise scale is 40 (35 to 46)" in text
    )
    assert _cells(text, "4x")[3] == "12.5%"


@pytest.mark.parametrize(
    "kind, words",
    [
        ("memory", "memory decides: 30 is the largest batch that fits"),
        ("memory", "64.0 MiB: does not fit"),
        ("cost", "a larger batch may take over 1.5x the least examples"),
        ("unbounded", "at least 30 (cannot bound above)"),
        ("nothing", "Memory sets no limit: it does not grow with the batch"),
        ("no signal", "not known (signal not distinguishable from zero)"),
    ],
)
def test_what_decided_is_said(kind, words):
    assert words in in_markdown(*advisor.at_moment(ADVICE[kind]))


def test_the_comparison_says_the_worst_first_and_has_a_row_a_batch():
    text = in_markdown(*advisor.comparison(RESULTS["both"]))
    assert text.startswith(
        "With the noise scale measured after 50 updates, the worst disagreement is 1."
    )
    assert text.endswith(CAVEAT) and "94% confidence" in text and "(edge)" not in text
    row = _cells(text, "64")
    assert row[1:3] == ["0.5", "5/5"] and len(row) == 10 and row[5].count("ms") == 3


def test_a_batch_that_never_got_there_is_a_row():
    assert _cells(in_markdown(*advisor.comparison(RESULTS["one that never"])), "1,024")[
        1:6
    ] == ["none reached it", "0/0", "not reached", "not reached", "not reached"]


def _words_of(path):
    return "".join(ElementTree.parse(path).getroot().itertext())


@pytest.mark.parametrize("kind", ADVICE)
def test_the_figure_of_each_kind_of_advice(kind, tmp_path):
    figures.draw_advice(ADVICE[kind], "digits", tmp_path / "advice")
    words = _words_of(tmp_path / "advice.svg")
    assert (tmp_path / "advice.png").read_bytes().startswith(b"\x89PNG")
    best = ADVICE[kind].best_batch
    assert (
        f"best batch {best:,}, 95% interval" in words
        if best
        else "95% interval" not in words
    )


def test_the_same_advice_is_the_same_figure(tmp_path):
    advice = next(iter(ADVICE.values()))
    for name in ("first", "second"):
        figures.draw_advice(advice, "digits", tmp_path / name)
    first, second = (
        (tmp_path / f"{name}.svg").read_bytes() for name in ("first", "second")
    )
    assert first == second


@pytest.mark.parametrize("kind", RESULTS)
def test_the_figure_of_a_comparison(kind, tmp_path):
    figures.draw_comparison(RESULTS[kind], "digits", tmp_path / "time")
    words = _words_of(tmp_path / "time.svg")
    assert (
        "measured: median and range of seeds" in words
        and "predicted: the critical batch size" in words
    )


def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "why_no_plots", lambda: "matplotlib is not installed")
    findings = TrainingFindings(survey(), a_sweep(0.1))
    machine = {"device_name": "Some CPU"}
    assert figures.draw_training(findings, machine, tmp_path) == set()
    assert not list(tmp_path.iterdir())
