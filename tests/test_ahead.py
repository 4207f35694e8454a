"""Kernels compiled ahead: which there are, and that a process that launches them later compiles nothing."""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import kernels
from bench.measure import ahead, steadiness
from bench.measure.ahead import folder, inputs, launches, work
from bench.measure.ahead.gpu import H200, Gpu, pretended
from bench.measure.codegen import why_cannot_compile
from bench.measure.compile_pool import Pool
from bench.measure.static_facts import never_written
from kernels.backends import interpreted
from tests.as_a_gpu_worker import CHANGES

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    any(why_cannot_compile(backend) or interpreted(backend) for backend in ("triton", "numba_cuda")),
    reason="needs both compilers")

# Arrays and closures over device functions and intrinsics; pointers and descriptors, one launch and two.
LAUNCHED = [("bmm/numba_cuda_naive", "tiny_16", "float32", 3), ("bmm/numba_cuda_mma", "square_256", "float16", 8),
            ("grad_reduce/numba_cuda_two_stage", "bias", "float32", 3), ("bmm/triton_tiled", "square_256", "float16", 8),
            ("bmm/triton_persistent_tma", "square_256", "float16", 8)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder of kernels that other processes have compiled ahead, for the problems of LAUNCHED."""
    place = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(folder.VARIABLE, str(place))
        with folder.kernels_folder(), Pool(2) as pool:
            problems = [job for job in ahead.specialisations(LAUNCHED, H200, pool).jobs
                        if job.place.kind == inputs.PROBLEM]
            made, failed = ahead.compile_all(problems, H200, pool)
            assert not failed and all(one.is_new for one in made.values()) and len(made) >= len(LAUNCHED)
            again, failed = ahead.compile_all(problems[:1], H200, pool)
            assert not failed and not any(one.is_new for one in again.values())
    return place


def launched_elsewhere(cache, launched):
    """(how many binaries were loaded, what was compiled) of each launch, by a process that has just started."""
    environment = os.environ | {folder.VARIABLE: str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
    done = subprocess.run([sys.executable, "-m", "tests.as_a_gpu_worker", json.dumps(launched)], cwd=REPOSITORY,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_launch_in_another_process_finds_its_kernels_compiled(cache):
    found = launched_elsewhere(cache, [(*problem, None) for problem in LAUNCHED])
    assert all(loaded and compiled == [] for loaded, compiled in found), found


def test_a_launch_that_differs_in_anything_of_the_key_is_compiled(cache):
    tiled = LAUNCHED[3]
    others = [(*tiled, change) for change in CHANGES]
    others += [(*tiled[:2], "bfloat16", 8, None), ("bmm/numba_cuda_naive", "tiny_16", "float16", 3, None),
               ("bmm/numba_cuda_mma", "square_256", "bfloat16", 8, None)]
    found = launched_elsewhere(cache, others)
    assert [compiled for _, compiled in found] == [["triton"]] * 4 + [["nvvm"]] * 2


def test_what_is_on_disk_and_damaged_is_compiled(cache, tmp_path):
    copied = tmp_path / "kernels"
    shutil.copytree(cache, copied)
    for kernel in (copied / "numba").iterdir():
        kernel.write_bytes(kernel.read_bytes()[:-1] + b"x")
    assert launched_elsewhere(copied, [(*LAUNCHED[0], None)]) == [[0, ["nvvm"]]]
