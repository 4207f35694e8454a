"""The stand-in for a GPU is as unkind as CUDA, and a whole run on it goes from plan to report.

What it is made of, and what is timed on it, is tested in processes that have it from their start
(tests/on_the_stand_in.py, tests/timed_on_the_stand_in.py).
"""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import compare, dispatch, history, records
from bench.errors import UsageError
from bench.measure import stand_in
from bench.records import MEASURED, NOT_HERE, UNSUPPORTED
from kernels import backends
from tests.plans import planned

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(any(backends.why_absent(name) for name in backends.INTERPRETED_BACKENDS),
                                reason="it interprets Triton's and Numba's kernels")


def bench(*arguments, folder=ROOT):
    return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("file", ["on_the_stand_in", "timed_on_the_stand_in"])
def test_it_is_as_unkind_as_cuda(file):
    done = subprocess.run([sys.executable, "-m", "pytest", f"tests/{file}.py", "-p", "no:cacheprovider",
                           "--no-header"], cwd=ROOT, env={**os.environ, **stand_in.environment()},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A run of every case on it (a choice of all leaves the noise out): what it printed, and the folder of the run."""
    folder = tmp_path_factory.mktemp("smoke")
    done = bench("run", "--device", stand_in.NAME, "--profile", "smoke", "-k", "float16", "--out", str(folder / "runs"),
                 "--history", str(folder / "history"))
    assert done.returncode == 0, done.stdout + done.stderr
    run_folder, = (folder / "runs").iterdir()
    return done, run_folder


def test_a_whole_run_measures_every_variant_or_says_why_not(smoke):
    _, folder = smoke
    run = records.load(folder)
    statuses = {}
    for record in run.records:
        statuses.setdefault(f"{record.op}/{record.variant}", set()).add(record.status)
    expected = {case.variant.id for case in planned("smoke", "cuda").cases}
    assert set(statuses) == expected
    assert set().union(*statuses.values()) <= {MEASURED, NOT_HERE, UNSUPPORTED}
    unmeasured = {name for name, found in statuses.items() if MEASURED not in found}
    assert unmeasured == {name for name in expected if _declined(name, run)}
    for record in run.records:
        if record.status == MEASURED:
            assert set(record.facts["clocks"]) == {"device_cold", "device_hot", "graph", "host"}


def _declined(name, run):
    """Whether it needs the CPU, takes seconds to compile, or takes none of the small problems."""
    return all(record.status in (NOT_HERE, UNSUPPORTED) and record.reason for record in run.records
               if f"{record.op}/{record.variant}" == name)


def test_all_that_it_writes_says_that_no_time_was_measured(smoke):
    done, folder = smoke
    assert stand_in.WORDS in done.stderr and "no time here was measured" in " ".join(done.stdout.split())
    for path in folder.iterdir():
        if path.suffix in (".md", ".json", ".html"):
            assert "no time here was measured" in path.read_text(encoding="utf-8"), path.name


def test_nothing_is_built_upon_it(smoke):
    _, folder = smoke
    with pytest.raises(UsageError, match=stand_in.WORDS):
        compare.compare(folder, folder)
    with pytest.raises(UsageError, match=stand_in.WORDS):
        dispatch._evidence(folder, "cpu")
    assert history.append(records.load(folder), folder / "history") is None
