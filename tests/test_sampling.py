"""Samples in turns on a machine that drifts, throttles, spikes and fails: when they
end, and what they then hold.
"""

import contextlib
import functools
import gc
import math
import statistics

import pytest

from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.timing.clocks import Host, Unfit
from batchline.bench.measure.timing.sampling import Effort, Samples
from batchline.bench.stats import intervals
from batchline.bench.statuses import INVALID, NotMeasured
from tests.fake_machine import FakeCpu, FakeCuda, Kernel, sampled

TO_THE_END = -1.0  # a precision that nothing reaches
MACHINES = {"host": FakeCpu, "device_cold": functools.partial(FakeCuda, tick_s=1e-8)}
MOST = {"host": 400, "device_cold": 10_000}  # more than fit the time
DRIFTS = {
    "swinging": lambda at_s: 1 + 0.15 * math.sin(2 * math.pi * at_s),
    "heating": lambda at_s: 1 + 0.3 * at_s,
}
both_kinds = pytest.mark.parametrize("clock", MACHINES)


def _pair(clock, a_s=1e-4, b_s=1e-4, **settings):
    machine = MACHINES[clock](**settings)
    return machine, {"a": Kernel(machine, a_s), "b": Kernel(machine, b_s)}


# What the machine does over time is in all launches alike.


@both_kinds
@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize(
    "precision, noise",
    [(TO_THE_END, 0.01), (0.004, 0.02)],
    ids=["all the time", "until precise"],
)
@pytest.mark.parametrize(
    "a_s, b_s", [(1e-4, 1e-4), (8e-5, 3.6e-4)], ids=["alike", "unlike"]
)
def test_the_ratio_of_two_launches_is_true_on_a_drifting_machine(
    clock, drift, precision, noise, a_s, b_s
):
    ratios = []
    for seed in range(6):
        _, kernels = _pair(clock, a_s, b_s, drift=DRIFTS[drift], noise=noise, seed=seed)
        taken = sampled(
            clock, kernels, Effort(precision, 0.4, most=MOST[clock]), seed=seed
        )
        ratios.append(taken["b"].median_s / taken["a"].median_s)
    assert ratios == pytest.approx([b_s / a_s] * 6, rel=0.01)


@both_kinds
@pytest.mark.parametrize("drift", DRIFTS)
def test_one_after_the_other_they_would_differ_by_more(clock, drift):
    _, kernels = _pair(clock, drift=DRIFTS[drift])
    one, other = (
        sampled(clock, {name: kernel}, Effort(TO_THE_END, 0.4, most=MOST[clock]))[name]
        for name, kernel in kernels.items()
    )
    assert abs(one.median_s / other.median_s - 1) > 0.05


@both_kinds
def test_spikes_do_not_move_a_median(clock):
    machine = MACHINES[clock](spikes=0.1, seed=1)
    samples = sampled(clock, {"": Kernel(machine, 4e-3)}, Effort(TO_THE_END, 1.0))[""]
    assert max(samples.samples_s) > 16e-3 and samples.median_s == pytest.approx(
        4e-3, rel=0.01
    )


@pytest.mark.parametrize("rests", [True, False])
def test_a_turn_waits_for_the_threads_of_the_one_before(rests):
    machine = FakeCpu()
    kernels = {
        "spins": Kernel(machine, 1e-4, spins_s=7e-3),
        "alone": Kernel(machine, 1e-4),
    }
    settings = {} if rests else {"rest": lambda: None}
    taken = sampled("host", kernels, Effort(TO_THE_END, 0.2), **settings)
    assert (taken["alone"].median_s == pytest.approx(1e-4, rel=0.01)) is rests
    assert taken["spins"].median_s == pytest.approx(1e-4, rel=0.01)


# Throttling.


@both_kinds
@pytest.mark.parametrize(
    "episodes", [[(0.1, 0.35)], [(0, 0.06)], [(0.1, 0.12), (0.6, 0.7), (1.2, 1.25)]]
)
def test_samples_of_a_throttled_machine_are_dropped_and_taken_again(clock, episodes):
    machine, kernels = _pair(clock, throttled=episodes)
    for samples in sampled(clock, kernels, Effort(TO_THE_END, 0.8)).values():
        assert samples.samples_s == pytest.approx(
            [1e-4] * len(samples.samples_s), rel=0.01
        )
        assert len(samples.samples_s) > 100 and samples.discarded > 0
    assert 1 <= len(machine.pauses_s) <= 4


@both_kinds
def test_nothing_is_dropped_and_no_pause_taken_where_nothing_throttles(clock):
    machine, kernels = _pair(clock)
    assert all(
        samples.discarded == 0
        for samples in sampled(clock, kernels, Effort(TO_THE_END, 0.2)).values()
    )
    assert machine.pauses_s == []


@both_kinds
def test_the_state_is_asked_for_every_twentieth_of_a_second_or_so(clock, monkeypatch):
    machine, kernels = _pair(clock)
    asked_s = []
    monkeypatch.setattr(
        machine, "why_throttled", lambda: asked_s.append(machine.host_s)
    )
    sampled(clock, kernels, Effort(TO_THE_END, 0.5, most=MOST[clock]))
    assert (
        all(
            0.04 < later - earlier < 0.07
            for earlier, later in zip(asked_s, asked_s[1:])
        )
        and len(asked_s) > 10
    )


@both_kinds
def test_a_machine_that_stays_throttled_gives_no_number(clock):
    machine, kernels = _pair(clock, throttled=[(0, math.inf)])
    for outcome in sampled(clock, kernels, Effort(0.01, 0.4)).values():
        assert isinstance(outcome, NotMeasured) and outcome.status == INVALID
        assert outcome.reason.startswith(
            "the machine was throttled (thermal slowdown): 0 of at least 6 samples"
        )
        dropped = int(outcome.reason.split()[-3])
        assert dropped >= 5
    assert (
        machine.pauses_s == sorted(set(machine.pauses_s)) and len(machine.pauses_s) > 2
    )
    assert 1 < machine.host_s < 20  # it gave the machine time to cool, and then up


def test_what_was_clean_before_it_throttled_for_good_counts_where_it_is_enough():
    machine = FakeCpu(throttled=[(1.0, math.inf)])
    taken = sampled(
        "host",
        {"fast": Kernel(machine, 1e-4), "slow": Kernel(machine, 0.02)},
        Effort(TO_THE_END, seconds=5, least=30, most=4000),
    )
    assert taken["fast"].samples_s == pytest.approx(
        [1e-4] * len(taken["fast"].samples_s), rel=0.01
    )
    assert (
        taken["slow"].status == INVALID
        and "of at least 30 samples" in taken["slow"].reason
    )
    assert not taken["slow"].reason.startswith("0 ")


# When they end.


@both_kinds
def test_precise_launches_end_early_and_noisy_ones_take_their_time(clock):
    effort = Effort(precision=0.01, seconds=1.0, most=100_000)
    machine, kernels = _pair(clock, noise=0.002)
    precise = sampled(clock, kernels, effort)
    assert machine.host_s < 0.3 and all(
        samples.precision <= 0.01 for samples in precise.values()
    )
    machine = MACHINES[clock](noise=0.5)
    noisy = sampled(clock, {name: Kernel(machine, 5e-3) for name in "ab"}, effort)
    assert 1.9 < machine.host_s < 2.6 and all(
        samples.precision > 0.01 for samples in noisy.values()
    )
    for samples in [*precise.values(), *noisy.values()]:
        assert samples.precision == intervals.median_precision(samples.samples_s)
        assert samples.median_s == statistics.median(samples.samples_s)


@pytest.mark.parametrize("least", [6, 9])
def test_a_launch_that_takes_longer_than_all_the_time_gets_the_least_samples(least):
    kernel = Kernel(FakeCpu(), 1.0)
    assert (
        len(sampled("host", {"": kernel}, Effort(0.01, 0.1, least))[""].samples_s)
        == least
    )


@both_kinds
@pytest.mark.parametrize("most", [50, 400])
def test_no_launch_gets_more_than_the_most_samples(clock, most):
    machine, kernels = _pair(clock)
    taken = sampled(
        clock,
        kernels | {"slow": Kernel(machine, 0.05)},
        Effort(TO_THE_END, 2.0, most=most),
    )
    assert all(0.95 * most <= len(taken[name].samples_s) <= most for name in "ab")
    assert 6 <= len(taken["slow"].samples_s) <= most


def test_the_most_samples_are_of_the_whole_time():
    machine, kernels = _pair("device_cold", b_s=0.05, drift=DRIFTS["heating"])
    samples = sampled("device_cold", kernels, Effort(TO_THE_END, 1.0, most=50))[
        "a"
    ].samples_s
    assert samples[-1] == pytest.approx(
        1e-4 * DRIFTS["heating"](machine.host_s), rel=0.02
    )
    assert len(samples) == 50 and samples[-1] > 1.1 * samples[0]


@both_kinds
@pytest.mark.parametrize("error", [RuntimeError("no luck"), SystemExit(3)])
def test_what_raises_is_its_own_outcome_and_has_no_turn_any_more(clock, error):
    machine, kernels = _pair(clock, noise=0.05)
    kernels["broken"] = Kernel(machine, 1e-4, raises={60: error})
    turns = []
    taken = sampled(
        clock,
        kernels,
        Effort(0.01, 0.4),
        tell=lambda name: turns.append((name, machine.host_s)),
    )
    assert taken["broken"] is error
    assert all(len(taken[name].samples_s) >= 6 for name in "ab")
    raised_s = kernels["broken"].called_s[-1]
    assert (
        len(kernels["broken"].called_s) == 60
        and max(at_s for _, at_s in turns) > raised_s
    )
    assert [name for name, at_s in turns if at_s > raised_s and name == "broken"] == []


def test_a_launch_that_the_clock_can_not_time_leaves_the_others_theirs():
    machine = FakeCuda()
    taken = sampled(
        "device_cold",
        {"waits": Kernel(machine, 1e-4, waits=True), "": Kernel(machine, 1e-4)},
        Effort(0.01, 0.2),
    )
    assert isinstance(taken["waits"], Unfit) and taken[""].median_s == pytest.approx(
        1e-4, rel=0.01
    )


def test_nobody_has_a_turn_when_all_have_raised():
    machine, turns = FakeCpu(), []
    kernels = {
        name: Kernel(machine, 1e-4, raises={40: MemoryError(name)}) for name in "ab"
    }
    taken = sampled(
        "host", kernels, Effort(TO_THE_END, 0.1), tell=lambda name: turns.append(name)
    )
    assert [str(taken[name]) for name in "ab"] == ["a", "b"] and len(turns) < 10


def test_a_clock_that_reads_less_than_its_samples_take_is_no_clock_any_more(
    monkeypatch,
):
    machine = FakeCpu(noise=0.1)
    kernels = {"honest": Kernel(machine, 1e-3), "cheat": Kernel(machine, 1e-3)}
    sampled("host", kernels, Effort(TO_THE_END, 0.1))
    sample = Host.sample
    monkeypatch.setattr(
        Host,
        "sample",
        lambda clock: sample(clock) * (0.8 if clock.launch is kernels["cheat"] else 1),
    )
    with pytest.raises(
        Tampered, match="it changed the clock: samples that read"
    ) as tampered:
        sampled("host", kernels, Effort(TO_THE_END, 0.1))
    assert tampered.value.whose == "cheat"


def test_where_samples_of_all_take_longer_than_they_read_the_machine_is_slow_and_nobody_is_blamed(
    monkeypatch,
):
    machine = FakeCpu(noise=0.1)
    kernels = {name: Kernel(machine, 1e-4) for name in ("one", "other")}
    sample = Host.sample
    monkeypatch.setattr(
        Host,
        "sample",
        lambda clock: sample(clock) * (0.8 if clock.launch is kernels["one"] else 0.85),
    )
    assert all(
        isinstance(one, Samples)
        for one in sampled("host", kernels, Effort(TO_THE_END, 0.1)).values()
    )


def test_a_clock_that_is_slowed_down_for_all_is_no_busy_machine(monkeypatch):
    machine = FakeCpu(noise=0.1)
    kernels = {name: Kernel(machine, 1e-3) for name in ("one", "other")}
    sample = Host.sample
    monkeypatch.setattr(Host, "sample", lambda clock: sample(clock) / 2)
    with pytest.raises(Tampered, match="it changed the clock"):
        sampled("host", kernels, Effort(TO_THE_END, 0.1))


# Whose turn it is.


def test_a_fast_launch_is_sampled_all_along_a_slow_one():
    machine = FakeCpu(noise=0.1)
    slow, fast = Kernel(machine, 0.06), Kernel(machine, 5e-5)
    taken = sampled("host", {"slow": slow, "fast": fast}, Effort(TO_THE_END, 1.0))
    assert isinstance(taken["slow"], Samples) and 6 <= len(taken["slow"].samples_s)
    measured = slow.called_s[-len(taken["slow"].samples_s) :]
    between = [
        sum(start_s < at_s < end_s for at_s in fast.called_s)
        for start_s, end_s in zip(measured, measured[2:])
    ]
    assert min(between) > 100  # in any two rounds, however they are shuffled
    warm_up = 20
    within = sum(measured[0] < at_s < measured[-1] for at_s in fast.called_s)
    assert within > 0.3 * (len(fast.called_s) - warm_up)


def test_every_round_has_each_launch_once_in_an_order_of_its_own():
    machine, turns = FakeCpu(noise=0.1), []
    kernels = {name: Kernel(machine, 1e-4) for name in "abcd"}
    sampled("host", kernels, Effort(TO_THE_END, 0.2), tell=turns.append)
    rounds = ["".join(turns[start : start + 4]) for start in range(0, 80, 4)]
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 8 and {order[0] for order in rounds} == set("abcd")


@both_kinds
def test_tell_is_told_whose_turn_it_is_before_it_runs(clock):
    machine, turns, wrong = MACHINES[clock](), [], []

    class Told(Kernel):
        def __call__(self):
            if turns and kernels[turns[-1]] is not self:
                wrong.append(turns[-1])
            return super().__call__()

    kernels = {name: Told(machine, 1e-4) for name in "abc"}
    sampled(clock, kernels, Effort(TO_THE_END, 0.1), tell=turns.append)
    assert not wrong and set(turns) == set("abc")


@pytest.mark.parametrize("collecting", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError(), KeyboardInterrupt()], ids=repr)
def test_no_collection_while_samples_are_taken_and_again_after(
    collecting, error, monkeypatch
):
    machine, seen = FakeCpu(), set()
    monkeypatch.setattr(machine, "evict", lambda: seen.add(gc.isenabled()))
    kernels = {
        "": Kernel(machine, 1e-4, raises={100: error} if error else {}),
        "other": Kernel(machine, 1e-4),
    }
    interrupted = isinstance(
        error, KeyboardInterrupt
    )  # it is nobody's outcome, and ends the run
    (gc.enable if collecting else gc.disable)()
    try:
        with (
            pytest.raises(KeyboardInterrupt)
            if interrupted
            else contextlib.nullcontext()
        ):
            sampled("host_cold", kernels, Effort(TO_THE_END, 0.1))
    finally:
        after = gc.isenabled()
        gc.enable()
    assert seen == {False} and after == collecting
