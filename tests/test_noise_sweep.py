"""The training sweep: its runs, its two stages, its budgets, and sharpness against a
Hessian that is written out.
"""

import itertools
import json
import math
from concurrent.futures import Future, as_completed
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from batchline.bench.errors import UsageError
from batchline.bench.noise.experiments import sweep
from batchline.bench.noise.experiments.sweep import Grid, largest_eigenvalue, train
from batchline.bench.noise.time_to_target import steps_of
from batchline.bench.noise.workloads import workloads
from batchline.bench.stats import fits

DIGITS = workloads["digits"]
GRID = Grid(
    batches=(64, 1437),
    learning_rates=(0.125, 0.5, 64.0),
    tuning_seeds=1,
    seeds=2,
    updates=40,
    epochs=4,
    target_loss=1.5,
)


@pytest.fixture(scope="module")
def record():
    told = []
    found = sweep.run(seed=3, tell=told.append, grid=GRID, processes=1)
    assert any("training runs" in line for line in told)
    return found


@pytest.mark.commands  # it trains for seconds
def test_every_rate_has_the_tuning_seeds_and_the_best_has_all(record):
    planned = {
        (batch, rate, 3) for batch in GRID.batches for rate in GRID.learning_rates
    }
    ran = {(run["batch"], run["learning_rate"], run["seed"]) for run in record["runs"]}
    assert planned <= ran and len(ran) == len(record["runs"]) and not record["partial"]
    for batch in GRID.batches:
        best = fits.best_rate(record, batch, GRID.target_loss)
        assert [run["seed"] for run in fits.runs(record, batch, best)] == [
            3,
            4,
        ]
        assert len(fits.runs(record, batch, record["usual_rate"])) == 2


@pytest.mark.commands  # it trains for seconds
def test_the_record_is_plain_data(record):
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text) == record
    assert (
        record["machine"]["device_name"]
        and record["samples"] == 1437
        and record["held_out"] == 360
    )


@pytest.mark.commands  # it trains for seconds
def test_both_budgets_are_on_every_curve_that_did_not_diverge(record):
    for run in record["runs"]:
        if not run["diverged"]:
            budgets = fits.budget_updates(record, run["batch"])
            assert set(budgets) <= set(run["curve"]["updates"])
            assert max(budgets) == run["curve"]["updates"][-1]
            assert None not in [
                fits.value_at(run, budget, "test_accuracy") for budget in budgets
            ]


@pytest.mark.commands  # it trains for seconds
def test_budgets_are_read_as_they_were_trained(record):
    assert (
        fits.budget_updates(record, 64)
        == sweep.budget_updates(GRID, 64, 1437)
        == (40, round(4 * 1437 / 64))
    )


@pytest.mark.commands  # it trains for seconds
def test_a_rate_of_64_diverges_and_says_so(record):
    wild = [run for run in record["runs"] if run["learning_rate"] == 64]
    assert wild and all(
        run["diverged"] and run["why"] and run["sharpness"] is None for run in wild
    )
    assert all(
        not run["diverged"] and not run["why"]
        for run in record["runs"]
        if run["learning_rate"] < 1
    )


@pytest.mark.commands  # it trains for seconds
def test_times_of_a_sweep_beside_others_are_not_used(record):
    assert steps_of(record)
    with pytest.raises(
        ValueError, match="the machine was busy while the sweep trained"
    ):
        steps_of(record | {"why_busy": "other processes took 43% of the cores"})


def test_a_deadline_leaves_rows_of_what_was_not_run():
    found = sweep.run(seconds=0, tell=lambda line: None, grid=GRID, processes=1)
    assert found["partial"] and found["not_run"]
    assert all(len(job) == 3 for job in found["not_run"])


class _Waiting(Future):
    def cancel(self):
        if not self.cancelled() and super().cancel():
            self.set_running_or_notify_cancel()  # as a pool does


class _Pool:
    """Its first three jobs are done at once, and the others never."""

    def __init__(self):
        self._done = 0

    def submit(self, function, job, *arguments):
        future = _Waiting()
        if self._done < 3:
            self._done += 1
            future.set_result({"job": job})
        return future


def test_at_the_deadline_what_waits_is_given_up(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(sweep, "as_completed", partial(as_completed, timeout=60))
    jobs = [(64, 0.125, seed) for seed in range(20)]
    trained = sweep._trained(_Pool(), jobs, GRID, 1437, 5.0, "a stage", print)
    found = list(itertools.islice(trained, 3))
    now_s = 6.0
    found += trained
    assert sorted(job for job, _ in found) == jobs
    assert sorted(run["job"] for _, run in found if run) == jobs[:3]


@pytest.mark.parametrize(
    "grid", [Grid(batches=(4, 2000)), Grid(seeds=1), Grid(tuning_seeds=0)]
)
def test_a_grid_that_can_not_be_trained_is_refused(grid):
    with pytest.raises(UsageError, match="needs batches up to 1437"):
        sweep.run(grid=grid)


@pytest.mark.parametrize("batch", Grid().batches)
def test_the_points_tell_a_count_to_within_5_percent(batch):
    found = sweep.points(Grid(), batch, 1437)
    assert found[0] == 1 and found[-1] == max(sweep.budget_updates(Grid(), batch, 1437))
    assert all(
        later <= max(earlier + 1, 1.11 * earlier + 1)
        for earlier, later in zip(found, found[1:])
    )


# one run


@pytest.mark.slow
def test_a_run_is_the_same_again_but_for_its_times():
    first, second = (train(DIGITS, 32, 0.25, 5, [10, 20], 1.0) for _ in range(2))
    for run in (first, second):
        assert run["curve"].pop("train_s")[0] < 1e-3
    assert first == second
    assert (
        train(DIGITS, 32, 0.25, 6, [10, 20], 1.0)["curve"]["train_loss"]
        != first["curve"]["train_loss"]
    )


def test_the_curve_is_that_of_sgd_on_the_mean_loss():
    run = train(DIGITS, 1437, 0.5, 0, [1, 3], 0.0)
    model = DIGITS.model(0)
    x, y = DIGITS.train.inputs, DIGITS.train.targets
    expected = []
    for step in range(4):
        loss = DIGITS.losses(model, x, y).mean()
        if step in (0, 1, 3):
            expected.append(loss.item())
        for parameter, gradient in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters()))
        ):
            parameter.data -= 0.5 * gradient
    assert run["curve"]["train_loss"] == pytest.approx(expected, rel=2e-3)
    assert run["curve"]["updates"] == [0, 1, 3] and run["curve"]["train_s"] == sorted(
        run["curve"]["train_s"]
    )
    assert run["sharpness_at_target"] is None


@pytest.mark.slow
def test_the_jitter_is_that_of_the_steps_and_not_of_the_trend():
    small, large = (
        train(DIGITS, batch, 0.01, 0, [20, 60], 0.0)["curve"]["step_loss_std"]
        for batch in (8, 512)
    )
    assert (
        small[0] is None and 4 < small[-1] / large[-1] < 16
    )  # √64 = 8, and the draws are without replacement
    full = train(DIGITS, 1437, 0.01, 0, [60], 0.0)["curve"]
    assert full["step_loss_std"][-1] < 0.3 * large[-1]


# sharpness


def test_the_largest_eigenvalue_of_a_quadratic():
    x = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    scales = torch.tensor([3.0, 7.0, -1.0], dtype=torch.float64)
    assert largest_eigenvalue((scales * x**2).sum() / 2, [x]).value == pytest.approx(
        7, rel=1e-3
    )


def test_it_is_the_largest_though_a_negative_one_is_larger_in_magnitude():
    x = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    scales = torch.tensor([3.0, 1.0, -20.0], dtype=torch.float64)
    found = largest_eigenvalue((scales * x**2).sum() / 2, [x])
    assert abs(found.value - 3) <= max(0.03, found.residual)


def test_it_is_that_of_the_hessian_of_a_net():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    ).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
    names, parameters = zip(*model.named_parameters())

    def loss(*values):
        return torch.nn.functional.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, values)), (x,)), y
        )

    blocks = torch.autograd.functional.hessian(loss, parameters)
    rows = [
        torch.cat(
            [block.reshape(a.numel(), b.numel()) for block, b in zip(row, parameters)],
            1,
        )
        for row, a in zip(blocks, parameters)
    ]
    largest = float(torch.linalg.eigvalsh(torch.cat(rows)).max())
    found = largest_eigenvalue(loss(*parameters), parameters)
    assert (
        found.value == pytest.approx(largest, rel=2e-2)
        and found.residual <= 0.01 * abs(found.value) + 1e-9
    )


def test_a_layer_that_the_loss_does_not_curve_in_is_no_error():
    x, flat = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    assert largest_eigenvalue(
        (x**2).sum() + flat.sum(), [x, flat]
    ).value == pytest.approx(2, rel=1e-3)


def test_a_loss_that_is_not_finite_has_no_sharpness():
    x = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="must be finite"):
        largest_eigenvalue((x * math.inf).sum(), [x])
