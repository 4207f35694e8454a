"""Numba's parallel kernels: a cache that may be missing or damaged, and threads that
follow torch's count.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchline.kernels import cgroups
from batchline.kernels._cpu import jit as numba_cpu

numba = pytest.importorskip("numba")
REPOSITORY = Path(__file__).resolve().parents[1]
THREADS = """
import json, torch
from batchline.kernels._cpu import jit as numba_cpu
print(json.dumps([torch.get_num_threads(), numba_cpu.threads(), torch.get_num_threads()]))
"""
CALLS = """
import subprocess, sys, torch
from batchline import kernels
g, a = torch.ones(3, 70), torch.ones(2, 3, 3)
assert torch.equal(kernels.ops["grad_reduce"].variants["numba_cpu_parallel"](g), torch.ones(70))
assert torch.equal(kernels.ops["bmm"].variants["numba_cpu_naive"](a, a), a @ a)
assert torch.equal(kernels.ops["bmm"].variants["numba_cpu_blocked"](a, a), a @ a)
"""


def run(program, folder=REPOSITORY, **environment):
    return subprocess.run(
        [sys.executable, "-B", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(folder)} | environment,
    )


# The cache.


@pytest.fixture
def nowhere_to_write(tmp_path):
    """A copy of the kernels beside which not even root can write a cache: what would be
    its folders are files.
    """
    shutil.copytree(
        REPOSITORY / "kernels",
        tmp_path / "kernels",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for folder in [tmp_path / "kernels", *(tmp_path / "kernels").rglob("*")]:
        if folder.is_dir():
            (folder / "__pycache__").write_text("")
    return tmp_path


@pytest.mark.slow
def test_where_no_folder_can_be_written_kernels_compute_without_a_cache_and_say_it_once(
    nowhere_to_write,
):
    again = (
        CALLS
        + "\nsubprocess.run([sys.executable, '-B', '-c', 'import batchline.kernels._cpu.tasks'], check=True)"
    )
    done = run(
        again, nowhere_to_write, HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere"
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("can't be kept on disk") == 1
        and "NUMBA_CACHE_DIR" in done.stderr
    )


def compiled_twice(tmp_path, monkeypatch, between):
    """A kernel of a file in `tmp_path`, compiled by two decorations with `between`
    between them; both results.
    """
    source = tmp_path / "a_kernel.py"
    source.write_text("def kernel(x):\n    return x + 1\n")
    monkeypatch.setenv(numba_cpu._SAID, "1")
    results = []
    for _ in range(2):
        space = {}
        exec(compile(source.read_text(), str(source), "exec"), space)
        results.append(numba_cpu.njit(parallel=True)(space["kernel"])(3))
        between(tmp_path / "__pycache__")
    return results


def damage(folder):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:40])


@pytest.mark.filterwarnings(
    "ignore"
)  # Numba's, that there is nothing to run in parallel
@pytest.mark.parametrize("between", [damage, shutil.rmtree], ids=["damaged", "removed"])
def test_a_cache_that_is_lost_costs_no_call(tmp_path, monkeypatch, between):
    assert compiled_twice(tmp_path, monkeypatch, between) == [4, 4]


@pytest.mark.filterwarnings("ignore")
def test_a_disk_that_takes_nothing_costs_no_call(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert compiled_twice(tmp_path, monkeypatch, lambda folder: None) == [4, 4]


def test_where_it_can_be_kept_nothing_is_said():
    assert numba_cpu.why_not_kept() is None


# The threads.


@pytest.mark.commands
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"OMP_NUM_THREADS": "1"}, [1, 1, 1]),
        ({"OMP_NUM_THREADS": "2"}, [2, 2, 2]),
        ({"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}, [1, 2, 1]),
    ],
    ids=str,
)
def test_numba_follows_torch_unless_it_was_told_and_leaves_torchs_count(
    environment, expected
):
    for told in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        environment.setdefault(told, "")
    if not environment["NUMBA_NUM_THREADS"]:
        del environment["NUMBA_NUM_THREADS"]
    assert json.loads(run(THREADS, **environment).stdout) == expected


@pytest.fixture
def counts():
    """Both libraries' counts are as they were again afterwards."""
    before = torch.get_num_threads(), numba.get_num_threads()
    yield before
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.fixture
def seen():
    """A call that tells how many threads it has."""
    return numba_cpu._on_our_threads(numba.get_num_threads)


@pytest.mark.skipif(
    numba.config.NUMBA_NUM_THREADS < 2, reason="needs two of Numba's threads"
)
def test_a_call_has_torchs_threads_and_numbas_own_setting_stays(
    counts, seen, monkeypatch
):
    monkeypatch.setattr(numba_cpu, "_was_told", lambda: False)
    most = numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(most)
    torch.set_num_threads(1)
    assert seen() == 1 and numba.get_num_threads() == most
    torch.set_num_threads(most)
    assert seen() == most
    numba.set_num_threads(1)  # the user's word counts for more than torch's
    assert (
        seen() == 1 and numba.get_num_threads() == 1 and torch.get_num_threads() == most
    )


def test_a_call_that_raises_leaves_the_setting_too(counts, monkeypatch):
    monkeypatch.setattr(numba_cpu, "threads", lambda: 1)

    def raises(*_):
        raise ValueError

    with pytest.raises(ValueError):
        numba_cpu._on_our_threads(raises)()
    assert numba.get_num_threads() == counts[1]


@pytest.mark.parametrize("quota, most", [(0.6, 1), (1.9, 1), (2.0, 2), (None, 2)])
def test_threads_stay_within_the_quota(counts, monkeypatch, quota, most):
    monkeypatch.setattr(numba_cpu, "_was_told", lambda: False)
    monkeypatch.setattr(cgroups, "cpu_quota", lambda root=None: quota)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    monkeypatch.setattr(numba, "get_num_threads", lambda: 2)
    torch.set_num_threads(2)
    numba_cpu._cores_of_quota.cache_clear()
    assert numba_cpu.threads() == most
    numba_cpu._cores_of_quota.cache_clear()
