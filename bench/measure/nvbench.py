"""The same launches timed by NVBench, through its own Python package (cuda-bench 0.3 or
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
"""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

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
