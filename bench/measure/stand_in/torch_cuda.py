"""torch.cuda and NVML as the stand-in answers them. What is not here raises, as torch
built without CUDA does.

By NVML, a power cap holds a GPU under three quarters of its clock while it is loaded.
"""

from __future__ import annotations

import sys
import types

import torch

from batchline.bench.measure.stand_in import timeline
from batchline.bench.measure.stand_in.devices import (
    COUNT,
    DEVICES,
    PROPERTIES,
    Current,
    current,
    of_index,
)
from batchline.bench.measure.stand_in.memory import CAPACITY_BYTES
from batchline.bench.measure.stand_in.operations import Operations
from batchline.bench.measure.stand_in.tensors import Devices
from batchline.bench.measure.stand_in.timeline import BOOST_MHZ, CLOCK, POWERS

_CYCLES_PER_S = 1.98e9
_modes: list = []
_MEMORY_MHZ = 3201
_CAPPED_MW, _BOOST_MW, _TEMPERATURE_C = 700_000, 350_000, 61
_SW_POWER_CAP, _NO_REASON = 0x4, 0x0


class Stream:
    """torch.cuda.Stream: one of the stand-in's queues."""

    def __init__(
        self, device=None, priority: int = 0, queue: timeline.Queue | None = None
    ):
        self.queue = queue or of_index(_index(device)).new_queue()

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.queue.device)

    @property
    def device_index(self) -> int:
        return self.queue.device

    @property
    def cuda_stream(self) -> int:
        return self.queue.number

    def query(self) -> bool:
        timeline.CLOCK.asked()
        return self.queue.ready_s <= timeline.CLOCK.now_s

    def synchronize(self) -> None:
        self.queue.synchronize()

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.queue is self.queue

    def __hash__(self) -> int:
        return hash(self.queue)


class Event:
    """torch.cuda.Event."""

    def __init__(
        self,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
    ):
        self._event = timeline.Event(enable_timing)

    def record(self, stream: Stream | None = None) -> None:
        self._event.record((stream or current_stream()).queue)

    def wait(self, stream: Stream | None = None) -> None:
        self._event.hold_back((stream or current_stream()).queue)

    def query(self) -> bool:
        return self._event.query()

    def synchronize(self) -> None:
        self._event.synchronize()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""
        return 1e3 * self._event.seconds_to(end._event)


class CUDAGraph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, keep_graph: bool = False):
        self._graph: timeline.Graph | None = None
        self._queue: timeline.Queue | None = None

    def capture_begin(self, pool=None, **options) -> None:
        queue = current().queue
        if queue is current().default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        if any(other.capture for other in current().queues.values()):
            raise RuntimeError(timeline.NOT_PERMITTED)
        self._queue, self._graph = queue, timeline.Graph()
        queue.capture = self._graph

    def capture_end(self) -> None:
        self._queue.capture = None
        if not self._graph.is_valid:
            self._graph = None
            raise RuntimeError(timeline.INVALIDATED)

    def replay(self) -> None:
        if self._graph is None:
            raise RuntimeError(
                "Called CUDAGraph::replay without a preceding successful capture."
            )
        self._graph.replay(current().queue)

    def reset(self) -> None:
        self._graph = None

    def pool(self) -> tuple[int, int]:
        return 0, 1


def current_stream(device=None) -> Stream:
    return Stream(queue=of_index(_index(device)).queue)


def default_stream(device=None) -> Stream:
    return Stream(queue=of_index(_index(device)).default)


def set_stream(stream: Stream) -> None:
    Current.index = stream.device_index
    DEVICES[stream.device_index].queue = stream.queue


def set_device(device) -> None:
    index = _index(device)
    if index is not None and index >= 0:
        _exchange_device(index)


def _exchange_device(index: int) -> int:
    """Make a device current; returns the one that was. A negative index changes
    nothing.
    """
    before = Current.index
    if index >= COUNT:
        raise RuntimeError("CUDA error: invalid device ordinal")
    if index >= 0:
        Current.index = index
    return before


def synchronize(device=None) -> None:
    of_index(_index(device)).synchronize()


def get_device_properties(device=None):
    of_index(_index(device))
    return PROPERTIES


def get_device_capability(device=None) -> tuple[int, int]:
    return PROPERTIES.major, PROPERTIES.minor


def _sleep(cycles: int) -> None:
    current().queue.add(None, cycles / _CYCLES_PER_S)


def is_current_stream_capturing() -> bool:
    return current().queue.capture is not None


def empty_cache() -> None:
    for device in DEVICES:
        device.finish()
        device.pool.empty_cache()


def memory_allocated(device=None) -> int:
    return of_index(_index(device)).pool.allocated


def max_memory_allocated(device=None) -> int:
    return of_index(_index(device)).pool.peak


def memory_reserved(device=None) -> int:
    return of_index(_index(device)).pool.reserved


def max_memory_reserved(device=None) -> int:
    return of_index(_index(device)).pool.peak_reserved


def reset_peak_memory_stats(device=None) -> None:
    pool = of_index(_index(device)).pool
    pool.peak, pool.peak_reserved = pool.allocated, pool.reserved


def mem_get_info(device=None) -> tuple[int, int]:
    return CAPACITY_BYTES - of_index(_index(device)).pool.reserved, CAPACITY_BYTES


def _index(device) -> int | None:
    if device is None or isinstance(device, int):
        return device
    return torch.device(device).index


class Generator(torch.Generator):
    """torch.Generator: for the stand-in's tensors, the CPU's."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def _within_a_backward_pass() -> None:
    """Let backward passes written in Python ask for devices, too: torch takes the mode
    away while it calls one.
    """
    run_backward = torch.autograd._engine_run_backward

    def run(*arguments, **options):
        with Devices():
            return run_backward(*arguments, **options)

    torch.autograd._engine_run_backward = run


def install() -> None:
    """Put all this in torch.cuda's place, and the modes that make its tensors into this
    thread.
    """
    answers = {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "current_stream": current_stream,
        "default_stream": default_stream,
        "set_stream": set_stream,
        "set_device": set_device,
        "_exchange_device": _exchange_device,
        "_maybe_exchange_device": _exchange_device,
        "synchronize": synchronize,
        "get_device_properties": get_device_properties,
        "get_device_capability": get_device_capability,
        "get_device_name": lambda device=None: PROPERTIES.name,
        "current_device": lambda: Current.index,
        "device_count": lambda: COUNT,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_sleep": _sleep,
        "is_current_stream_capturing": is_current_stream_capturing,
        "empty_cache": empty_cache,
        "memory_allocated": memory_allocated,
        "max_memory_allocated": max_memory_allocated,
        "memory_reserved": memory_reserved,
        "max_memory_reserved": max_memory_reserved,
        "reset_peak_memory_stats": reset_peak_memory_stats,
        "mem_get_info": mem_get_info,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.graphs.CUDAGraph = CUDAGraph
    torch.cuda.profiler.start = torch.cuda.profiler.stop = lambda: None
    torch._C._host_emptyCache = lambda: None
    torch.Generator = Generator
    torch.version.cuda = torch.version.cuda or "stand-in"
    _within_a_backward_pass()
    for mode in (Operations(), Devices()):
        mode.__enter__()
        _modes.append(mode)


class NVMLError(Exception):
    """NVML's."""


def _sm_mhz() -> int:
    """The first device's."""
    return POWERS[0].mhz(CLOCK.now_s)


def _is_capped() -> bool:
    return _sm_mhz() < BOOST_MHZ


def _not_supported(*_):
    raise NVMLError("Not Supported")


def install_nvml() -> None:
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
