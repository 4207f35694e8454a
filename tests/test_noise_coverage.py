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
    NOISES,
    PARAMETERS,
    WARNED,
    WIDE,
    Linear,
    Samples,
    Setting,
    estimate,
    measure,
    show,
    statistics_of,
)
from batchline.bench.stats.noise_scale import (
    NO_UPPER_BOUND,
    BatchStatistics,
    NoiseEstimate,
    NoiseScale,
    noise_scale,
    over_batches,
)

DRAWS = 400


def _row(setting, estimator=None, seed=0, draws=DRAWS):
    return measure(setting, draws, torch.Generator().manual_seed(seed), estimator)


def _bounds(draws=DRAWS):
    """The least and the largest share of draws that 93% and 97% leave likely: past
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


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.words)
def test_the_noise_has_the_trace_that_is_said_of_it(noise):
    """To five standard errors, where ‖e‖² has a variance; and mean 0."""
    drawn = noise.draw((400, 16, PARAMETERS), torch.Generator().manual_seed(0))
    squares = drawn.square().sum(2).flatten()
    off = 5 * float(squares.std()) / len(squares) ** 0.5
    assert float(squares.mean()) == pytest.approx(noise.trace, abs=off)
    assert float(drawn.mean((0, 1)).square().sum()) < 5 * noise.trace / len(squares)


def test_samples_have_the_noise_scale_that_they_are_asked_for():
    problem = Samples(NOISES[0], 40.0)
    square, n, d = problem.statistics(500, 32, torch.Generator().manual_seed(0))
    assert (n.shape, d.shape) == ((500, 32), (500, 32))
    scale = noise_scale(square.mean(), n.mean(0))
    assert scale.simple == pytest.approx(40.0, rel=0.05)


WELL_KNOWN = (
    Setting(32, 1, Linear(4, 4, 4, 0.5)),
    Setting(128, 1, Linear(1, 16, 16, 0.25)),
    Setting(256, 1, Samples(NOISES[0], 25.0)),
    Setting(8, 16, Linear(4, 8, 8, 1.0)),
    Setting(64, 16, Linear(1, 16, 16, 1.0)),
)


@pytest.mark.parametrize(
    "setting", WELL_KNOWN, ids=lambda setting: f"{setting.batches}x{setting.batch}"
)
def test_intervals_cover_and_estimates_are_unbiased(setting):
    row = _row(setting)
    least, most = _bounds()
    assert row.bounded > 0.95 and row.warned < 0.3
    assert least <= row.covered <= most
    assert abs(row.trace_off) < 4 and abs(row.square_off) < 4


@pytest.mark.parametrize(
    "setting",
    [Setting(32, 1, Linear(1, 32, 32, 0.8)), Setting(16, 4, Linear(1, 32, 32, 1.4))],
    ids=["within the batch", "over batches"],
)
def test_where_the_signal_is_too_weak_it_can_not_be_bounded_above(setting):
    row = _row(setting)
    assert row.bounded < 0.2 and row.covered >= _bounds()[0]
    assert row.misled <= 0.05


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
        sum(found.simple.bounded and not found.warning for found in answers)
        <= 0.01 * DRAWS
    )
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
    covered=0.95,
    warned=0.0,
    unwarned_covered=0.95,
    unwarned_too_high=0.025,
    misled=0.05,
    unseen=False,
    trace_off=0.5,
    square_off=-3.4,
)
OVER = replace(WELL_KNOWN[0], batches=16)
HEAVY = replace(WELL_KNOWN[0], problem=Samples(NOISES[4], 3.2))
OUTLIERS = replace(
    ROW, setting=Setting(64, 1, Samples(NOISES[-1], 64.0)), unwarned_covered=0.4
)


@pytest.mark.parametrize(
    "row, verdict",
    [
        (ROW, AS_CLAIMED),
        (replace(ROW, trace_off=-3.6), "biased"),
        (replace(ROW, square_off=3.6), "biased"),
        (replace(ROW, setting=HEAVY, square_off=3.6), AS_CLAIMED),
        (replace(ROW, unwarned_covered=0.90), "covers too little"),
        (replace(ROW, unwarned_covered=0.92), AS_CLAIMED),  # by chance
        (replace(ROW, draws=10**5, unwarned_covered=0.925), "covers too little"),
        (replace(ROW, draws=60, unwarned_covered=0.88), AS_CLAIMED),
        (replace(ROW, unwarned_too_high=0.06), "low end too high"),
        (replace(ROW, unwarned_covered=0.99), WIDE),
        (replace(ROW, setting=OVER, unwarned_covered=0.99), "covers too much"),
        (replace(ROW, setting=OVER, bounded=0.5, unwarned_covered=0.99), WIDE),
        (replace(ROW, warned=0.6, unwarned_covered=0.85, misled=0.06), WARNED),
        (
            replace(ROW, warned=0.6, unwarned_covered=0.7, misled=0.12),
            "misses without a warning",
        ),
        (
            replace(
                ROW,
                warned=1.0,
                unwarned_covered=None,
                unwarned_too_high=None,
                misled=0.0,
            ),
            WARNED,
        ),
        (replace(OUTLIERS, unseen=True), WARNED),
        (OUTLIERS, "covers too little"),
        (replace(ROW, unwarned_covered=0.4, unseen=True), "covers too little"),
    ],
)
def test_the_verdict(row, verdict):
    assert row.verdict == verdict


def _outliers(batch, batches):
    outliers = next(noise for noise in NOISES if noise.rare < 1)
    return Setting(batch, batches, Samples(outliers, float(batch)))


def test_outliers_that_so_few_samples_need_not_have_are_warned_of():
    row = _row(_outliers(64, 1), draws=100)
    assert row.misled > 0.3 and row.unseen
    assert row.verdict == WARNED
    assert replace(row, unseen=False).verdict not in coverage.GOOD


def test_samples_enough_for_no_warning_of_rare_ones_have_them():
    row = _row(_outliers(64, 16), draws=60)
    assert not row.unseen and row.shown_rare < row.setting.problem.rare
    assert row.verdict in coverage.GOOD


def test_without_the_warning_of_rare_samples_the_command_fails(monkeypatch, capsys):
    monkeypatch.setattr(coverage, "SETTINGS", (_outliers(16, 1),))
    assert coverage.run(draws=200) == coverage.CLEAN
    monkeypatch.setattr(NoiseEstimate, "unseen", "")
    assert coverage.run(draws=200) == coverage.NOT_AS_CLAIMED
    assert "covers too little" in capsys.readouterr().out


def test_the_table_is_printed_and_its_exit_code_is_its_verdict(capsys, monkeypatch):
    monkeypatch.setattr(
        coverage, "SETTINGS", (WELL_KNOWN[0], Setting(8, 1, Samples(NOISES[5], 8.0)))
    )
    assert coverage.run(draws=200, seed=3) == coverage.CLEAN
    out, err = capsys.readouterr()
    assert "covered of the rest" in out.splitlines()[0]
    assert out.splitlines()[2].startswith("linear, T 4, 4 to 4, σ 0.5")
    assert out.splitlines()[3].split()[-1] == WARNED  # 8 samples are few
    assert (
        "200 draws: a share of 95% is known to 1.5%" in out and "[2/2] 200 draws" in err
    )
    monkeypatch.setattr(
        coverage, "measure", lambda *_: replace(ROW, unwarned_covered=0.8)
    )
    assert coverage.run(draws=200) == coverage.NOT_AS_CLAIMED
    assert "covers too little" in show([replace(ROW, unwarned_covered=0.8)])


def test_every_setting_is_of_another_problem_or_size():
    assert len(set(coverage.SETTINGS)) == len(coverage.SETTINGS) >= 18 + 40
    assert {setting.problem.light for setting in coverage.SETTINGS} == {True, False}


def test_one_draw_makes_no_share():
    with pytest.raises(UsageError, match="--draws is 1"):
        coverage.table(draws=1)
