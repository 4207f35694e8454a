"""What the page's plots draw: what was measured, in numbers that JSON holds."""

from dataclasses import replace

import pytest

from batchline.bench.noise import advisor
from batchline.bench.noise.time_to_target import (
    Predicted,
    Prediction,
    Reached,
    Spread,
    TimeToTarget,
)
from batchline.bench.report import page_plots
from batchline.bench.report.findings import Findings
from tests.noise_evidence import noise, point, workload
from tests.pages import a_run, timed, with_records


def test_a_curve_has_what_was_measured():
    run = with_records(a_run(), timed("other", 4, 5e-6, peak_bytes=None))
    problem = page_plots.curves(run)["bmm"]["problems"]["tiny_16 · float32"]
    base, other = problem["curves"]
    assert (base["name"], base["batch"], other["name"]) == ("torch_bmm", [4], "other")
    assert base["latency"] == [pytest.approx(2.5e-6)] and base["low"] == [
        pytest.approx(1.75e-6)
    ]
    assert base["high"] == [pytest.approx(3.25e-6)] and base["memory"] == [4096 / 2**20]
    assert other["speedup"] == [pytest.approx(0.5)] and other["memory"] == [None]
    assert base["share"] == [pytest.approx(0.4)] and problem["floor"] == [
        pytest.approx(1e-6)
    ]
    assert base["text"] == [
        "torch_bmm, B = 4\nmedian 2.50 µs, known to ±2.0% (95%)\nquartiles 1.75 µs to 3.25 µs\n"
        "4 samples of 7 calls, host clock\n1.00x as fast as PyTorch's fastest\n"
        "peak memory 4.00 KiB\n40% of the launch ceiling, 1.00 µs"
    ]
    assert "memory n/a" in other["text"][0]


def test_a_curve_has_its_law_where_there_is_one():
    batches = (1, 3, 8, 33, 256)
    run = replace(
        a_run(),
        records=(
            *(timed("torch_bmm", batch, 1e-6 + 1e-7 * batch) for batch in batches),
            timed("other", 4, 1e-6),
        ),
    )
    problems = page_plots.curves(run, Findings(run).latency_laws)["bmm"]["problems"]
    base, other = problems["tiny_16 · float32"]["curves"]
    law = dict(zip(base["law"]["x"], base["law"]["y"]))
    assert min(law) == 1 and max(law) == 256 and len(law) > 10
    assert law[256] == pytest.approx(2.66e-5, rel=0.01) and other["law"] is None


def test_the_baseline_is_the_first_of_the_variants():
    run = replace(
        a_run(), records=(timed("another", 4, 1e-6), timed("torch_bmm", 4, 2e-6))
    )
    assert page_plots.curves(run)["bmm"]["variants"] == ["torch_bmm", "another"]


def test_a_run_without_ceilings_has_no_floor_and_no_shares():
    problem = page_plots.curves(a_run(ceilings=None, why_no_ceilings="no"))["bmm"][
        "problems"
    ]["tiny_16 · float32"]
    assert problem["floor"] == [None] and problem["curves"][0]["share"] == [None]


def test_noise_that_has_no_upper_end_is_drawn_at_its_lower():
    vague = workload([point(0, 1, 10.0, spread=0.5), point(9, 1, 40.0)])
    (curve,) = page_plots.noise({"digits": advisor.moments(vague)})["series"]
    assert (curve["y"][0], curve["high"][0]) == (
        curve["low"][0],
        None,
    ) and "cannot bound above" in curve["text"][0]
    assert curve["low"][1] < curve["y"][1] < curve["high"][1]


def test_the_advised_batch_is_marked():
    measured = noise()["workloads"]["digits"]
    advice = advisor.advice(measured, advisor.middle(measured))
    plots = page_plots.advice(advice)
    assert list(plots) == ["time", "step", "memory"]
    low, high = advice.interval
    for plot in plots.values():
        assert plot["marks"] == [
            {
                "x": advice.best_batch,
                "low": low,
                "high": high,
                "text": f"train at {advice.best_batch} ({low} to {high})",
            }
        ]
    assert dict(zip(plots["step"]["series"][0]["x"], plots["step"]["series"][0]["y"]))[
        16
    ] == pytest.approx(1.16e-3)
    assert plots["memory"]["series"][0]["y"] == [
        point.peak_bytes / 2**20 for point in advice.curve
    ]


def test_a_seed_that_did_not_reach_the_loss_leaves_its_range_open():
    spread = Spread(2.0, 1.0, None)
    measured = Reached(64, 0.1, False, 5, 4, spread, spread, spread)
    predicted = Predicted(64, 100.0, 3.0, (4.0, 2.5))
    plot = page_plots.time_to_target(
        TimeToTarget(
            "digits",
            0.1,
            (measured,),
            (Prediction("φ fitted", 9.0, None, 50.0, (predicted,)),),
        )
    )
    seen, law = plot["series"]
    assert (seen["y"], seen["low"], seen["high"], seen["line"]) == (
        [2.0],
        [1.0],
        [None],
        False,
    )
    assert (law["y"], law["low"], law["high"]) == (
        [3.0],
        [2.5],
        [4.0],
    ) and "4 of 5 seeds" in seen["text"][0]
