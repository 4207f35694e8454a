"""The fixture of other suites: their callables timed by our clocks, beside their own
benchmarks, and nothing at all where it is not asked for.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from batchline.bench import pytest_plugin
from batchline.bench.errors import UsageError
from batchline.bench.measure.timing import of_callable
from batchline.bench.measure.timing.of_callable import Timed, Work, timed
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.running.replay import Replay

REPOSITORY = Path(__file__).resolve().parents[1]
EFFORT = Effort(precision=0.5, seconds=0.01)
CEILINGS = {
    "cache_bytes": 0,
    "copy_bytes_per_s": 1e9,
    "read_bytes_per_s": 1e9,
    "matmul_flops_per_s": {"float32": 1e9},
    "fma_flops_per_s": {},
    "launch_s": {},
}


def test_a_callable_has_its_samples_and_what_is_known_besides():
    a = torch.ones(64, 64)
    done = timed(torch.add, (a, a), effort=EFFORT)
    assert torch.equal(done.result, a + a)
    assert len(done.samples_s) >= EFFORT.least and min(done.samples_s) > 0
    facts = done.facts
    assert (facts["device"], facts["clock"]) == ("cpu", "host")
    assert facts["peak_bytes"] is None or facts["peak_bytes"] >= 0
    assert "regime" not in facts


def test_with_its_work_it_has_the_ceiling_that_binds(monkeypatch):
    monkeypatch.setattr(of_callable, "_ceilings", lambda *_: (CEILINGS, None))
    a = torch.ones(64, 64)
    facts = timed(torch.add, (a, a), work=Work(4096, 3 * a.nbytes), effort=EFFORT).facts
    assert facts["regime"] == "memory"
    assert facts["least_s"] == pytest.approx(3 * a.nbytes / 1e9)
    assert facts["share"] > 0
    monkeypatch.setattr(of_callable, "_ceilings", lambda *_: (None, "too busy"))
    facts = timed(torch.add, (a, a), work=Work(4096, 3 * a.nbytes), effort=EFFORT).facts
    assert facts["why_no_ceilings"] == "too busy" and "regime" not in facts


def test_a_clock_that_the_device_has_not_is_a_line():
    with pytest.raises(UsageError, match="'sundial' is no clock of cpu: use host"):
        timed(torch.add, (torch.ones(1), 1), "sundial")


def test_what_the_callable_raises_passes_through():
    with pytest.raises(ZeroDivisionError):
        timed(lambda: 1 / 0, ())


class Theirs:
    """pytest-benchmark's fixture, as far as it is called."""

    def __init__(self, disabled=False):
        self.disabled, self.extra_info, self.rounds = disabled, {}, []

    def __call__(self, function, *inputs):
        return function(*inputs)

    def pedantic(self, target, rounds, iterations):
        self.rounds.append((rounds, iterations))


def test_the_facts_and_the_samples_are_handed_over(monkeypatch):
    asked = []

    def fake(function, inputs, clock, work):
        asked.append((clock, work))
        return Timed(function(*inputs), (1e-3, 2e-3), 7, {"clock": "host"})

    monkeypatch.setattr(of_callable, "timed", fake)
    theirs = Theirs()
    ours = pytest_plugin.Benchmark(theirs, Replay())
    assert ours(max, 1, 3, flops=2, least_bytes=8) == 3
    assert asked == [(None, Work(2, 8))]
    assert theirs.extra_info == {"batchline": {"clock": "host"}}
    assert theirs.rounds == [(2, 7)]


def test_a_suite_that_is_not_benchmarked_calls_once(monkeypatch):
    monkeypatch.setattr(of_callable, "timed", None)
    called = []
    ours = pytest_plugin.Benchmark(Theirs(disabled=True), Replay())
    ours(called.append, 1)
    assert called == [1] and ours.extra_info == {}


def test_half_of_the_work_is_refused():
    ours = pytest_plugin.Benchmark(Theirs(), Replay())
    with pytest.raises(pytest.fail.Exception, match="give both flops and least_bytes"):
        ours(max, 1, 3, flops=2)


def test_without_pytest_benchmark_it_says_what_is_missing():
    config = SimpleNamespace(pluginmanager=SimpleNamespace(hasplugin=lambda name: 0))
    function = pytest_plugin.batchline_benchmark.__wrapped__
    with pytest.raises(pytest.fail.Exception, match="pip install pytest-benchmark"):
        function(SimpleNamespace(config=config))


def test_where_it_is_not_asked_for_it_costs_no_import():
    program = (
        "import sys, batchline.bench.pytest_plugin\n"
        "print(*{'torch', 'numpy', 'batchline.kernels'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout == "\n", done.stderr


SUITE = """
import pytest, torch

@pytest.mark.benchmark(group="theirs")
def test_ours(batchline_benchmark):
    batchline_benchmark.extra_info["mine"] = 1
    assert batchline_benchmark(torch.add, torch.ones(9), 1).sum() == 18

def test_theirs(benchmark):
    assert benchmark(sum, [1, 2]) == 3
"""


def _without_xdist():
    """The environment of a pytest of its own: told that it is a worker of pytest-xdist,
    pytest-benchmark would time nothing.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTEST_XDIST")
    }


@pytest.mark.commands
def test_it_stands_in_a_suite_beside_pytest_benchmarks_own(tmp_path):
    (tmp_path / "test_speed.py").write_text(SUITE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "batchline.bench.pytest_plugin"),
            *("--benchmark-json", "stored.json", "test_speed.py"),
        ],
        cwd=tmp_path,
        env={**_without_xdist(), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = json.loads((tmp_path / "stored.json").read_text())["benchmarks"]
    assert ours["group"] == "theirs" and ours["extra_info"]["mine"] == 1
    facts = ours["extra_info"]["batchline"]
    assert facts["clock"] == "host" and ours["stats"]["rounds"] >= 6
    assert ours["stats"]["median"] < 1e-3 and theirs["extra_info"] == {}
