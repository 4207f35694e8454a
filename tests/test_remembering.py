"""What remembers its results is told from what is quick, on a machine that is not
quiet.
"""

import random

import pytest

from batchline.bench.measure.timing.sampling import Samples
from batchline.bench.measure.worker.watch import may_remember, require_no_memory
from batchline.bench.statuses import WRONG, NotMeasured
from tests.fake_machine import FakeCpu


class Buffers:
    """Says of each value whether it has been seen."""

    def __init__(self):
        self.is_new = True

    def renew(self):
        self.is_new = True

    def rewrite(self):
        pass


def _judged(seen_s, new_s, noise, seed):
    machine, buffers, draw = FakeCpu(), Buffers(), random.Random(seed)

    def launch():
        machine.host_s += (new_s if buffers.is_new else seen_s) * draw.lognormvariate(
            0, noise
        )
        if draw.random() < 0.1:
            machine.host_s += 5 * new_s  # somebody else had the core
        buffers.is_new = False

    require_no_memory(launch, buffers, seen_s, machine, "here")


@pytest.mark.parametrize("seen_s, new_s", [(1e-4, 3e-4), (1e-4, 2e-4)])
def test_a_memory_is_found_out(seen_s, new_s):
    caught = 0
    for seed in range(40):
        try:
            _judged(seen_s, new_s, 0.02, seed)
        except NotMeasured as refusal:
            assert (
                refusal.status == WRONG
                and "here: it remembers results: a call takes" in refusal.reason
            )
            caught += 1
    assert (
        caught >= 16
    )  # of 40, in one case each: somebody else's use of the core hides a third


@pytest.mark.parametrize("call_s", [1e-5, 2e-3])
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_no_honest_launch_is_blamed_whatever_the_machine_does(call_s, noise):
    for seed in range(2000):
        _judged(call_s, call_s, noise, seed)


@pytest.mark.parametrize(
    "first_s, median_s, asked",
    [
        (1.2e-3, 1e-3, False),
        (2e-3, 1e-3, True),
        (None, 1e-3, False),
        (2e-2, 1e-2, False),
    ],
)
def test_only_launches_that_begin_slowly_are_asked(first_s, median_s, asked):
    assert may_remember(Samples("host", 1, [median_s] * 6, first_s=first_s)) is asked
