"""Each clock on a machine whose times are known: what it reads, what it keeps out of a
sample, what it refuses.
"""

import inspect

import pytest

from batchline.bench.cases import CLOCKS
from batchline.bench.measure.timing import clocks
from batchline.bench.measure.timing.clocks import Unfit, make_clock
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.stats import roofline
from tests.fake_machine import CALL_S, TICK_S, FakeCpu, FakeCuda, Kernel, sampled

GAPS_S = (5e-6, 5e-4)
DEVICE_CLOCKS = ("device_cold", "device_hot", "graph")
EVERY_CLOCK = [(device, name) for device, names in CLOCKS.items() for name in names]


def _machine(device, **settings):
    return (
        FakeCuda(gaps_s=GAPS_S, **settings) if device == "cuda" else FakeCpu(**settings)
    )


def _exact(**settings):
    """A device whose events tell any difference, so that a sample is the launch's time
    or is wrong.
    """
    return FakeCuda(tick_s=1e-12, **settings)


def _waited_s(hot_s):
    """What a caller on CUDA waits in the middle: a gap, two calls into the driver, and
    the work.
    """
    return hot_s + sum(GAPS_S) / 2 + 2 * CALL_S + TICK_S


@pytest.mark.parametrize(
    "device, clock, hot_s, true_s",
    [
        ("cuda", "device_cold", 1.2e-4, 1.9e-4),
        ("cuda", "device_hot", 1.2e-4, 1.2e-4),
        ("cuda", "graph", 1.2e-4, 1.2e-4),
        ("cuda", "host", 1.5e-3, _waited_s(1.5e-3)),
        ("cpu", "host", 1.2e-4, 1.2e-4),
        ("cpu", "host_cold", 1.2e-4, 1.9e-4),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_clock_reads_the_true_time(device, clock, hot_s, true_s, seed):
    machine = _machine(device, noise=0.02, seed=seed)
    kernels = {
        name: Kernel(machine, hot_s, hot_s * 1.9 / 1.2, compile_s=1.0) for name in "ab"
    }
    for samples in sampled(
        clock, kernels, Effort(precision=1e-3, seconds=5.0, most=5000)
    ).values():
        assert samples.median_s == pytest.approx(true_s, rel=0.01)


@pytest.mark.parametrize("clock", ["device_hot", "graph"])
def test_a_hot_sample_is_long_beside_a_tick_however_slowly_the_host_queues(clock):
    kernel = Kernel(
        FakeCuda(gaps_s=(3e-5, 5e-5)), 3.3e-6, 9e-6
    )  # 100 launches are 660 ticks
    samples = sampled(clock, {"": kernel}, Effort(precision=1e-3, seconds=0.2))[""]
    assert samples.samples_s == pytest.approx(
        [3.3e-6] * len(samples.samples_s), rel=0.003
    ), samples.iterations


@pytest.mark.parametrize("device", CLOCKS)
def test_the_host_clock_brings_the_launchs_own_data_back_before_its_turn(device):
    machine = FakeCuda() if device == "cuda" else FakeCpu()
    kernels = {name: Kernel(machine, 3e-3, 6e-3) for name in "ab"}  # a sample a turn
    for samples in sampled(
        "host", kernels, Effort(precision=1e-3, seconds=0.2)
    ).values():
        assert samples.median_s == pytest.approx(3e-3, rel=0.01)


@pytest.mark.parametrize(
    "clock, true_s", [("device_cold", 9e-5), ("device_hot", 6e-5), ("graph", 6e-5)]
)
def test_no_host_gap_is_ever_inside_a_sample(clock, true_s):
    machine = _exact(gaps_s=(0, 3e-3))
    clock = make_clock(clock, machine, [Kernel(machine, 6e-5, 9e-5)], 6e-5, 1e-3)
    assert [clock.sample() for _ in range(200)] == pytest.approx(
        [true_s] * 200, rel=1e-6
    )


@pytest.mark.parametrize("clock", ["device_cold", "device_hot"])
def test_a_hold_that_was_too_short_costs_the_sample_and_grows(clock):
    machine = _exact(gaps_s=(1e-3, 1e-3))
    clock = make_clock(clock, machine, [Kernel(machine, 6e-5)], 6e-5, 1e-3)
    clock.sample()
    holds = machine.log.count("hold")
    assert 3 < holds < 12
    before_s = machine.host_s
    clock.sample()
    assert machine.log.count("hold") == holds + 1
    assert (
        machine.host_s - before_s < 0.1
    )  # it grew to what is needed, not to the longest there is


@pytest.mark.parametrize("clock", ["device_cold", "device_hot"])
def test_a_launch_that_waits_for_the_device_is_unfit(clock):
    machine = _exact()
    with pytest.raises(
        Unfit, match=f"{clock}: the launch waits for the device.*host clock"
    ):
        make_clock(
            clock, machine, [Kernel(machine, 6e-5, waits=True)], 6e-5, 1e-3
        ).sample()
    assert machine.host_s < 2  # it did not try for ever


@pytest.mark.parametrize(
    "settings, waits, why",
    [
        (
            {},
            True,
            "graph: can't be captured: RuntimeError: operation not permitted when stream is capturing",
        ),
        (
            {"no_graphs": MemoryError()},
            False,
            "graph: can't be captured: MemoryError: no message",
        ),
    ],
)
def test_a_launch_that_can_not_be_captured_is_unfit(settings, waits, why):
    machine = FakeCuda(**settings)
    with pytest.raises(Unfit) as unfit:
        make_clock("graph", machine, [Kernel(machine, 6e-5, waits=waits)], 6e-5, 1e-3)
    assert str(unfit.value) == why  # the first line only: it becomes a cell


def test_the_flush_is_under_the_hold_and_outside_the_events():
    machine = FakeCuda()
    kernel = Kernel(machine, 6e-5)
    make_clock("device_cold", machine, [kernel], 6e-5, 1e-3).sample()
    assert machine.log[-5:] == ["hold", "flush", "record", kernel, "record"]


@pytest.mark.parametrize(
    "device, clock", [("cuda", "device_cold"), ("cpu", "host_cold")]
)
def test_cold_clocks_take_the_launches_in_turn(device, clock):
    machine = FakeCuda(gaps_s=(0, 1e-6)) if device == "cuda" else FakeCpu()
    kernels = [Kernel(machine, 6e-5) for _ in range(3)]
    clock = make_clock(clock, machine, kernels, 6e-5, 1e-3)
    results = []
    for _ in range(6):
        clock.sample()
        results.append(clock.result)
    assert (
        results
        == kernels * 2
        == [entry for entry in machine.log if isinstance(entry, Kernel)]
    )


@pytest.mark.parametrize(
    "device, clock",
    [(device, name) for device, name in EVERY_CLOCK if "cold" not in name],
)
def test_the_other_clocks_use_one_launch(device, clock):
    machine = FakeCuda() if device == "cuda" else FakeCpu()
    one, other = Kernel(machine, 2e-5, 3e-5), Kernel(machine, 2e-5, 3e-5)
    clock = make_clock(clock, machine, [one, other], 2e-5, 1e-3)
    for _ in range(3):
        clock.settle()
        clock.sample()
    assert one.called_s and not other.called_s
    assert clock.result is one


@pytest.mark.parametrize("clock", ["device_hot", "graph"])
@pytest.mark.parametrize(
    "call_s, least, most", [(1e-6, 50, 200), (2e-5, 20, 40), (2e-3, 1, 1)]
)
def test_short_launches_are_many_in_a_hot_sample_and_within_the_drivers_queue(
    clock, call_s, least, most
):
    machine = _exact()
    kernel = Kernel(machine, call_s, 3 * call_s)
    clock = make_clock(clock, machine, [kernel], call_s, 1e-3)
    assert least <= clock.iterations <= most
    while machine.log.count("hold") != 1:  # until a hold suffices at once
        machine.log.clear()
        assert clock.sample() == pytest.approx(call_s, rel=1e-4)
    launches = {
        "device_hot": machine.log.count(kernel),
        "graph": machine.log.count("replay") * clock.iterations,
    }
    assert launches[clock.name] in (
        clock.iterations + 1,
        2 * clock.iterations,
    )  # what heats the cache is beside them


@pytest.mark.parametrize(
    "device, call_s, iterations",
    [("cpu", 1e-5, 100), ("cpu", 3.6e-4, 3), ("cpu", 0.5, 1), ("cuda", 1e-5, 1)],
)
def test_a_host_sample_on_the_cpu_is_no_shorter_than_asked(device, call_s, iterations):
    machine = FakeCuda() if device == "cuda" else FakeCpu()
    kernel = Kernel(machine, call_s)
    effort = Effort(
        precision=0.01, seconds=0.3999, most=400
    )  # or the most samples would not span the time
    clock = make_clock("host", machine, [kernel], call_s, effort.sample_s)
    seconds = clock.sample()
    assert clock.iterations == len(kernel.called_s) == iterations
    assert seconds == pytest.approx(call_s, abs=3 * CALL_S)


def test_every_listed_clock_can_be_made_and_knows_its_name():
    for device, name in EVERY_CLOCK:
        machine = FakeCuda() if device == "cuda" else FakeCpu()
        assert (
            make_clock(name, machine, [Kernel(machine, 1e-5)], 1e-5, 1e-3).name == name
        )


@pytest.mark.parametrize(
    "device, name", [("cpu", "device_cold"), ("cuda", "host_cold"), ("cpu", "sundial")]
)
def test_a_clock_of_another_device_is_refused(device, name):
    with pytest.raises(
        ValueError, match=f"'{name}' is no clock of {device}: use host|device_cold"
    ):
        make_clock(
            name,
            FakeCuda() if device == "cuda" else FakeCpu(),
            [lambda: None],
            1e-5,
            1e-3,
        )


@pytest.mark.parametrize("real, fake", [(clocks.Cpu, FakeCpu), (clocks.Cuda, FakeCuda)])
def test_the_fake_machine_takes_the_calls_that_the_real_one_takes(real, fake):
    public = [name for name in vars(real) if not name.startswith("_")]
    assert "now_s" in public and real.name == fake.name
    for name in public:
        assert hasattr(fake, name), name
        if callable(getattr(real, name)) and name != "name":
            ours, theirs = (
                list(inspect.signature(getattr(machine, name)).parameters)
                for machine in (fake, real)
            )
            assert ours == theirs, name


def test_the_last_level_is_the_largest_cache_that_the_system_names(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(clocks, "_CACHES", tmp_path)
    assert clocks.last_level_cache_bytes() >= 2**24  # nothing is named
    for index, size in enumerate(["48K\n", "2M\n", "512\n"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size)
    assert clocks.last_level_cache_bytes() == clocks.Cpu().cache_bytes == 2**21


@pytest.mark.parametrize("name", sorted({*CLOCKS["cpu"], *CLOCKS["cuda"]}))
def test_a_stored_name_says_whether_its_clock_is_cold(name):
    assert clocks.is_cold(name) == roofline.is_cold(name)
