"""The claims on speed and stability: the verdicts on sweeps and step times with a
planted truth.
"""

import math

import numpy as np
import pytest

from batchline.bench.noise.claims import speed, stability
from batchline.bench.noise.claims.verdict import (
    DOES_NOT_HOLD,
    HOLDS,
    NOT_DECIDED,
    ONLY_WHERE,
)
from batchline.bench.stats.intervals import Estimate
from tests.claims_evidence import BATCHES, NOISE_SCALE, TARGET, UNTRAINED, noise, sweep


def _doubling_pays(time_at, small, large):
    return (time_at(small) / time_at(large)) ** (1 / math.log2(large / small)) >= 1.05


def test_updates_to_the_target_fall_until_the_batch_is_past_the_noise_scale():
    verdict = speed.judge(
        sweep(), noise(steps=[{"batch": b, "samples_s": [1e-3] * 9} for b in BATCHES])
    )
    epoch, updates = verdict.findings
    assert (
        epoch.verdict == HOLDS
    )  # a step that always takes as long: an epoch takes 1/B of it

    def needed(batch):
        return 1 + NOISE_SCALE / batch

    gains = [
        _doubling_pays(needed, small, large)
        for small, large in zip(BATCHES, BATCHES[1:])
    ]
    flat = BATCHES[gains.index(False)]
    assert (updates.verdict, updates.where) == (ONLY_WHERE, f"B ≤ {flat}")
    assert f"fall by {needed(4) / needed(1024):.3g}x" in updates.effect
    assert f"rise by {256 * needed(1024) / needed(4):.3g}x" in updates.effect


def test_a_noise_scale_beyond_every_batch_holds_throughout():
    _, updates = speed.judge(sweep(noise_scale=1e5), None).findings
    assert updates.verdict == HOLDS


def test_without_any_noise_a_larger_batch_needs_no_fewer_updates():
    _, updates = speed.judge(sweep(noise_scale=0), None).findings
    assert updates.verdict == DOES_NOT_HOLD


@pytest.mark.parametrize(
    "gains, verdict, where",
    [
        ([(1.5, 1.4, 1.6)] * 3, HOLDS, ""),
        ([(1.0, 0.98, 1.02)] * 3, DOES_NOT_HOLD, ""),
        ([(1.5, 1.4, 1.6), (1.0, 0.98, 1.02), (0.8, 0.7, 0.9)], ONLY_WHERE, "B ≤ 2"),
        (
            [(1.5, 1.4, 1.6), (1.0, 0.98, 1.02), (1.5, 1.4, 1.6)],
            ONLY_WHERE,
            "B from 1 to 2, 4 to 8",
        ),
        (
            [(1.5, 1.4, 1.6), (1.5, 1.4, 1.6), (1.3, 0.9, 1.8)],
            ONLY_WHERE,
            "B ≤ 4 (the interval is too wide from B = 4 to 8)",
        ),
        (
            [(1.0, 0.9, 1.2)] * 3,
            NOT_DECIDED,
            "the interval is too wide from B = 1 to 8",
        ),
    ],
)
def test_up_to_which_batch_each_doubling_gains(gains, verdict, where):
    pairs = [
        (small, 2 * small, Estimate.of(*gain)) for small, gain in zip((1, 2, 4), gains)
    ]
    assert speed._down_to(pairs) == (verdict, where)


@pytest.mark.parametrize(
    "fixed_s, verdict", [(0.0, DOES_NOT_HOLD), (5e-3, ONLY_WHERE), (10.0, HOLDS)]
)
def test_an_epoch_is_sooner_until_the_fixed_time_of_a_step_is_spread(fixed_s, verdict):
    random = np.random.default_rng(4)
    steps = [
        {
            "batch": batch,
            "samples_s": (
                (fixed_s + 1e-3 * batch) * np.exp(random.normal(0, 0.01, 20))
            ).tolist(),
        }
        for batch in BATCHES
    ]
    epoch, _ = speed.judge(None, noise(steps)).findings
    assert epoch.verdict == verdict
    if verdict == ONLY_WHERE:
        assert (
            epoch.where == "B ≤ 64"
        )  # 1.078 ms a sample there and 1.020 at 256: 1.03 a doubling


def test_step_times_come_from_the_sweep_where_nothing_else_was_measured():
    epoch, _ = speed.judge(sweep(), None).findings
    assert "as trained in the sweep" in epoch.part and epoch.verdict == HOLDS


def test_a_batch_that_never_reaches_the_target_is_a_row():
    verdict = speed.judge(sweep(fails=lambda batch, rate: batch == 64), None)
    (row,) = [row for row in verdict.evidence[-1].rows if row[0] == "64"]
    assert row[1:4] == ("none", "0", "never")


def _part(verdict, words):
    (found,) = [finding for finding in verdict.findings if words in finding.part]
    return found


def test_the_jitter_of_the_loss_falls_with_the_batch():
    found = _part(stability.judge(sweep(jitter_power=-0.5)), "varies less")
    assert found.verdict == DOES_NOT_HOLD and "-0.50 (-0.50 to -0.50)" in found.effect
    assert (
        _part(stability.judge(sweep(jitter_power=0.3)), "varies less").verdict == HOLDS
    )


def test_the_batch_that_takes_every_sample_draws_none_and_stays_out_of_the_jitters_slope():
    record = sweep(jitter_power=-0.5) | {"samples": 1024}
    for run in record["runs"]:
        if run["batch"] == 1024:
            run["curve"]["step_loss_std"] = [
                value and value / 1000 for value in run["curve"]["step_loss_std"]
            ]
    assert (
        "-0.50 (-0.50 to -0.50)" in _part(stability.judge(record), "varies less").effect
    )


@pytest.mark.parametrize(
    "slope, spread, verdict",
    [
        (-0.01, 0.005, HOLDS),
        (0.01, 0.005, DOES_NOT_HOLD),
        (0.0, 0.001, DOES_NOT_HOLD),
        (0.0, 0.1, NOT_DECIDED),
    ],
)
def test_accuracy_against_the_batch(slope, spread, verdict):
    found = stability.judge(sweep(accuracy_slope=slope, accuracy_spread=spread))
    assert {
        finding.verdict for finding in found.findings if "tests better" in finding.part
    } == {verdict}


def test_a_budget_says_what_it_trained_to():
    found = _part(
        stability.judge(sweep()), "equal epochs, tuned"
    )  # two epochs: 718 updates of 4 and 3 of 1,024
    losses = [
        np.mean(
            [
                UNTRAINED
                * (TARGET / UNTRAINED) ** (updates / (needed * (1 + seed / 50)))
                for seed in range(5)
            ]
        )
        for updates, needed in ((718, 100 * (1 + 20 / 4)), (3, 100 * (1 + 20 / 1024)))
    ]
    told = [
        float(words.split()[0])
        for words in found.effect.partition("loss then ")[2].split(" and ")
    ]
    assert told == pytest.approx(losses, rel=0.06)


def test_one_seed_decides_nothing_about_accuracy():
    found = stability.judge(sweep(accuracy_slope=-0.01, seeds=1))
    assert {
        finding.verdict for finding in found.findings if "tests better" in finding.part
    } == {NOT_DECIDED}


@pytest.mark.parametrize(
    "power, verdict", [(0.4, HOLDS), (-0.4, DOES_NOT_HOLD), (0.02, DOES_NOT_HOLD)]
)
def test_sharpness_against_the_batch(power, verdict):
    found = _part(stability.judge(sweep(sharpness_power=power)), "flatter")
    assert found.verdict == verdict and f"{2 ** power:.3g}x" in found.effect


def test_seeds_that_fail_are_counted_and_compared():
    record = sweep(best=0.5, fails=lambda batch, rate: batch <= 16 and rate >= 0.25)
    found, table = stability._failures(record)
    assert [finding.verdict for finding in found] == [
        DOES_NOT_HOLD
    ] * 3  # at rates that all bear, none fails anywhere
    assert [row[2] for row in table.rows] == ["5 of 5 (5 d)"] * 2 + ["0 of 5"] * 3
    assert (
        "100% (69% to 100%) of the runs fail at B ≤ 16, 0% (0% to 31%)"
        in found[1].effect
    )
    record = sweep(
        best=0.5, fails=lambda batch, rate: batch in (64, 256) and rate >= 0.25
    )
    assert stability._failures(record)[0][1].verdict == HOLDS
    record = sweep(
        best=0.5, fails=lambda batch, rate: batch == 16 and rate >= 0.25, seeds=2
    )
    assert stability._failures(record)[0][1].verdict == NOT_DECIDED


def test_the_disagreement_of_the_literature_is_told():
    assert any("1609.04836" in source for source in stability.judge(None).sources)
    assert any("1811.03600" in source for source in stability.judge(None).sources)
