"""The training part of a report: noise, advice and claims, whatever of them there is."""

import pytest

from batchline.bench.noise import advisor
from batchline.bench.report import (
    draw_training,
    training_on_terminal,
    training_readme,
)
from batchline.bench.report.sections import training
from tests.claims_evidence import sweep
from tests.documents import in_markdown
from tests.noise_evidence import noise, point, workload

MACHINE = {"device_name": "Some CPU"}


def _text(found, trained=None, figures=None):
    return training_readme(found, trained, MACHINE, figures or set())


def _noise_of(workload):
    return in_markdown(*training.noise_of(workload, advisor.moments(workload)))


def test_noise_advice_and_claims_stand_in_one_report():
    text = _text(noise(), sweep())
    for heading in (
        "## Gradient noise",
        "### The noise of digits",
        "## What batch size?",
        "### Predicted and measured: the time to a loss",
        "## The four claims",
    ):
        assert heading in text
    assert "For the noise after 50 updates, the middle of what was looked at" in text
    assert "the worst disagreement is" in text and "DOES NOT HOLD" in text


def test_the_cosines_stand_beside_their_law():
    text = _noise_of(noise()["workloads"]["digits"])
    row = next(
        line
        for line in text.splitlines()
        if line.startswith("| 400") and "(0.6" in line
    )
    assert (
        "0.286 (0.28" in row and "0.615 (0.61" in row
    )  # B = 64 and 256 at B_simple = 160


def test_what_can_not_be_bounded_is_said_and_predicts_no_more_than_it_may():
    noisy = workload([point(0, 0, 40.0, spread=3.0)])
    text = _noise_of(noisy)
    assert "cannot bound above" in text or "not distinguishable from zero" in text
    assert "at most" in text or "not known" in text


def test_a_failed_workload_is_a_row_of_its_own_and_the_others_stand():
    found = noise(
        digits=noise()["workloads"]["digits"],
        characters={"failed": "out of memory (noise after 0 updates)"},
    )
    text = _text(found)
    assert (
        "### The noise of characters\n\nNot measured: out of memory (noise after 0 updates)."
        in text
    )
    assert "### The noise of digits" in text
    assert "characters: the noise was not measured" in training_on_terminal(
        found, None, MACHINE
    )


def test_without_a_sweep_the_report_says_what_runs_one():
    text = _text(noise())
    assert "`batchline claims` runs one" in text and "NOT DECIDED" in text


def test_figures_are_drawn_and_shown(tmp_path):
    pytest.importorskip("matplotlib")
    figures = draw_training(noise(), sweep(), MACHINE, tmp_path)
    assert figures == {"noise", "advice-digits", "time-to-target"}
    text = _text(noise(), sweep(), figures)
    for name in figures:
        assert (
            tmp_path / f"{name}.png"
        ).stat().st_size > 1000 and f"({name}.png)" in text


def test_the_terminal_says_the_answer_in_lines():
    lines = training_on_terminal(noise(), sweep(), MACHINE)
    assert "digits: B_simple after 0 updates" in lines and "Train at batch 63" in lines
    assert (
        "4. a smaller batch makes the gradient's direction more consistent: DOES NOT HOLD"
        in lines
    )


def test_advice_that_can_not_be_had_is_a_line_and_the_report_goes_on(tmp_path):
    one_batch = [{"batch": 8, "samples_s": [1e-3] * 9, "peak_bytes": 1000}]
    found = noise(digits=workload([point(0, 0, 10.0)], steps=one_batch))
    text = _text(found)
    assert (
        "### The batch size of digits\n\nNo advice: " in text
        and "## The four claims" in text
    )
    assert "No advice: " in training_on_terminal(found, None, MACHINE)
    assert "advice-digits" not in draw_training(found, None, MACHINE, tmp_path)
