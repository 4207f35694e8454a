"""NVBench's times: read from its JSON, and its Python package driven as its sources say
(on a GPU, as it is).
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from batchline.bench.measure.timing import clock_check

REPOSITORY = Path(__file__).resolve().parents[1]
ABSENT = clock_check.why_absent()


def _summary(tag, kind, value, **labels):
    return {
        "tag": tag,
        **labels,
        "data": [{"name": "value", "type": kind, "value": value}],
    }


def _summaries(median="1.0112e-05", noise="0.0125"):
    """In NVBench's order, one summary of each kind; numbers are text, and what is
    hidden in tables says so.
    """
    hidden = {"hint": "duration", "hide": "Hidden by default."}
    return [
        _summary(
            "nv/cold/sample_size", "int64", "1482", name="Samples", hint="sample_size"
        ),
        _summary(
            "nv/cold/walltime", "float64", "0.51435071", name="Walltime", **hidden
        ),
        _summary(
            "nv/cold/time/cpu/mean",
            "float64",
            "4.52e-05",
            name="CPU Time",
            hint="duration",
        ),
        _summary(
            "nv/cold/time/gpu/mean",
            "float64",
            "1.0302e-05",
            name="GPU Time",
            hint="duration",
        ),
        _summary(
            "nv/cold/time/gpu/stdev/relative",
            "float64",
            noise,
            name="Noise",
            hint="percentage",
        ),
        _summary(
            "nv/cold/time/gpu/median",
            "float64",
            median,
            name="Median GPU Time",
            **hidden,
        ),
        {
            "tag": "nv/json/bin:nv/cold/sample_times",
            "name": "Sample Times File",
            "hint": "file/sample_times",
            "hide": "Not needed in table.",
            "data": [
                {
                    "name": "filename",
                    "type": "string",
                    "value": "nvbench.json-bin/0.bin",
                },
                {"name": "size", "type": "int64", "value": "1482"},
            ],
        },
        _summary(
            "nv/batch/sample_size", "int64", "52310", name="Samples", hint="sample_size"
        ),
        _summary(
            "nv/batch/time/gpu/mean",
            "float64",
            "9.5581e-06",
            name="Batch GPU",
            hint="duration",
        ),
    ]


def _state(name, summaries, skip_reason=None):
    return {
        "name": f"Device=0 launch={name}",
        "min_samples": 10,
        "timeout": 15.0,
        "device": 0,
        "type_config_index": 0,
        "axis_values": [{"name": "launch", "type": "string", "value": name}],
        "summaries": summaries,
        "is_skipped": skip_reason is not None,
        **({"skip_reason": skip_reason} if skip_reason else {}),
    }


def _document(states):
    return {
        "meta": {
            "argv": ["nvbench"],
            "version": {
                "json": {"major": 1, "minor": 0, "patch": 0, "string": "1.0.0"}
            },
        },
        "devices": [{"id": 0, "name": "NVIDIA H200", "sm_version": 900}],
        "benchmarks": [
            {
                "name": "measure",
                "index": 0,
                "devices": [0],
                "axes": [],
                "states": states,
            }
        ],
    }


def _parsed(summaries, skip_reason=None):
    return clock_check.parse(_document([_state("x", summaries, skip_reason)]))["x"]


def test_the_median_of_cold_and_the_mean_of_hot_launches():
    assert clock_check.parse(
        _document(
            [_state("torch bmm", _summaries()), _state("β", _summaries(median="0.002"))]
        )
    ) == {
        "torch bmm": {
            "cold_s": 1.0112e-05,
            "hot_s": 9.5581e-06,
            "samples": 1482,
            "noise": 0.0125,
        },
        "β": {"cold_s": 0.002, "hot_s": 9.5581e-06, "samples": 1482, "noise": 0.0125},
    }


def test_a_launch_that_raised_has_no_times_and_its_reason_in_a_line():
    reason = (
        "Unexpected error: RuntimeError: shapes differ\n\nAt:\n  bmm.py(12): launch\n"
    )
    assert _parsed(_summaries(), reason) == {"error": "RuntimeError: shapes differ"}
    assert _parsed(None, "Deadlock detected") == {"error": "Deadlock detected"}


@pytest.mark.parametrize(
    "summaries",
    [
        None,
        [],
        _summaries()[:1],
        [s for s in _summaries() if "median" not in s["tag"]],
        _summaries(median="nan"),
    ],
)
def test_without_a_median_there_is_no_time(summaries):
    assert _parsed(summaries)["error"].startswith("NVBench gave no median")


def test_what_is_missing_or_not_finite_beside_the_cold_time_is_none():
    assert _parsed(_summaries(noise="inf")[:-1]) == {
        "cold_s": 1.0112e-05,
        "hot_s": None,
        "samples": 1482,
        "noise": None,
    }


@pytest.mark.parametrize("benchmarks", [None, [{"name": "measure", "states": None}]])
def test_a_document_without_states_has_no_rows(benchmarks):
    assert clock_check.parse({"benchmarks": benchmarks}) == {}


class FakePackage:
    """cuda.bench as its sources have it: one run a process, a state a value, and an
    exception skips its state.
    """

    def __init__(self):
        self.log, self.argv, self._ran = [], None, False

    def register(self, function):
        if self._ran:
            raise RuntimeError(
                "Can not register more benchmarks after benchmark was run"
            )
        self._function = function
        return SimpleNamespace(
            add_string_axis=lambda name, values: self.__dict__.update(
                axis=name, values=values
            )
        )

    def run_all_benchmarks(self, argv):
        assert isinstance(argv, list)
        self.argv, self._ran = argv, True
        states, stop = [], False
        for value in self.values:
            reason = (
                "Skipped because a previous state requested the runner loop to stop."
                if stop
                else None
            )
            try:
                stop or self._function(self._state(value))
            except (Exception, KeyboardInterrupt) as error:
                reason = f"Unexpected error: {type(error).__name__}: {error}\n\nAt:\n  launch.py(1): launch\n"
                stop = isinstance(error, KeyboardInterrupt)
            states.append(_state(value, None if reason else _summaries(), reason))
        Path(argv[argv.index("--json") + 1]).write_text(json.dumps(_document(states)))

    def _state(self, value):
        def execute(call):
            self.log.append("exec")
            call("launch")

        return SimpleNamespace(
            get_string={self.axis: value}.__getitem__,
            exec=execute,
            get_stream=lambda: SimpleNamespace(addressof=lambda: 4096),
        )


@pytest.fixture
def package(monkeypatch):
    fake = FakePackage()

    @contextlib.contextmanager
    def stream(address):
        fake.log.append(f"on {address}")
        yield
        fake.log.append("off")

    monkeypatch.setitem(sys.modules, "cuda.bench", fake)
    for name, stand_in in (
        ("ExternalStream", int),
        ("stream", stream),
        ("current_device", lambda: 1),
        ("empty_cache", lambda: None),
        ("synchronize", lambda: fake.log.append("wait")),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return fake


def test_launches_are_warm_on_nvbenchs_stream_before_it_holds_the_stream(package):
    rows = clock_check.times({"a": lambda: package.log.append("launch")}, timeout_s=2.5)
    assert rows["a"]["cold_s"] == 1.0112e-05
    assert package.log == [
        "wait",
        "on 4096",
        "launch",
        "launch",
        "launch",
        "wait",
        "exec",
        "launch",
        "off",
    ]
    arguments = dict(zip(package.argv[2::2], package.argv[3::2]))
    assert (
        package.argv[:2] == ["nvbench", "--quiet"]
        and not Path(arguments.pop("--json")).exists()
    )
    assert arguments == {
        "--devices": "1",
        "--timeout": "2.5",
        "--throttle-threshold": "0",
    }


def test_a_failure_is_a_row_and_the_others_go_on(package):
    rows = clock_check.times(
        {
            "a": lambda: None,
            "b": lambda: torch.zeros(2) @ torch.zeros(3),
            "c": lambda: None,
        }
    )
    assert (
        rows["b"]["error"].startswith("RuntimeError: ")
        and "\n" not in rows["b"]["error"]
    )
    assert (
        list(rows) == ["a", "b", "c"]
        and rows["a"]["hot_s"] == rows["c"]["hot_s"] == 9.5581e-06
    )


def test_a_second_run_in_a_process_is_an_error_in_every_row(package):
    clock_check.times({"a": lambda: None})
    assert clock_check.times({"a": lambda: None}) == {
        "a": {"error": "Can not register more benchmarks after benchmark was run"}
    }


def test_ctrl_c_stops_us_though_nvbench_swallows_it(package):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clock_check.times({"a": interrupted, "b": lambda: package.log.append("never")})
    assert "never" not in package.log


def test_without_the_package_every_row_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bench", None)
    assert "cuda.bench" in clock_check.why_absent()
    assert clock_check.times({"a": lambda: None}) == {
        "a": {"error": clock_check.why_absent()}
    }


def test_no_launches_need_no_package():
    assert clock_check.times({}) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.skipif(ABSENT is not None, reason=f"needs cuda-bench: {ABSENT}")
def test_nvbench_times_a_product_where_there_is_a_gpu():
    """In a process of its own, because NVBench runs once in each."""
    program = """
import json, torch
from batchline.bench.measure.timing import clock_check
a, b = torch.rand(8, 256, 256, device="cuda"), torch.rand(8, 256, 256, device="cuda")
torch.bmm(a, b)
rows = clock_check.times({"product": lambda: torch.bmm(a, b), "wrong": lambda: torch.bmm(a, b[:, 1:])}, timeout_s=2.0)
print(json.dumps([rows, float(torch.bmm(a, b).sum())]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows, still_works = json.loads(done.stdout.splitlines()[-1])
    assert (
        0 < rows["product"]["cold_s"] < 0.1 and 0 < rows["product"]["hot_s"] < 0.1
    ), rows
    assert rows["product"]["samples"] >= 10 and still_works > 0
    assert rows["wrong"]["error"].startswith("RuntimeError")
