"""The machine around a case: its clocks, temperature, power and load, and whether it was throttled."""
from __future__ import annotations

import os
import re
import time
from pathlib import Path

import torch

_LEAST_CLOCK_SHARE = 0.75  # NVBench's rule: a sample below this share of the default clock is not of this chip
_PROC = Path("/proc")
_CPUS = Path("/sys/devices/system/cpu")


class CpuState:
    """Linux's own counters. What a hypervisor keeps to itself (its host's clocks and heat) is not among them."""

    def __init__(self):
        self._throttles = sorted(_CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
        self._last_count = self._throttle_count()

    def read(self) -> dict:
        """Load average over a minute, frequency in MHz, and CPU-seconds so far: of all, of this process, stolen."""
        facts = {"time_s": time.monotonic(), "own_cpu_s": sum(os.times()[:2])}
        try:
            ticks = [int(word) for word in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]]
            tick_s = 1 / os.sysconf("SC_CLK_TCK")
            facts |= {"busy_cpu_s": (sum(ticks[:3]) + sum(ticks[5:7])) * tick_s, "stolen_cpu_s": ticks[7] * tick_s,
                      "load_1min": os.getloadavg()[0], "mhz": self._mhz()}
        except (OSError, IndexError, ValueError):  # no Linux /proc: less is known, and nothing is lost
            pass
        return facts

    def why_throttled(self) -> str | None:
        """Whether a core was slowed down for heat since the last time this was asked (bare metal only)."""
        last, self._last_count = self._last_count, self._throttle_count()
        return "a core was slowed down for heat" if self._last_count > last else None

    def _throttle_count(self) -> int:
        return sum(int(path.read_text()) for path in self._throttles)

    @staticmethod
    def _mhz() -> float | None:
        found = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", (_PROC / "cpuinfo").read_text(), re.M)]
        return sum(found) / len(found) if found else None


def cpu_load(before: dict, after: dict, cores: int) -> dict:
    """Between two readings of CpuState: the share of the cores that others took, and that the hypervisor stole."""
    if "busy_cpu_s" not in before or "busy_cpu_s" not in after:
        return {}
    span = max((after["time_s"] - before["time_s"]) * cores, 1e-9)
    grown = {name: after[name] - before[name] for name in ("busy_cpu_s", "own_cpu_s", "stolen_cpu_s")}
    return {"others_share": max(0.0, grown["busy_cpu_s"] - grown["own_cpu_s"]) / span,
            "stolen_share": grown["stolen_cpu_s"] / span, "load_1min": after["load_1min"], "mhz": after["mhz"]}


class GpuState:
    """NVML's view of torch's first GPU (nvidia-ml-py). Raises ImportError or pynvml's error where there is none."""

    def __init__(self, nvml=None):
        if nvml is None:
            import pynvml as nvml
        self._nvml = nvml
        nvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(0).uuid)
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        self._default_mhz = self._ask("nvmlDeviceGetDefaultApplicationsClock", nvml.NVML_CLOCK_SM) \
            or self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)
        self._reasons = {getattr(nvml, f"nvmlClocksThrottleReason{name}"): words for name, words in (
            ("HwSlowdown", "hardware slowdown"), ("SwThermalSlowdown", "thermal slowdown"),
            ("HwThermalSlowdown", "hardware thermal slowdown"), ("HwPowerBrakeSlowdown", "power brake"))}
        self._power_cap = nvml.nvmlClocksThrottleReasonSwPowerCap

    def read(self) -> dict:
        """SM and memory clock in MHz, temperature in °C, power in W, and why it is throttled."""
        nvml = self._nvml
        power_mw = self._ask("nvmlDeviceGetPowerUsage")
        return {"sm_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
                "memory_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
                "temperature_c": self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
                "power_w": power_mw / 1e3 if power_mw is not None else None,
                "throttled": self._throttle_words()}

    def energy_j(self) -> float | None:
        """The energy counter, which moves about every 0.1 s; None where this GPU has none."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return millijoules / 1e3 if millijoules is not None else None

    def why_throttled(self) -> str | None:
        """Whether the GPU, asked right after work, is slowed down: a hard reason, or a clock under 75% of its default.

        A power cap alone is how a large GPU runs large products; it counts where it takes the clock that far down.
        """
        words = [word for word in self._throttle_words() if word != "power cap"]
        mhz = self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)
        if mhz and self._default_mhz and mhz < _LEAST_CLOCK_SHARE * self._default_mhz:
            words.append(f"SM clock {mhz} of {self._default_mhz} MHz")
        return ", ".join(words) or None

    def _throttle_words(self) -> list[str]:
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        words = [word for bit, word in self._reasons.items() if bits & bit]
        return [*words, "power cap"] if bits & self._power_cap else words

    def _ask(self, name: str, *arguments):
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except self._nvml.NVMLError:  # not every GPU and driver answers every question
            return None


def state_of(device: str) -> CpuState | GpuState:
    """The reader for "cpu" or "cuda"; without NVML's binding a GPU's state is the host's, which never throttles it."""
    if device == "cuda":
        try:
            return GpuState()
        except Exception as error:  # whatever NVML's binding raises, the run goes on and says so
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
