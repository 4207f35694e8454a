"""`batchline.advise`, for step times and readings of a loop of the user's own."""

import pytest
import torch

import batchline
from batchline.bench.errors import UsageError
from batchline.bench.noise import advisor
from batchline.bench.noise.meter import NoiseMeter
from batchline.bench.stats.noise_scale import noise_scale, over_batches
from tests.test_noise_advisor import GIB, an_estimate, line_steps

TIMES = {step["batch"]: step["samples_s"] for step in line_steps()}
PEAKS = {step["batch"]: step["peak_bytes"] for step in line_steps()}


@pytest.fixture(scope="module")
def readings():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(5, 3)
    meter = NoiseMeter(model, reduction="mean")
    taken = []
    for _ in range(8):
        x = torch.randn(16, 5, generator=generator)
        with meter:
            (model(x) - 1).square().sum(1).mean().backward()
        taken.append(meter.reading)
    return taken


def test_it_is_the_advisor_on_the_loops_own_numbers(readings):
    scales = [
        noise_scale(one.whole.mean_square, one.whole.squared_norms) for one in readings
    ]
    estimate = over_batches(scales, 16)
    ours = batchline.advise(
        TIMES, readings, batch=64, peaks=PEAKS, limit_bytes=GIB * 16
    )
    theirs = advisor.advise(
        line_steps(), estimate.to_json(), GIB * 16, current_batch=64
    )
    assert ours.noise_scale == pytest.approx(theirs.noise_scale)
    assert (ours.best_batch, ours.largest_that_fits) == (
        theirs.best_batch,
        theirs.largest_that_fits,
    )
    assert str(ours).startswith(f"Train at batch {ours.best_batch}")


def test_one_time_a_batch_and_one_readings_estimate_are_enough(readings):
    times = {batch: samples[0] for batch, samples in TIMES.items()}
    advice = batchline.advise(times, readings[0].noise())
    assert advice.best_batch and advice.largest_that_fits is None


@pytest.mark.parametrize(
    "times, noise, words",
    [
        ({8: 1e-3}, None, "step times are needed at two batch sizes"),
        (TIMES, [], "of two steps or more, and there are 0"),
        (TIMES, [3.0], "not float"),
        ({1: 1e-3, 2: -1.0}, None, "must be seconds above 0"),
    ],
)
def test_what_no_batch_follows_from_is_one_line(readings, times, noise, words):
    with pytest.raises(UsageError, match=words):
        batchline.advise(times, readings if noise is None else noise)


def test_a_wall_that_was_tried_is_above_every_law():
    steps = [step | {"peak_bytes": None} for step in line_steps()]
    advice = advisor.advise(
        steps, an_estimate(), 16 * GIB, current_batch=64, largest_fit=20
    )
    assert advice.largest_that_fits == 20 and advice.best_batch == 20
    assert "20 is the largest batch that fits" in " ".join(advice.sentences)
    assert "The current 64 does not fit." in advice.sentences
    assert advice.at(16).fits and advice.at(64).fits is False
