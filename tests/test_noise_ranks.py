"""The number of ranks against the formula, on a law that is known; and the all-reduce, on
four ranks of gloo.
"""

import math

import pytest

from batchline.bench.errors import UsageError
from batchline.bench.noise.experiments import all_reduce, local_ranks
from batchline.bench.noise.ranks import WORTH, AllReduce, advise_ranks
from batchline.bench.noise.step_time import StepTimes
from batchline.bench.report.sections import advisor as section
from tests.documents import on_terminal
from tests.test_noise_advisor import ALPHA, BETA, line_steps

PHI = 400.0
LATENCY_S, BYTE_S = 1e-4, 1e-9
SIZES = (4096, 10**6, 4 * 10**6)
CURVE = StepTimes.of(line_steps()).curve()


def ring_s(ranks, size, latency_s=LATENCY_S, byte_s=BYTE_S):
    return 2 * (ranks - 1) * (latency_s + size / ranks * byte_s)


def timed(counts=(2, 4), cores=8, **law):
    return {
        "backend": "gloo",
        "cores": cores,
        "rows": [
            {"ranks": ranks, "bytes": size, "samples_s": [ring_s(ranks, size, **law)]}
            for ranks in counts
            for size in SIZES
        ],
    }


def test_a_rings_law_is_had_back_where_it_was_timed_and_beyond():
    law = AllReduce.of(timed())
    assert law.ring == pytest.approx((LATENCY_S, BYTE_S), rel=1e-6)
    for ranks in (2, 4, 8, 64):
        assert law.seconds(ranks, 2 * 10**6) == pytest.approx(
            ring_s(ranks, 2 * 10**6), rel=1e-6
        )
    assert law.seconds(1, 10**9) == 0
    assert [law.is_timed(ranks) for ranks in (1, 2, 4, 8)] == [True, True, True, False]


def test_what_is_modelled_is_no_shorter_than_what_was_timed():
    found = timed()
    for row in found["rows"]:
        if row["ranks"] == 4:
            row["samples_s"] = [1.0]
    law = AllReduce.of(found)
    assert law.seconds(8, SIZES[-1]) >= 1.0


def test_each_count_has_the_batch_of_the_least_time():
    law = AllReduce.of(timed())
    size = 10**6
    result = advise_ranks(CURVE, PHI, law, size, 6)
    assert [count.ranks for count in result.counts] == [1, 2, 4, 6]

    def time_s(ranks, batch):
        step_s = ALPHA + BETA * batch + (ring_s(ranks, size) if ranks > 1 else 0)
        return step_s * (1 + PHI / (ranks * batch))

    one_s = min(time_s(1, batch) for batch in range(1, 2000))
    for count in result.counts:
        best = min(range(1, 2000), key=lambda batch: time_s(count.ranks, batch))
        assert count.rank_batch == best
        assert count.speed == pytest.approx(one_s / time_s(count.ranks, best), rel=1e-4)


@pytest.mark.parametrize("latency_s, worth", [(0.0, 8), (1.0, 1)])
def test_ranks_are_worth_having_as_long_as_a_doubling_pays(latency_s, worth):
    law = AllReduce.of(timed(latency_s=latency_s, byte_s=1e-12))
    result = advise_ranks(CURVE, 1e4, law, 10**6, 8)
    assert result.worth == worth
    speeds = [count.speed for count in result.counts]
    pays = [after / before >= WORTH for before, after in zip(speeds, speeds[1:])]
    assert pays == [worth == 8] * 3


def test_memory_and_cost_limit_the_batches():
    law = AllReduce.of(timed())
    result = advise_ranks(CURVE, PHI, law, 10**6, 4, most=16, cap=40)
    assert [count.rank_batch for count in result.counts] == [16, 16, 10]
    flat = StepTimes.of(line_steps(beta=0)).curve()
    with pytest.raises(ValueError, match="falls as far as the batch grows"):
        advise_ranks(flat, math.inf, law, 10**6, 4)


def test_what_is_modelled_and_assumed_is_said():
    result = advise_ranks(CURVE, PHI, AllReduce.of(timed(cores=2)), 10**6, 16)
    text = " ".join(on_terminal(*section.ranks(result)).split())
    assert "over 8, 16 ranks is not measured but modelled" in text
    assert "which share its 2 cores" in text and "no rank was trained with" in text
    assert "2 ranks: 200 µs + bytes/(1 GB/s)" in text


def test_a_gradient_that_is_larger_than_all_that_was_sent_is_said():
    def told(size):
        result = advise_ranks(CURVE, PHI, AllReduce.of(timed()), size, 4)
        return " ".join(on_terminal(*section.ranks(result)).split())

    assert "The all-reduce of the gradient's 3.81 MiB was timed" in told(SIZES[-1])
    text = told(4 * SIZES[-1])
    assert "The gradient's 15.3 MiB were not sent" in text
    assert "`batchline all-reduce --parameters 4000000` would time it" in text
    assert "All-reduces of up to 3.81 MiB were timed over gloo" in text


@pytest.mark.slow
def test_all_reduces_of_four_ranks_are_timed():
    found = all_reduce.measure(10**6, 8, "cpu")
    counts = {(row["ranks"], row["bytes"]) for row in found["rows"]}
    assert counts == {
        (ranks, size) for ranks in (2, 4) for size in (4096, 62500, 250000, 10**6)
    }
    assert all(min(row["samples_s"]) > 0 for row in found["rows"])


@pytest.mark.commands
def test_all_reduces_of_two_ranks_are_timed():
    found = all_reduce.measure(1000, 2, "cpu")
    (row,) = found["rows"]
    assert (row["ranks"], row["bytes"]) == (2, 4096) and len(row["samples_s"]) >= 5


@pytest.mark.commands
def test_a_rank_that_ends_without_an_answer_is_said_at_once(monkeypatch):
    monkeypatch.setattr(local_ranks, "_be_rank", print)
    monkeypatch.setattr(local_ranks, "_ENDING_S", 0.1)
    with pytest.raises(UsageError, match="a rank has ended without an answer"):
        all_reduce.measure(1000, 2, "cpu")
