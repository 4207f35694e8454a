"""NVML as the stand-in answers it: a GPU that a power cap holds under three quarters of its clock, as an H200 is."""
from __future__ import annotations

import sys
import types

_DEFAULT_MHZ, _CAPPED_MHZ, _MEMORY_MHZ = 1980, 1440, 3201
_POWER_MW, _TEMPERATURE_C = 700_000, 61
_SW_POWER_CAP = 0x4


class NVMLError(Exception):
    """NVML's."""


def _not_supported(*_):
    raise NVMLError("Not Supported")


def install() -> None:
    """Make `import pynvml` import this."""
    module = types.ModuleType("pynvml")
    clock_by_kind = {1: _CAPPED_MHZ, 2: _MEMORY_MHZ}
    reasons = {"HwSlowdown": 0x8, "SwThermalSlowdown": 0x20, "HwThermalSlowdown": 0x40, "HwPowerBrakeSlowdown": 0x80,
               "SwPowerCap": _SW_POWER_CAP}
    vars(module).update({f"nvmlClocksThrottleReason{name}": bit for name, bit in reasons.items()})
    vars(module).update(
        NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0, nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetDefaultApplicationsClock=lambda handle, kind: _DEFAULT_MHZ,
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: _DEFAULT_MHZ,
        nvmlDeviceGetClockInfo=lambda handle, kind: clock_by_kind[kind],
        nvmlDeviceGetTemperature=lambda handle, kind: _TEMPERATURE_C,
        nvmlDeviceGetPowerUsage=lambda handle: _POWER_MW,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: _SW_POWER_CAP,
        nvmlDeviceGetTotalEnergyConsumption=_not_supported,
        nvmlSystemGetDriverVersion=lambda: "stand-in")
    sys.modules["pynvml"] = module
