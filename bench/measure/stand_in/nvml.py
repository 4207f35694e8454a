"""NVML as the stand-in answers it: a power cap holds a GPU under three quarters of its
clock while it is loaded.
"""

from __future__ import annotations

import sys
import types

from batchline.bench.measure.stand_in.timeline import BOOST_MHZ, CLOCK, POWERS

_MEMORY_MHZ = 3201
_CAPPED_MW, _BOOST_MW, _TEMPERATURE_C = 700_000, 350_000, 61
_SW_POWER_CAP, _NO_REASON = 0x4, 0x0


class NVMLError(Exception):
    """NVML's."""


def _sm_mhz() -> int:
    """The first device's."""
    return POWERS[0].mhz(CLOCK.now_s)


def _is_capped() -> bool:
    return _sm_mhz() < BOOST_MHZ


def _not_supported(*_):
    raise NVMLError("Not Supported")


def install() -> None:
    """Make `import pynvml` import this."""
    module = types.ModuleType("pynvml")
    reasons = {
        "HwSlowdown": 0x8,
        "SwThermalSlowdown": 0x20,
        "HwThermalSlowdown": 0x40,
        "HwPowerBrakeSlowdown": 0x80,
        "SwPowerCap": _SW_POWER_CAP,
    }
    vars(module).update(
        {f"nvmlClocksThrottleReason{name}": bit for name, bit in reasons.items()}
    )
    vars(module).update(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetDefaultApplicationsClock=lambda handle, kind: BOOST_MHZ,
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: BOOST_MHZ,
        nvmlDeviceGetClockInfo=lambda handle, kind: (
            _MEMORY_MHZ if kind == 2 else _sm_mhz()
        ),
        nvmlDeviceGetTemperature=lambda handle, kind: _TEMPERATURE_C,
        nvmlDeviceGetPowerUsage=lambda handle: (
            _CAPPED_MW if _is_capped() else _BOOST_MW
        ),
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: (
            _SW_POWER_CAP if _is_capped() else _NO_REASON
        ),
        nvmlDeviceGetTotalEnergyConsumption=_not_supported,
        nvmlSystemGetDriverVersion=lambda: "stand-in",
    )
    sys.modules["pynvml"] = module
