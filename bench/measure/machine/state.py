"""The machine around a case: its clocks, temperature, power and load, whether it was
throttled, and whether others had the cores meanwhile.

Busy is not measured: that is one rule, and what is done about it. What counts is the
CPU time of others, as a share of the cores that this process may use. How long its own
threads waited for a core does not: libraries' threads wait for each other on a machine
that is otherwise idle. Nor does a load average, which is of a minute.

While something is timed on the CPU, each thread has a core of its own and threads that
wait soon sleep. Left to the system, the threads of a pool may share a core for as long
as their process lives: on 2 cores a product in two threads then takes twice as long in
one process as in the next. And torch's OpenMP and Numba's are two pools: while the
threads of one spin for more work, they take cores from the other's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from batchline.bench.measure.machine import process_state
from batchline.bench.statuses import THE_MACHINE_WAS
from batchline.kernels import cgroups

try:
    import resource
except ImportError:  # on Windows, where nothing here is called
    resource = None


_POWER_CAP = "power cap"
_LEAST_CLOCK_SHARE = 0.75  # NVBench's rule: a sample below this share of the default clock is not of this chip
_PROC = Path("/proc")
_CPUS = Path("/sys/devices/system/cpu")
_SPINS = {
    "GOMP_SPINCOUNT": "20000",
    "KMP_BLOCKTIME": "1",
}  # GNU's, in turns of a loop; LLVM's and Intel's, in ms
USUAL_SHARE = 0.1  # of the cores, that others may take: on two quiet ones it is 1 to 3%
VARIABLE = "BATCHLINE_MOST_BUSY"  # names another share
LEAST_SPAN_S = 0.25  # the system counts in ticks of 10 ms: over a shorter time a tick would be too much of a tenth
PAUSES_S = (1.0, 5.0)  # before each further attempt
_MOST_IN_VAIN = 3  # attempts at several things in a row: after that one attempt each, until one is quiet again
_KEPT = 64  # readings
_TIMES = {1: "", 2: ", twice", 3: ", three times"}
Result = TypeVar("Result")


class CpuState:
    """Linux's own counters. What a hypervisor keeps to itself (its host's clocks and
    heat) is not among them.

    `proc` and `cpus` are the folders that they lie in.
    """

    def __init__(self, proc: Path = _PROC, cpus: Path = _CPUS):
        self._proc = proc
        self._cores = (
            sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        )
        self._throttles = sorted(
            cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
        )
        self._stops = cgroups.stop_counters()
        self._last_counts = self._counts()

    def read(self) -> dict:
        """Load average over a minute, frequency in MHz, and CPU-seconds so far on the
        cores that this process may use.

        `cores` is how many those are. `busy_cpu_s` is all that was neither idle nor
        stolen, from any start on, so only differences of it mean something; `own_cpu_s`
        is what `own_cpu_s()` says.
        """
        facts = {"time_s": time.monotonic(), "own_cpu_s": own_cpu_s()}
        try:
            cores, idle_s, stolen_s = self._idle_and_stolen_s()
            facts |= {
                "cores": cores,
                "busy_cpu_s": facts["time_s"] * cores - idle_s - stolen_s,
                "stolen_cpu_s": stolen_s,
                "load_1min": os.getloadavg()[0],
                "mhz": self._mhz(),
            }
        except (
            OSError,
            IndexError,
            ValueError,
        ):  # no Linux /proc: less is known, and nothing is lost
            pass
        return facts

    def why_throttled(self) -> str | None:
        """What stopped or slowed this process down since the last time this was asked,
        or None.

        A container's CPU quota that was used up, or a core that became too hot (which
        bare metal alone tells).
        """
        last, self._last_counts = self._last_counts, self._counts()
        hotter, stopped = (now > before for now, before in zip(self._last_counts, last))
        reasons = [
            reason
            for reason, holds in (
                ("a core was slowed down for heat", hotter),
                ("the container's CPU quota was used up", stopped),
            )
            if holds
        ]
        return ", ".join(reasons) or None

    def _counts(self) -> tuple[int, int]:
        return sum(
            int(path.read_text()) for path in self._throttles
        ), cgroups.times_stopped(self._stops)

    def _idle_and_stolen_s(self) -> tuple[int, float, float]:
        """The cores that are read, and the seconds that they were idle (or waited for a
        disk) and stolen.

        Idle time is exact where busy time is sampled at ticks. A sandbox that counts
        nothing raises ValueError.
        """
        whole, *lines = (
            line.split()
            for line in (self._proc / "stat").read_text().splitlines()
            if line.startswith("cpu")
        )
        own = [line for line in lines if int(line[0][3:]) in self._cores]
        chosen = (
            own if 0 < len(own) < len(lines) else [whole]
        )  # the sum is rounded to a tick once
        ticks = [[int(word) for word in line[1:]] for line in chosen]
        if not any(map(any, ticks)):
            raise ValueError("nothing is counted here")
        tick_s = 1 / os.sysconf("SC_CLK_TCK")
        return (
            len(own) if chosen is own else len(lines),
            sum(row[3] + row[4] for row in ticks) * tick_s,
            sum(row[7] for row in ticks) * tick_s,
        )

    def _mhz(self) -> float | None:
        found = [
            float(mhz)
            for mhz in re.findall(
                r"^cpu MHz\s*:\s*([\d.]+)", (self._proc / "cpuinfo").read_text(), re.M
            )
        ]
        return sum(found) / len(found) if found else None


def own_cpu_s() -> float:
    """CPU-seconds so far of this process, of all that it has started, and of the one
    that it is a worker of.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    total += sum(sum(_times_s(pid)) for pid in _descendants(os.getpid()))
    parent = multiprocessing.parent_process()
    return total + (sum(_times_s(parent.pid)[:2]) if parent else 0.0)


def _descendants(pid: int) -> Iterator[int]:
    """The processes below this one, as far as the kernel lists them
    (CONFIG_PROC_CHILDREN).
    """
    for path in (_PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                yield child
                yield from _descendants(child)


def _times_s(pid: int) -> tuple[float, ...]:
    """User and system time of a process, then both of its children that have ended;
    zeros once it is gone.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0, 0.0, 0.0
    return tuple(int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:15])


def cpu_load(before: Mapping, after: Mapping) -> dict:
    """Between two readings of CpuState: the share of the cores that others took, and
    that the hypervisor stole.
    """
    if "busy_cpu_s" not in before or "busy_cpu_s" not in after:
        return {}
    span = max((after["time_s"] - before["time_s"]) * after["cores"], 1e-9)
    grown = {
        name: after[name] - before[name]
        for name in ("busy_cpu_s", "own_cpu_s", "stolen_cpu_s")
    }
    return {
        "others_share": max(0.0, grown["busy_cpu_s"] - grown["own_cpu_s"]) / span,
        "stolen_share": grown["stolen_cpu_s"] / span,
        "load_1min": after["load_1min"],
        "mhz": after["mhz"],
    }


class GpuState:
    """NVML's view of torch's first GPU (nvidia-ml-py). Raises ImportError or pynvml's
    error where there is none.
    """

    def __init__(self, nvml=None):
        if nvml is None:
            import pynvml as nvml
        self._nvml = nvml
        nvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(0).uuid)
        self._handle = nvml.nvmlDeviceGetHandleByUUID(
            uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
        )
        self._default_mhz = self._ask(
            "nvmlDeviceGetDefaultApplicationsClock", nvml.NVML_CLOCK_SM
        ) or self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)
        self._reasons = {
            getattr(nvml, f"nvmlClocksThrottleReason{name}"): words
            for name, words in (
                ("HwSlowdown", "hardware slowdown"),
                ("SwThermalSlowdown", "thermal slowdown"),
                ("HwThermalSlowdown", "hardware thermal slowdown"),
                ("HwPowerBrakeSlowdown", "power brake"),
            )
        }
        self._power_cap = nvml.nvmlClocksThrottleReasonSwPowerCap
        # At the looks since the last reading:
        self._seen_mhz: list[int] = []
        self._saw_power_cap = False

    def read(self) -> dict:
        """SM and memory clock in MHz, temperature in °C, power in W, and why it is
        throttled.

        `sm_mhz_seen`: the lowest and the highest SM clock at the looks
        (`why_throttled`) since the last reading. `power_cap_seen`: whether a power cap
        was on at one of them.
        """
        nvml = self._nvml
        seen, self._seen_mhz = self._seen_mhz, []
        saw_power_cap, self._saw_power_cap = self._saw_power_cap, False
        power_mw = self._ask("nvmlDeviceGetPowerUsage")
        return {
            "sm_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "memory_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "temperature_c": self._ask(
                "nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU
            ),
            "power_w": power_mw / 1e3 if power_mw is not None else None,
            "sm_mhz_seen": [min(seen), max(seen)] if seen else None,
            "power_cap_seen": saw_power_cap,
            "throttled": self._throttle_words(),
        }

    def energy_j(self) -> float | None:
        """The energy counter, which moves about every 0.1 s; None where this GPU has
        none.
        """
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return millijoules / 1e3 if millijoules is not None else None

    def why_throttled(self) -> str | None:
        """Whether the GPU, asked right after work, is slowed down: a hard reason, or a
        clock under 75% of its default.

        A power cap alone is how a large GPU runs large products: it never counts.
        """
        reasons = self._throttle_words()
        words = [word for word in reasons if word != _POWER_CAP]
        mhz = self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)
        if mhz:
            self._seen_mhz.append(mhz)
        self._saw_power_cap |= _POWER_CAP in reasons
        is_low = (
            mhz and self._default_mhz and mhz < _LEAST_CLOCK_SHARE * self._default_mhz
        )
        if is_low and _POWER_CAP not in reasons:
            words.append(f"SM clock {mhz} of {self._default_mhz} MHz")
        return ", ".join(words) or None

    def _throttle_words(self) -> list[str]:
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        words = [word for bit, word in self._reasons.items() if bits & bit]
        return [*words, _POWER_CAP] if bits & self._power_cap else words

    def _ask(self, name: str, *arguments):
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except self._nvml.NVMLError:  # not every GPU and driver answers every question
            return None


def state_of(device: str) -> CpuState | GpuState:
    """The reader for "cpu" or "cuda"; without NVML's binding a GPU's state is the
    host's, which never throttles it.
    """
    if device == "cuda":
        try:
            return GpuState()
        except (
            Exception
        ) as error:  # whatever NVML's binding raises, the run goes on and says so
            return UnknownState(f"{type(error).__name__}: {error}")
    return CpuState()


class UnknownState:
    """No state to read; `read` says why."""

    def __init__(self, why: str):
        self._why = why

    def read(self) -> dict:
        return {"unknown": self._why}

    def energy_j(self) -> None:
        return None

    def why_throttled(self) -> None:
        return None


def short_spins(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables by which OpenMP's threads sleep half a millisecond or so after their
    work, and not after 7 ms or 200.

    Longer than there is between calls in a row, which so find them awake. None of them
    where the user has set one.
    """
    return {} if environment.keys() & {"OMP_WAIT_POLICY", *_SPINS} else dict(_SPINS)


def cores() -> frozenset[int] | None:
    """Those that this thread may use; None where the system doesn't say."""
    return (
        frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    )


def cores_by_thread() -> dict[int, set[int]]:
    """Those that each thread of this process may use, by its number; none where the
    system doesn't say.
    """
    found = {}
    if hasattr(os, "sched_getaffinity"):
        for thread in process_state.ids():
            with contextlib.suppress(OSError):  # it has ended
                found[thread] = os.sched_getaffinity(thread)
    return found


def give_each_thread_a_core() -> list[int]:
    """This thread the first, to itself, and the libraries' threads the others in turn;
    returns those threads' numbers.

    A thread that is started later has this one's core: start what there is to start
    before.
    """
    first, *others = sorted(cores() or [0], key=core_rank)
    if not others:
        return []
    mine = threading.get_native_id()
    pools = sorted(process_state.ids() - {mine})
    for number, thread in enumerate(pools):
        _allow(thread, {others[number % len(others)]})
    os.sched_setaffinity(mine, [first])
    return pools


@contextlib.contextmanager
def each_thread_on_a_core() -> Iterator[None]:
    """`give_each_thread_a_core` for the block; afterwards each may use what this thread
    could before.
    """
    before = cores()
    pools = give_each_thread_a_core()
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(threading.get_native_id(), before)
        for thread in pools:
            _allow(thread, before)


def _allow(thread: int, allowed: frozenset[int] | set[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.sched_setaffinity(thread, allowed)


def core_rank(core: int, cpus: Path = _CPUS) -> tuple[int, int]:
    """Sorts the second threads of all physical cores behind the first ones; `cpus` is
    the folder in which the system says which share a core.
    """
    try:
        siblings = _numbers(
            (cpus / f"cpu{core}" / "topology" / "thread_siblings_list").read_text()
        )
        return siblings.index(core), core
    except (OSError, ValueError):
        return 0, core


def _numbers(text: str) -> list[int]:
    """[0, 1, 2, 8] of "0-2,8"."""
    ends = [part.partition("-") for part in text.strip().split(",")]
    return [
        number
        for first, _, last in ends
        for number in range(int(first), int(last or first) + 1)
    ]


def read() -> dict:
    """The machine's counters (CpuState.read)."""
    return CpuState().read()


def most_share() -> float:
    """The share of the cores that others may take: USUAL_SHARE, or what
    BATCHLINE_MOST_BUSY says.

    Raises:
        ValueError: if that is no share.
    """
    told = os.environ.get(VARIABLE) or USUAL_SHARE
    with contextlib.suppress(ValueError):
        if 0 < float(told) <= 1:
            return float(told)
    raise ValueError(
        f"{VARIABLE}={told} is no share of the cores: use a number above 0 and up to 1, as {USUAL_SHARE}"
    )


def why_too_busy(before: Mapping, after: Mapping) -> str | None:
    """What others, or the hypervisor, took between two readings where that is too much,
    else None.
    """
    load, most = cpu_load(before, after), most_share()
    for name, who in (
        ("others_share", "other processes"),
        ("stolen_share", "the hypervisor"),
    ):
        if load.get(name, 0.0) > most:
            return f"{who} took {load[name]:.0%} of the cores"
    return None


class Guard:
    """Measures anew what was measured while others had the cores.

    Args:
        tell: told of each pause, and why.
    """

    def __init__(
        self,
        tell: Callable[[str], None] = lambda why: None,
        read: Callable[[], dict] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ):
        self._tell, self._read, self._pause = tell, read or CpuState().read, pause
        self._readings = deque([self._read()], maxlen=_KEPT)
        self._in_vain = 0

    def measured(self, work: Callable[[], Result]) -> tuple[Result, str | None]:
        """What `work` returns, and None; or why that does not count, where each attempt
        met a busy machine.
        """
        pauses_s = PAUSES_S if self._in_vain < _MOST_IN_VAIN else ()
        for attempt, pause_s in enumerate((*pauses_s, None), 1):
            self._readings.append(self._read())
            result = work()
            why = self._why_busy()
            if not why:
                self._in_vain = 0
                return result, None
            if pause_s is not None:
                self._tell(f"measured again: {why}")
                self._pause(pause_s)
        self._in_vain += 1
        return result, f"{THE_MACHINE_WAS}busy: {why}{_TIMES[attempt]}"

    def _why_busy(self) -> str | None:
        """Whether it was since the last reading; a shorter time than LEAST_SPAN_S is
        judged with the time before it.
        """
        now = self._read()
        enough = [
            reading
            for reading in self._readings
            if now["time_s"] - reading["time_s"] >= LEAST_SPAN_S
        ]
        return why_too_busy(enough[-1], now) if enough else None


class NoGuard:
    """For a device whose times don't depend on who has the cores."""

    def measured(self, work: Callable[[], Result]) -> tuple[Result, str | None]:
        """What `work` returns, and None."""
        return work(), None


def guard_of(
    device: str, tell: Callable[[str], None] = lambda why: None
) -> Guard | NoGuard:
    """A guard over what is measured on "cpu"; a GPU's state is told by its own counters
    (bench.measure.machine.state).
    """
    return Guard(tell) if device == "cpu" else NoGuard()
