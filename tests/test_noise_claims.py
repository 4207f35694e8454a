"""The claims on memory and direction on planted truths, and all four together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from batchline.bench.noise import claims
from batchline.bench.noise.claims import speed
from batchline.bench.noise.claims.verdict import DOES_NOT_HOLD, HOLDS, NOT_DECIDED
from tests.claims_evidence import (
    drawn_cosines,
    noise,
    peaks_of_a_line,
    stored_estimate,
    sweep,
)

REPOSITORY = Path(__file__).resolve().parents[1]


def test_memory_that_grows_meets_the_limit():
    (found,) = speed.judge_memory(
        noise(peaks_of_a_line(1000, 4096), limit_bytes=2**30)
    ).findings
    assert (
        found.verdict == HOLDS
        and f"full at B = {(2 ** 30 - 1000) // 4096:,}" in found.effect
    )


@pytest.mark.parametrize(
    "steps, limit, verdict",
    [
        (peaks_of_a_line(1000, 4096), None, NOT_DECIDED),
        (peaks_of_a_line(1000, 0), 2**30, DOES_NOT_HOLD),
        (peaks_of_a_line(1000, 4096, (1, 4)), 2**30, NOT_DECIDED),
        ([{"batch": b, "peak_bytes": None} for b in (1, 2, 4)], 2**30, NOT_DECIDED),
    ],
    ids=["no limit", "flat", "two batches", "not measured"],
)
def test_memory_otherwise(steps, limit, verdict):
    assert speed.judge_memory(noise(steps, limit_bytes=limit)).verdict == verdict


def test_noisy_peaks_decide_nothing():
    steps = [
        {"batch": b, "peak_bytes": peak}
        for b, peak in ((1, 9e6), (4, 1e6), (16, 8e6), (64, 7e6))
    ]
    assert speed.judge_memory(noise(steps, limit_bytes=2**30)).verdict == NOT_DECIDED


def test_a_larger_batch_makes_the_direction_more_consistent():
    verdict = speed.judge_direction(
        noise(cosines=drawn_cosines(23.4), estimate=stored_estimate(23.4))
    )
    assert verdict.verdict == DOES_NOT_HOLD
    (table,) = verdict.evidence
    assert [row[-1] for row in table.rows] == ["yes"] * 4
    assert [float(row[3].split()[0]) for row in table.rows] == pytest.approx(
        [0.146, 0.406, 0.732, 0.916], abs=1e-3
    )


def test_a_wrong_noise_scale_does_not_predict_the_cosines():
    (table,) = speed.judge_direction(
        noise(cosines=drawn_cosines(23.4), estimate=stored_estimate(100.0))
    ).evidence
    assert all(row[-1].startswith("no, +") for row in table.rows)


def test_cosines_that_fall_would_confirm_the_claim():
    rows = drawn_cosines(23.4)
    reversed_ = [
        {"batch": row["batch"], "cosines": other["cosines"]}
        for row, other in zip(rows, rows[::-1])
    ]
    assert speed.judge_direction(noise(cosines=reversed_)).verdict == HOLDS


@pytest.mark.parametrize(
    "rows",
    [[], drawn_cosines(20, batches=(4,)), drawn_cosines(1e9, pairs=3)],
    ids=["none", "one batch size", "nothing but noise"],
)
def test_a_direction_that_is_not_decided(rows):
    assert speed.judge_direction(noise(cosines=rows)).verdict == NOT_DECIDED


def test_no_signal_predicts_no_cosine():
    estimate = stored_estimate(50.0, answer="signal not distinguishable from zero")
    (table,) = speed.judge_direction(
        noise(cosines=drawn_cosines(50), estimate=estimate)
    ).evidence
    assert {row[3] for row in table.rows} == {"none"}


def test_without_evidence_nothing_is_decided_and_each_says_which_command_measures_it():
    verdicts = claims.judge(None, None)
    assert [verdict.verdict for verdict in verdicts] == [NOT_DECIDED] * 4
    assert all(
        "batchline noise" in verdict.where or "batchline claims" in verdict.where
        for verdict in verdicts
    )


def test_a_record_that_went_through_json_gives_the_same_verdicts():
    steps, record = peaks_of_a_line(1000, 4096), sweep()
    measured = noise(steps, drawn_cosines(23.4), stored_estimate(23.4), 2**30)
    again = json.loads(json.dumps([record, measured]))
    assert claims.judge(*again) == claims.judge(record, measured)


def test_the_claims_need_no_torch():
    program = (
        "import sys\nsys.modules['torch'] = None\n"
        "from batchline.bench.noise import claims\nclaims.judge(None, None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
