"""Calls that are too slow for a profile: a row, and no second try with a larger batch."""

import pytest

from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.preparing import LongCalls
from batchline.bench.measure.worker.task import Task
from batchline.bench.statuses import NOT_HERE, NotMeasured

EFFORT = Effort(0.1, 0.02)


def _task(batch, scenario="tiny_16", dtype="float32"):
    return Task(
        "bmm",
        scenario,
        dtype,
        batch,
        (("it", "slow"),),
        ("host",),
        EFFORT,
        EFFORT,
        0.001,
        longest_call_s=0.05,
    )


def _long_calls(*calls_s):
    return LongCalls(lambda launch, times=iter(calls_s): next(times))


def test_the_quickest_of_three_calls_decides():
    _long_calls(0.06, 0.07, 0.04).refuse_slow(None, "bmm/slow", _task(8))
    with pytest.raises(
        NotMeasured, match="a call takes over 50.0 ms, the most"
    ) as refused:
        _long_calls(0.06, 0.07, 0.051).refuse_slow(None, "bmm/slow", _task(8))
    assert refused.value.status == NOT_HERE


def test_only_larger_batches_of_the_same_are_not_tried():
    long_calls = _long_calls(1, 1, 1)
    with pytest.raises(NotMeasured):
        long_calls.refuse_slow(None, "bmm/slow", _task(8))
    for task in (
        _task(8),
        _task(4),
        _task(64, scenario="tiny_4"),
        _task(64, dtype="float16"),
    ):
        long_calls.refuse_known("bmm/slow", task)
    long_calls.refuse_known("bmm/other", _task(64))
    with pytest.raises(
        NotMeasured,
        match="over 50.0 ms at B=8 already, the most that this profile has time for",
    ):
        long_calls.refuse_known("bmm/slow", _task(64))
