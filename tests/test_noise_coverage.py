"""The intervals cover the analytic layer's noise scale as often as they say, and wrong
estimators are found out.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from batchline.bench.errors import UsageError
from batchline.bench.noise.experiments import coverage
from batchline.bench.noise.experiments.coverage import (
    AS_CLAIMED,
    LEAST,
    MOST,
    Linear,
    Setting,
    estimate,
    measure,
    show,
    statistics_of,
)
from batchline.bench.stats.noise_scale import (
    NO_UPPER_BOUND,
    BatchStatistics,
    NoiseScale,
    noise_scale,
    over_batches,
)

DRAWS = 400


def _row(setting, estimator=None, seed=0, draws=DRAWS):
    return measure(setting, draws, torch.Generator().manual_seed(seed), estimator)


def _bounds(draws=DRAWS):
    """The least and the largest share of draws that 93% and 97.5% leave likely: past
    each lies 1 in 1,000.
    """
    return binom.ppf(0.001, draws, LEAST) / draws, binom.ppf(0.999, draws, MOST) / draws


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_statistics_are_those_of_materialised_gradients(tokens):
    x, dy = Linear(tokens, 5, 4, 0.3).draw(12, torch.Generator().manual_seed(0))
    x, dy = x.unflatten(0, (2, 6)), dy.unflatten(0, (2, 6))
    g = torch.einsum("dbto,dbti->dboi", dy, x).flatten(2)
    mean = g.mean(1)
    found = statistics_of(x, dy)
    for output, expected in zip(
        found,
        (mean.square().sum(1), g.square().sum(2), torch.einsum("dbp,dp->db", g, mean)),
    ):
        np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-14)


WELL_KNOWN = (
    Setting(32, 1, Linear(4, 4, 4, 0.5)),
    Setting(128, 1, Linear(1, 16, 16, 0.25)),
    Setting(256, 1, Linear(2, 16, 16, 1.0)),
    Setting(8, 16, Linear(4, 8, 8, 1.0)),
    Setting(64, 8, Linear(1, 16, 16, 1.0)),
)


@pytest.mark.parametrize(
    "setting", WELL_KNOWN, ids=lambda setting: f"{setting.batches}x{setting.batch}"
)
def test_intervals_cover_and_estimates_are_unbiased(setting):
    row = _row(setting)
    least, most = _bounds()
    assert row.bounded > 0.95 and least <= row.covered_where_bounded <= most
    assert abs(row.trace_off) < 4 and abs(row.square_off) < 4


@pytest.mark.parametrize(
    "setting",
    [Setting(32, 1, Linear(1, 32, 32, 0.8)), Setting(16, 4, Linear(1, 32, 32, 1.4))],
    ids=["within the batch", "over batches"],
)
def test_where_the_signal_is_too_weak_it_can_not_be_bounded_above(setting):
    row = _row(setting)
    assert row.no_upper_bound > 0.85 and row.covered >= _bounds()[0]
    assert row.bounded + row.no_upper_bound + row.no_signal == pytest.approx(1)


def test_a_signal_of_zero_has_no_upper_bound_but_a_lower_one():
    """Bounded by chance in 2.5%, and in as many surely negative, which says nothing: 5%
    of 400 is past 1 in 1,000.
    """
    random = np.random.default_rng(0)
    answers = []
    for _ in range(DRAWS):
        g = random.normal(size=(40, 30))
        mean = g.mean(0)
        answers.append(
            estimate([BatchStatistics(mean @ mean, np.square(g).sum(1), g @ mean)])
        )
    assert sum(found.simple.bounded for found in answers) <= 0.05 * DRAWS
    assert (
        sum(
            found.answer == NO_UPPER_BOUND and found.simple.low > 0 for found in answers
        )
        >= 0.9 * DRAWS
    )


def test_a_bootstrap_of_the_samples_does_not_cover_where_the_jackknife_does():
    """Resampling inflates ‖ḡ‖² by tr Σ/B: at B = 64 and a B_simple of 25, 300 draws of
    200 resamples each.
    """
    random, batch, truth = np.random.default_rng(0), 64, 25.0
    covered = np.zeros(2)
    for _ in range(300):
        g = 0.2 + random.normal(size=(batch, 100))
        gram, mean = g @ g.T, g.mean(0)
        shares = random.multinomial(batch, np.full(batch, 1 / batch), size=200) / batch
        squares, norms = (
            np.einsum("rb,bc,rc->r", shares, gram, shares),
            shares @ gram.diagonal(),
        )
        ratios = (norms - squares) * batch / (batch * squares - norms)
        low, high = np.quantile(ratios, (0.025, 0.975))
        jackknife = estimate([BatchStatistics(mean @ mean, gram.diagonal(), g @ mean)])
        covered += [low <= truth <= high, truth in jackknife.simple]
    assert covered[0] < 0.5 * 300 and covered[1] >= _bounds(300)[0] * 300


def _biased(batches):
    """‖ḡ‖² for ‖G‖², as it stands."""
    return over_batches(
        [
            NoiseScale(
                noise_scale(each.mean_square, each.squared_norms).trace,
                each.mean_square,
            )
            for each in batches
        ],
        batches[0].batch,
    )


def _clamped(batches):
    """‖G‖² of a batch clamped above 0, so that every batch has a ratio."""
    scales = [noise_scale(each.mean_square, each.squared_norms) for each in batches]
    return over_batches(
        [replace(scale, square=max(scale.square, 0.0)) for scale in scales],
        batches[0].batch,
    )


@pytest.mark.parametrize(
    "setting, wrong",
    [
        (Setting(64, 16, Linear(1, 16, 16, 1.0)), _biased),
        (Setting(8, 16, Linear(1, 16, 16, 1.0)), _clamped),
    ],
)
def test_a_wrong_estimator_is_found_out(setting, wrong):
    row = _row(setting, wrong, draws=150)
    assert row.verdict == "biased" and row.covered < _bounds(150)[0]
    right = _row(setting, draws=150)
    assert right.verdict != "biased" and right.covered >= _bounds(150)[0]


ROW = coverage.Row(
    WELL_KNOWN[0],
    1000,
    bounded=1.0,
    no_upper_bound=0.0,
    no_signal=0.0,
    covered=0.95,
    covered_where_bounded=0.95,
    trace_off=0.5,
    square_off=-2.9,
)
NARROW = Setting(512, 1, Linear(1, 32, 32, 1.4))


@pytest.mark.parametrize(
    "row, verdict",
    [
        (ROW, AS_CLAIMED),
        (replace(ROW, trace_off=-3.1), "biased"),
        (replace(ROW, square_off=3.1), "biased"),
        (replace(ROW, covered_where_bounded=0.929), "covers too little"),
        (replace(ROW, covered_where_bounded=0.976), "covers too much"),
        (replace(ROW, setting=NARROW, covered_where_bounded=0.99), AS_CLAIMED),
        (
            replace(
                ROW, setting=replace(NARROW, batches=2), covered_where_bounded=0.99
            ),
            "covers too much",
        ),
        (
            replace(ROW, bounded=0.3, covered_where_bounded=0.85, covered=0.95),
            AS_CLAIMED,
        ),
        (
            replace(ROW, bounded=0.0, covered_where_bounded=None, covered=0.92),
            "covers too little",
        ),
    ],
)
def test_the_verdict(row, verdict):
    assert row.verdict == verdict


def test_the_table_is_printed_and_its_exit_code_is_its_verdict(capsys, monkeypatch):
    monkeypatch.setattr(
        coverage, "SETTINGS", (WELL_KNOWN[0], Setting(8, 1, Linear(1, 32, 32, 1.4)))
    )
    assert coverage.run(draws=200, seed=3) == coverage.CLEAN
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 6 and "cannot bound above" in out.splitlines()[0]
    assert out.splitlines()[2].split()[:5] == ["32", "4", "4", "4", "0.5"]
    assert (
        "200 draws: a share of 95% is known to 1.5%" in out and "[2/2] 200 draws" in err
    )
    monkeypatch.setattr(
        coverage, "measure", lambda *_: replace(ROW, covered_where_bounded=0.9)
    )
    assert coverage.run(draws=200) == coverage.NOT_AS_CLAIMED
    assert "covers too little" in show([replace(ROW, covered_where_bounded=0.9)])


def test_one_draw_makes_no_share():
    with pytest.raises(UsageError, match="--draws is 1"):
        coverage.table(draws=1)
