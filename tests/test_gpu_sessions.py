"""GPU tests: the riskiest first, kernels in turns, as many processes as fit, and a
broken context ends its process.
"""

import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from batchline.bench.measure import sanitizer
from tests import gpu_sessions
from tests.plans import declared

REPOSITORY = Path(__file__).resolve().parents[1]
Variant = namedtuple("Variant", "id")


class Item:
    """What pytest has of a test, as far as the order asks."""

    def __init__(self, name, variant=None, dtype="float32", gpu=True):
        self.name = name
        if variant:
            self.callspec = namedtuple("Callspec", "params")(
                {"variant": Variant(variant), "dtype": dtype}
            )
        self._gpu = gpu

    def get_closest_marker(self, name):
        return object() if self._gpu and name == "gpu" else None


def test_each_risk_names_a_variant():
    names = [
        variant.name
        for variant in declared()
        if variant.backend in ("triton", "numba_cuda")
    ]
    for part in sanitizer.RISKIEST:
        assert any(part in name for name in names), part


def test_the_riskiest_come_first_and_kernels_in_turns():
    items = [
        Item("cpu", gpu=False),
        Item("plain"),
        *(
            Item(f"{number}", variant, dtype)
            for variant in ("bmm/numba_cuda_mma", "bmm/triton_warp_specialized")
            for dtype in ("float16", "bfloat16")
            for number in range(2)
        ),
    ]
    gpu_sessions.order(items)
    order = [
        (
            item.callspec.params["variant"].id.partition("_")[2],
            item.callspec.params["dtype"],
            item.name,
        )
        for item in items[:8]
    ]
    assert order == [
        ("warp_specialized", "float16", "0"),
        ("warp_specialized", "bfloat16", "0"),
        ("warp_specialized", "float16", "1"),
        ("warp_specialized", "bfloat16", "1"),
        ("cuda_mma", "float16", "0"),
        ("cuda_mma", "bfloat16", "0"),
        ("cuda_mma", "float16", "1"),
        ("cuda_mma", "bfloat16", "1"),
    ]
    assert [item.name for item in items[8:]] == ["plain", "cpu"]


@pytest.mark.parametrize(
    "free_gib, cores, expected", [(139, 16, 12), (79, 16, 9), (139, 4, 4), (3, 16, 1)]
)
def test_there_are_as_many_processes_as_memory_and_cores_allow(
    monkeypatch, free_gib, cores, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda: (free_gib * 2**30, 140 * 2**30)
    )
    monkeypatch.setattr(
        gpu_sessions.os, "sched_getaffinity", lambda process: range(cores)
    )
    assert gpu_sessions.processes() == expected


BREAKS = """
import pytest, torch

BROKEN = []

def lost():
    if BROKEN:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, lost

@pytest.mark.gpu
@pytest.mark.parametrize("number", range(6))
def test_one(number):
    lost()
    if number == 1:
        BROKEN.append(1)
        lost()
"""
CONFTEST = """
import pytest
from tests import gpu_sessions

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    done = yield
    gpu_sessions.leave_if_lost(item)
    return done
"""


@pytest.mark.slow
def test_a_broken_context_fails_one_test_alone_and_the_session_says_why_at_once(
    tmp_path,
):
    pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_breaks.py").write_text(BREAKS)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(tmp_path),
            "-n",
            "1",
            "-vv",
            "-p",
            "tests.failures_at_once",
            "-p",
            "no:cacheprovider",
            "-c",
            "setup.cfg",
            "--rootdir",
            str(tmp_path),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    passed = {line.rpartition("[")[2] for line in lines if "PASSED" in line}
    assert {name.strip() for name in passed} == {
        "0]",
        "2]",
        "3]",
        "4]",
        "5]",
    }, done.stdout
    first = next(number for number, line in enumerate(lines) if "FAILED" in line)
    assert "illegal memory access" in lines[first + 1]
