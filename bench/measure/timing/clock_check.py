"""The clocks beside NVBench, then the ceilings: `python -m
batchline.bench.measure.timing.clock_check FILE DEVICE`.

In a process of its own, for NVBench runs once in a process. FILE has {"machine",
"clocks": bench.measure.timing.clock_check's, "ceilings": bench.measure.timing.ceilings',
"why_no_ceilings"}; it is there with the clocks before the ceilings are measured.

The same launches timed by NVBench, through its own Python package (cuda-bench 0.3 or
later, `import cuda.bench`).

What NVBench times (its sources at python-0.3.0):

- cold (`measure_cold_launch_timer_core.cuh`): a memset over the L2 cache, then one
  launch between two CUDA events, both queued while a kernel holds the stream: nothing
  of the host is inside. It stops once 0.5 s of launches are summed and their relative
  standard deviation is below 0.5% or has settled, or at the timeout.
- hot (`measure_hot.cuh`): one pair of events around a batch of launches, caches as the
  launch before left them, until 0.5 s are summed. Only the first two are queued while
  the stream is held: where the host takes longer to launch than the device to run, it
  is the host that is timed.

Every clock on the same three launches, with NVBench's figures beside them where its
package is there.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from batchline.bench import units
from batchline.bench.cases import CLOCKS, PROFILES
from batchline.bench.measure import stand_in
from batchline.bench.measure.machine import environment
from batchline.bench.measure.machine.state import guard_of, state_of
from batchline.bench.measure.timing import ceilings
from batchline.bench.measure.timing.clocks import hardware, make_clock
from batchline.bench.measure.timing.sampling import Effort, Samples, sample
from batchline.bench.store.files import write_whole

_AXIS = "launch"
_WARM_UP_LAUNCHES = 3  # a launch that keeps its last output needs one more block of memory at its second call
_MEDIAN, _MEAN_HOT = "nv/cold/time/gpu/median", "nv/batch/time/gpu/mean"
_SAMPLES, _NOISE = "nv/cold/sample_size", "nv/cold/time/gpu/stdev/relative"


def why_absent() -> str | None:
    """Why cuda.bench can't be used here (not installed, no driver, no GPU) in a line,
    or None.
    """
    try:
        _package()
    except ImportError as error:
        return _line(str(error))
    return None


def times(
    launches: Mapping[str, Callable[[], object]], timeout_s: float = 15.0
) -> dict[str, dict]:
    """NVBench's times of each launch: {name: {"cold_s", "hot_s", "samples", "noise"}},
    or {name: {"error": a line}}.

    The launches use torch's current stream on torch's current GPU, have run before
    (compiling waits for the device, and would wait for the stream that is held:
    nvbench#240) and never wait for the device themselves: after 30 s NVBench lets go,
    and that is an error here. NVBench runs once in a process: from the second call on
    every row is an error. Raises KeyboardInterrupt on Ctrl-C.

    cold_s: the median of the cold samples, seconds (NVBench's own: the sample of rank
    round((n - 1)/2), n the samples) hot_s: the mean of the hot launches, seconds
    (NVBench keeps no more of them), or None
    samples: how many cold samples there are
    noise: their standard deviation over their mean, or None where there are fewer than
    5
    timeout_s: wall time of one measurement; each launch has two, cold and hot
    """
    if not launches:
        return {}
    found, reason = {}, why_absent()
    if reason is None:
        try:
            found = parse(_run(launches, timeout_s))
        except RuntimeError as error:  # NVBench's own error is one
            reason = _line(str(error))
    return {
        name: found.get(name, {"error": reason or "NVBench gave no result"})
        for name in launches
    }


def _run(launches: Mapping[str, Callable[[], object]], timeout_s: float) -> dict:
    """NVBench's JSON of one run over all launches. Raises RuntimeError where NVBench
    does; KeyboardInterrupt.
    """
    bench, stopped = _package(), []

    def measure(state) -> None:
        launch = launches[state.get_string(_AXIS)]
        torch.cuda.empty_cache()  # NVBench takes its flush buffer from the driver, past torch's allocator
        try:
            # Entered once and not in every launch, which would add to the host's part
            # of the hot time.
            with torch.cuda.stream(
                torch.cuda.ExternalStream(state.get_stream().addressof())
            ):
                for _ in range(
                    _WARM_UP_LAUNCHES
                ):  # the allocator keeps its blocks by stream, and this one is new
                    launch()
                torch.cuda.synchronize()
                state.exec(lambda _: launch())
        except (
            KeyboardInterrupt
        ) as error:  # NVBench skips what is left, and returns as if nothing had happened
            stopped.append(error)
            raise

    torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nvbench.json"
        bench.register(measure).add_string_axis(_AXIS, list(launches))
        bench.run_all_benchmarks(
            _arguments(path, torch.cuda.current_device(), timeout_s)
        )
        if stopped:
            raise stopped[0]
        return json.loads(path.read_text())


def _arguments(path: Path, device: int, timeout_s: float) -> list[str]:
    """NVBench's command line. Samples at a low clock rate are kept: some GPUs run their
    largest products at one.
    """
    return [
        "nvbench",
        "--quiet",
        "--json",
        str(path),
        "--devices",
        str(device),
        "--timeout",
        str(timeout_s),
        "--throttle-threshold",
        "0",
    ]


def parse(document: Mapping) -> dict[str, dict]:
    """The rows of `times`, from NVBench's JSON (format 1.0, `json_printer.cu`): null
    stands for an empty list there.
    """
    return {
        _named(state["axis_values"])[_AXIS]: _row(state)
        for benchmark in document["benchmarks"] or ()
        for state in benchmark["states"] or ()
    }


def _row(state: Mapping) -> dict:
    if state[
        "is_skipped"
    ]:  # a launch that raised; what was measured before it did is not to be trusted
        return {"error": _line(state["skip_reason"].removeprefix("Unexpected error: "))}
    values = {
        summary["tag"]: _named(summary.get("data")).get("value")
        for summary in state["summaries"] or ()
    }
    if values.get(_MEDIAN) is None:
        return {
            "error": "NVBench gave no median of cold times: no sample was kept, or cuda-bench is older than 0.3"
        }
    return {
        "cold_s": values[_MEDIAN],
        "hot_s": values.get(_MEAN_HOT),
        "samples": values.get(_SAMPLES),
        "noise": values.get(_NOISE),
    }


def _named(entries: list[Mapping] | None) -> dict[str, object]:
    """{name: value} of a list of named values: int64 and float64 are stored as text.
    None for what is not finite.
    """
    read = {"int64": int, "float64": float, "string": str}
    values = {
        entry["name"]: read[entry["type"]](entry["value"]) for entry in entries or ()
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _package():
    """cuda.bench with its compiled part, which it loads when that is first asked for.
    Raises ImportError.
    """
    bench = importlib.import_module("cuda.bench")
    bench.run_all_benchmarks
    return bench


def _line(text: str) -> str:
    """The first line that is not empty: what NVBench passes on from Python has a
    traceback under it.
    """
    return next(
        (line.strip() for line in text.splitlines() if line.strip()), "no reason given"
    )


WRITTEN = "device_cold, L2 written alone"  # and so written back within the samples
_EFFORT = Effort(0.002, 2.0, most=2000)
_NVBENCH_S = 4.0


def clocks(device: str, machine) -> dict[str, object]:
    """The names of the clocks, and the hardware that each is made for: on CUDA also the
    cold one as NVBench has it.
    """
    named = dict.fromkeys(CLOCKS[device], machine)
    if device == "cuda":
        named[WRITTEN] = copy.copy(machine)
        named[WRITTEN].flush = machine.flush_by_writing
    return named


def launches(device: str) -> dict[str, Callable[[], object]]:
    """torch.bmm of one 256³ and one 4096³ product, and torch.mean over 1 GiB of
    gradients; less on the stand-in.
    """
    sizes, columns = ((16, 64), 2**8) if stand_in.is_on() else ((256, 4096), 2**18)
    dtype = torch.float16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return (
            torch.rand(*shape, generator=generator, device=device, dtype=torch.float32)
            .mul_(2)
            .sub_(1)
            .to(dtype)
        )

    name = str(dtype).removeprefix("torch.")
    products = {
        f"torch.bmm {size}³ {name}": functools.partial(
            torch.bmm,
            draw(1, size, size, dtype=dtype),
            draw(1, size, size, dtype=dtype),
        )
        for size in sizes
    }
    gradients = draw(1024, columns, dtype=torch.float32)
    name = f"torch.mean over {units.size(gradients.nbytes)} float32"
    return products | {name: functools.partial(torch.mean, gradients, 0)}


def measure(device: str) -> dict:
    """{launch: {clock: {"median_s", "precision", "samples"} or {"error"}, "nvbench":
    its figures}}.
    """
    machine, state, effort = hardware(device), state_of(device), _EFFORT
    chosen = launches(device)
    found: dict[str, dict] = {}
    for name, launch in chosen.items():
        for _ in range(3):
            start_s = machine.now_s()
            launch()
            machine.synchronize()
            call_s = machine.now_s() - start_s
        found[name] = {}
        for clock, on in clocks(device, machine).items():
            try:
                made = make_clock(
                    "device_cold" if clock == WRITTEN else clock,
                    on,
                    [launch],
                    call_s,
                    effort.sample_s,
                )
                taken = sample(
                    {name: made}, effort, state.why_throttled, now_s=machine.now_s
                )[name]
            except Exception as error:  # a clock that fails is a row too
                taken = error
            found[name][clock] = _facts(taken)
    beside = times(chosen, _NVBENCH_S) if device == "cuda" else {}
    return {
        name: facts | ({"nvbench": beside[name]} if name in beside else {})
        for name, facts in found.items()
    }


def _facts(taken: Samples | BaseException) -> dict:
    if isinstance(taken, BaseException):
        return {"error": f"{type(taken).__name__}: {taken}"}
    return {
        "median_s": taken.median_s,
        "precision": taken.precision,
        "samples": len(taken.samples_s),
        "iterations": taken.iterations,
        "discarded": taken.discarded,
    }


_CEILINGS = Effort(0.005, 0.5)


def main(path: Path, device: str) -> None:
    document = {
        "machine": environment.machine(device),
        "clocks": measure(device),
        "ceilings": None,
        "why_no_ceilings": "its time was over",
    }
    write_whole(path, json.dumps(document, indent=1))
    dtypes = PROFILES["evidence"].dtypes[device]
    effort = _CEILINGS
    measured, why_not = ceilings.try_to_measure(
        device, dtypes, effort, guard_of(device)
    )
    write_whole(
        path,
        json.dumps(
            document | {"ceilings": measured, "why_no_ceilings": why_not}, indent=1
        ),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
