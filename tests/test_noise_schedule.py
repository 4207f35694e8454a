"""A batch that grows with the noise, against trying every way."""

import itertools

import pytest

from batchline.bench.noise.schedule import schedule, why_none
from batchline.bench.noise import advisor
from batchline.bench.report.sections import advisor as section
from tests.documents import on_terminal
from tests.noise_evidence import point, workload
from tests.test_noise_advisor import ALPHA, BETA, line_steps

POINTS = ((0, 10.0), (50, 40.0), (200, 160.0), (400, 640.0))


def training(points=POINTS, **line):
    return workload(
        [point(updates, 0, simple, 0.01) for updates, simple in points],
        line_steps(**line),
    )


def stretches(found):
    """(updates without noise, φ) of each."""
    moments = advisor.moments(found)
    for before, after in itertools.pairwise(moments):
        ends = before.estimate.scale.simple, after.estimate.scale.simple
        scale = (ends[0] * ends[1]) ** 0.5
        yield (after.updates - before.updates) / (1 + scale / 32), scale


def test_it_is_the_best_of_all_that_never_shrink_and_saves_what_the_model_says():
    found = training()
    result = schedule(found)
    batches = [one.batch for one in result.stretches]
    assert batches == sorted(batches) and len(set(batches)) == 3

    def time_s(batch, need, scale):
        return need * (ALPHA + BETA * batch) * (1 + scale / batch)

    needs = list(stretches(found))
    tried = range(1, 700)
    best_s = sum(min(time_s(batch, *one) for batch in tried) for one in needs)
    ours_s = sum(one.time_s for one in result.stretches)
    assert ours_s == pytest.approx(best_s, rel=1e-3)
    constant_s = min(sum(time_s(batch, *one) for one in needs) for batch in tried)
    assert result.constant_s == pytest.approx(constant_s, rel=0.01)
    assert result.time_saved == pytest.approx(1 - ours_s / result.constant_s)
    assert result.time_saved > 0
    for one, (need, scale) in zip(result.stretches, needs):
        assert one.updates == pytest.approx(need * (1 + scale / one.batch))


def test_no_batch_shrinks_or_is_too_large():
    dips = training(((0, 10.0), (50, 300.0), (100, 40.0), (200, 160.0)))
    batches = [one.batch for one in schedule(dips).stretches]
    assert batches == sorted(batches)
    assert all(one.batch <= 20 for one in schedule(training(), 20).stretches)


def test_where_the_noise_does_not_grow_beyond_doubt_there_is_none():
    still = training(((0, 40.0), (50, 40.1)))
    assert "has not grown beyond doubt" in why_none(advisor.moments(still))
    assert schedule(still) is None
    assert "fewer than two points" in why_none(advisor.moments(training(POINTS[:1])))
    text = on_terminal(*section.growing(still, None))
    assert text.startswith("No schedule of batch sizes: the noise scale has not grown")


def test_it_is_said_to_be_a_prediction():
    text = " ".join(on_terminal(*section.growing(training(), None)).split())
    assert text.startswith("Prediction: growing the batch with the noise, ")
    assert "Nothing of this was trained" in text and "the learning rate must" in text
    small = on_terminal(*section.growing(training(), 1))
    assert "saves less than 1% of the time of batch 1 throughout" in " ".join(
        small.split()
    )
