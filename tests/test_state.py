"""The machine's state, as NVML (a stand-in, with the binding's own names and numbers)
and Linux tell it.
"""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from batchline.bench.measure.machine import state
from batchline.bench.measure.machine.state import (
    CpuState,
    GpuState,
    UnknownState,
    cpu_load,
    state_of,
)


class FakeNvml:
    """The binding on a GPU that answers what it is given, by the end of the question,
    and NVMLError to all else.
    """

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksThrottleReasonGpuIdle, nvmlClocksThrottleReasonSwPowerCap = 0x1, 0x4
    nvmlClocksThrottleReasonHwSlowdown, nvmlClocksThrottleReasonSwThermalSlowdown = (
        0x8,
        0x20,
    )
    (
        nvmlClocksThrottleReasonHwThermalSlowdown,
        nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    ) = (0x40, 0x80)

    def __init__(self, **answers):
        self.answers, self.asked = answers, set()

    def nvmlInit(self):
        self.asked.add("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.add("nvmlDeviceGetHandleByUUID")
        return uuid

    def __getattr__(self, name):
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def answer(handle, *arguments):
            assert handle == "GPU-1234-abcd"
            self.asked.add(name)
            try:
                found = self.answers[name.removeprefix("nvmlDeviceGet")]
                return found[arguments] if isinstance(found, dict) else found
            except KeyError:
                raise self.NVMLError("Not Supported") from None

        return answer


BUSY = {
    "DefaultApplicationsClock": {(1,): 2000},
    "ClockInfo": {(1,): 1900, (2,): 3201},
    "Temperature": {(0,): 61},
    "PowerUsage": 651_500,
    "CurrentClocksThrottleReasons": 0,
    "TotalEnergyConsumption": 12_345_678,
}


@pytest.fixture(autouse=True)
def first_gpu(monkeypatch):
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(uuid="1234-abcd"),
    )


def _gpu(**answers):
    return GpuState(FakeNvml(**BUSY | answers))


def test_what_nvml_says_is_read_in_the_units_promised():
    assert _gpu().read() == {
        "sm_mhz": 1900,
        "sm_mhz_seen": None,
        "memory_mhz": 3201,
        "temperature_c": 61,
        "power_w": 651.5,
        "power_cap_seen": False,
        "throttled": [],
    }
    assert _gpu().energy_j() == 12_345.678
    assert _gpu().why_throttled() is None


def test_torchs_first_gpu_is_the_one_that_is_asked(monkeypatch):
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(uuid=["GPU-1234-abcd", "GPU-another"][index]),
    )
    assert _gpu().read()["sm_mhz"] == 1900


@pytest.mark.parametrize(
    "reason, words",
    [
        (0x8, "hardware slowdown"),
        (0x20, "thermal slowdown"),
        (0x40, "hardware thermal slowdown"),
        (0x80, "power brake"),
    ],
)
def test_each_hard_reason_throttles_and_is_named(reason, words):
    gpu = _gpu(CurrentClocksThrottleReasons=reason)
    assert gpu.why_throttled() == words and gpu.read()["throttled"] == [words]


def test_several_reasons_are_all_named():
    gpu = _gpu(CurrentClocksThrottleReasons=0x40 | 0x4 | 0x80)
    assert gpu.why_throttled() == "hardware thermal slowdown, power brake"
    assert gpu.read()["throttled"] == [
        "hardware thermal slowdown",
        "power brake",
        "power cap",
    ]


@pytest.mark.parametrize(
    "reasons, words", [(0x4, ["power cap"]), (0x1, [])], ids=["power cap", "idle"]
)
def test_a_power_cap_alone_is_noted_and_throttles_nothing(reasons, words):
    gpu = _gpu(CurrentClocksThrottleReasons=reasons)
    assert gpu.why_throttled() is None and gpu.read()["throttled"] == words


@pytest.mark.parametrize(
    "mhz, why", [(1500, None), (1499, "SM clock 1499 of 2000 MHz")]
)
def test_a_clock_under_three_quarters_of_its_default_is_throttled_but_under_a_power_cap(
    mhz, why
):
    assert _gpu(ClockInfo={(1,): mhz}).why_throttled() == why
    assert (
        _gpu(ClockInfo={(1,): mhz}, CurrentClocksThrottleReasons=0x4).why_throttled()
        is None
    )
    assert (
        _gpu(ClockInfo={(1,): mhz}, CurrentClocksThrottleReasons=0x44)
        .why_throttled()
        .startswith("hardware thermal")
    )


def test_the_clocks_at_the_looks_are_in_the_next_reading():
    gpu = _gpu()
    for mhz in (1900, 1425, 1480):
        gpu._nvml.answers["ClockInfo"] = {(1,): mhz, (2,): 3201}
        gpu.why_throttled()
    assert (
        gpu.read()["sm_mhz_seen"] == [1425, 1900] and gpu.read()["sm_mhz_seen"] is None
    )


def test_a_power_cap_that_was_on_at_a_look_alone_is_in_the_next_reading():
    gpu = _gpu(CurrentClocksThrottleReasons=0x4)
    gpu.why_throttled()
    gpu._nvml.answers["CurrentClocksThrottleReasons"] = 0
    gpu.why_throttled()
    first, second = gpu.read(), gpu.read()
    assert (
        first["power_cap_seen"]
        and not first["throttled"]
        and not second["power_cap_seen"]
    )


def test_without_a_default_the_highest_clock_stands_for_it():
    answers = {
        name: value
        for name, value in BUSY.items()
        if name != "DefaultApplicationsClock"
    }
    gpu = GpuState(FakeNvml(**answers | {"MaxClockInfo": {(1,): 2600}}))
    assert gpu.why_throttled() == "SM clock 1900 of 2600 MHz"


def test_a_gpu_that_answers_no_question_is_not_throttled_and_nothing_is_known_of_it():
    gpu = GpuState(FakeNvml())
    assert gpu.read() == {
        "sm_mhz": None,
        "sm_mhz_seen": None,
        "memory_mhz": None,
        "temperature_c": None,
        "power_w": None,
        "power_cap_seen": False,
        "throttled": [],
    }
    assert gpu.energy_j() is None and gpu.why_throttled() is None


def test_the_binding_has_every_name_that_is_asked_for():
    pynvml = pytest.importorskip("pynvml")
    numbers = {
        name: value for name, value in vars(FakeNvml).items() if isinstance(value, int)
    }
    assert numbers == {name: getattr(pynvml, name) for name in numbers}
    fake = FakeNvml()
    gpu = GpuState(fake)
    gpu.read(), gpu.energy_j(), gpu.why_throttled()
    assert len(fake.asked) == 9 and all(
        callable(getattr(pynvml, name)) for name in fake.asked
    )


# No NVML.


def test_no_binding_and_no_driver_are_an_unknown_state_with_its_reason(monkeypatch):
    def no_driver():
        raise FakeNvml.NVMLError("Driver Not Loaded")

    for nvml, why in [
        (None, "pynvml"),
        (SimpleNamespace(nvmlInit=no_driver), "NVMLError: Driver Not Loaded"),
    ]:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        unknown = state_of("cuda")
        assert isinstance(unknown, UnknownState) and why in unknown.read()["unknown"]
        assert unknown.why_throttled() is None and unknown.energy_j() is None


def test_with_nvml_the_state_is_the_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(**BUSY))
    assert isinstance(state_of("cuda"), GpuState) and isinstance(
        state_of("cpu"), CpuState
    )


# Linux.


def test_this_linux_tells_all_there_is():
    facts = CpuState().read()
    assert facts.keys() == {
        "time_s",
        "own_cpu_s",
        "cores",
        "busy_cpu_s",
        "stolen_cpu_s",
        "load_1min",
        "mhz",
    }
    assert facts["own_cpu_s"] > 0 and facts["cores"] >= 1
    assert CpuState().read()["time_s"] >= facts["time_s"]


def test_busy_is_neither_idle_nor_waiting_nor_stolen(tmp_path):
    (tmp_path / "stat").write_text(
        "cpu  100 20 30 4000 500 6 7 80 90 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    )
    (tmp_path / "cpuinfo").write_text(
        "cpu MHz\t\t: 2000.0\nmodel name : x\ncpu MHz\t\t: 3000.5\n"
    )
    facts, ticks = CpuState(proc=tmp_path).read(), os.sysconf("SC_CLK_TCK")
    assert facts["busy_cpu_s"] == pytest.approx(
        facts["time_s"] - (4000 + 500 + 80) / ticks
    )
    assert (
        facts["stolen_cpu_s"] == pytest.approx(80 / ticks) and facts["mhz"] == 2500.25
    )
    (tmp_path / "cpuinfo").write_text("BogoMIPS : 50\n")
    assert CpuState(proc=tmp_path).read()["mhz"] is None


def test_without_proc_less_is_known_and_nothing_lost(tmp_path):
    facts = CpuState(proc=tmp_path).read()
    assert facts.keys() == {"time_s", "own_cpu_s"} and cpu_load(facts, facts) == {}


def test_a_sandbox_that_counts_nothing_is_known_for_one(tmp_path):
    (tmp_path / "stat").write_text(
        "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n"
    )
    assert "busy_cpu_s" not in CpuState(proc=tmp_path).read()


def test_cores_that_this_process_may_not_use_are_not_counted(tmp_path, monkeypatch):
    (tmp_path / "stat").write_text(
        "cpu  0 0 0 900 0 0 0 0 0 0\n"
        + "".join(
            f"cpu{core} 0 0 0 {idle} 0 0 0 {core} 0 0\n"
            for core, idle in enumerate((100, 200, 600))
        )
        + "intr 1 2\n"
    )
    (tmp_path / "cpuinfo").write_text("")
    monkeypatch.setattr(state.os, "sched_getaffinity", lambda pid: {1, 2})
    facts, ticks = CpuState(proc=tmp_path).read(), os.sysconf("SC_CLK_TCK")
    assert facts["cores"] == 2 and facts["stolen_cpu_s"] == pytest.approx(3 / ticks)
    assert facts["busy_cpu_s"] == pytest.approx(2 * facts["time_s"] - 803 / ticks)


def test_what_others_took_is_what_was_busy_beside_us():
    before = {
        "time_s": 10.0,
        "cores": 4,
        "busy_cpu_s": 100.0,
        "own_cpu_s": 5.0,
        "stolen_cpu_s": 1.0,
        "load_1min": 9,
        "mhz": 9,
    }
    after = {
        "time_s": 12.0,
        "cores": 4,
        "busy_cpu_s": 106.0,
        "own_cpu_s": 7.0,
        "stolen_cpu_s": 1.4,
        "load_1min": 3,
        "mhz": 2900,
    }
    expected = {
        "others_share": 0.5,
        "stolen_share": 0.05,
        "load_1min": 3,
        "mhz": 2900,
    }  # of 4 cores for 2 s
    assert cpu_load(before, after) == pytest.approx(expected)
    assert (
        cpu_load(before, after | {"own_cpu_s": 12.0})["others_share"] == 0
    )  # ticks are coarse


def test_a_core_slowed_down_for_heat_is_said_once(tmp_path):
    counts = []
    for core in (0, 1):
        folder = tmp_path / f"cpu{core}" / "thermal_throttle"
        folder.mkdir(parents=True)
        counts.append(folder / "core_throttle_count")
        counts[core].write_text("7\n")
    cpu = CpuState(cpus=tmp_path)
    assert cpu.why_throttled() is None  # what was before it began to look is past
    counts[1].write_text("9\n")
    assert [cpu.why_throttled(), cpu.why_throttled()] == [
        "a core was slowed down for heat",
        None,
    ]


def test_a_quota_that_was_used_up_is_said_once(tmp_path, monkeypatch):
    stat = tmp_path / "cpu.stat"
    stat.write_text("nr_periods 9\nnr_throttled 7\nthrottled_usec 1\n")
    monkeypatch.setattr(state.cgroups, "stop_counters", lambda: (stat,))
    cpu = CpuState(cpus=tmp_path)
    assert cpu.why_throttled() is None
    stat.write_text("nr_periods 10\nnr_throttled 8\nthrottled_usec 4\n")
    assert [cpu.why_throttled(), cpu.why_throttled()] == [
        "the container's CPU quota was used up",
        None,
    ]


def test_a_guest_that_sees_no_throttling_reports_none(tmp_path):
    assert CpuState(cpus=tmp_path).why_throttled() is None
