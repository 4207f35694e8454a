"""The host clock: what compiles first stays out of the samples, and short calls are repeated inside one."""
import time

import pytest
import torch

from bench.measure.clocks import DeviceColdClock, Effort, HostClock, clock_for


class FakeFixture:
    """Stands in for pytest-benchmark's fixture: keeps how it was called, and calls once."""

    def pedantic(self, target, rounds, iterations):
        self.rounds, self.iterations = rounds, iterations
        return target()


def _call_taking(seconds, first_s=0.0):
    calls = []

    def call():
        calls.append(time.perf_counter())
        time.sleep(first_s if len(calls) == 1 else seconds)
        return len(calls)

    call.calls = calls
    return call


def test_a_slow_first_call_does_not_cost_rounds():
    fixture, call = FakeFixture(), _call_taking(0.002, first_s=0.3)
    HostClock().run(fixture, call, Effort(warm_up_s=0.02, sampling_s=0.1))
    assert 20 <= fixture.rounds <= 50 and fixture.iterations == 1
    assert len(call.calls) > 3


@pytest.mark.parametrize("effort, rounds", [
    (Effort(0.0, 0.0), 5), (Effort(0.0, 100.0), 200), (Effort(0.0, 0.0, least_rounds=7), 7)])
def test_rounds_are_bounded(effort, rounds):
    fixture = FakeFixture()
    HostClock().run(fixture, _call_taking(0.001), effort)
    assert fixture.rounds == rounds


def test_a_call_too_short_for_the_clock_is_repeated_inside_a_sample():
    fixture = FakeFixture()
    HostClock().run(fixture, lambda: None, Effort(warm_up_s=0.001, sampling_s=0.0))
    assert fixture.iterations >= 20  # 20 µs a sample, and an empty call takes well under 1 µs


def test_the_samples_of_a_short_call_span_the_whole_time():
    fixture = FakeFixture()
    HostClock().run(fixture, _call_taking(0.001), Effort(warm_up_s=0.01, sampling_s=2.0))
    assert fixture.rounds == pytest.approx(200, abs=40) and fixture.iterations == pytest.approx(9, abs=1)


def test_the_last_result_comes_back():
    assert HostClock().run(FakeFixture(), lambda: "result", Effort(0.0, 0.0)) == "result"


class FakeGpu:
    """A device whose launches take known times, behind torch.cuda's events; a host gap before each costs nothing."""

    def __init__(self, monkeypatch, launch_s):
        self.now_s, self.launch_s, self.log = 0.0, launch_s, []
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at_s = gpu.now_s

            def synchronize(self):
                gpu.log.append("synchronize")

            def elapsed_time(self, end):
                return (end.at_s - self.at_s) * 1e3

        class Properties:
            L2_cache_size = 1000

        empty = torch.empty
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(size, dtype=dtype))

    def launch(self):
        self.log.append("launch")
        self.now_s += self.launch_s
        return "result"


def test_the_device_clock_samples_the_launch_alone(monkeypatch):
    gpu = FakeGpu(monkeypatch, launch_s=3e-4)
    clock = DeviceColdClock()
    samples = []

    class Fixture:
        def pedantic(self, target, setup, rounds, iterations):
            assert iterations == 1
            for _ in range(rounds):
                setup()
                gpu.now_s += 0.5  # what the flush and the host take between launches
                before = clock.timer()
                result = target()
                samples.append(clock.timer() - before)
            return result

    assert clock.run(Fixture(), gpu.launch, Effort(0.0, 0.0)) == "result"
    assert samples == pytest.approx([3e-4] * 5)
    assert clock._flush.numel() == 2000 and (clock._flush == 1).all()


def test_clocks_by_device():
    assert isinstance(clock_for("cpu"), HostClock)
