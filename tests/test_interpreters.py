"""The GPU variants' sources, interpreted: the tests of variants and of properties again.

What the compilers make of them is executed in tests/test_emulator_variants.py, with
more checks and in bf16 and fp8 too. What is left to the interpreters are random shapes
(test_properties.py), for which a compiler would take a second each.
"""

import os
import subprocess
import sys

import numpy
import pytest
from packaging.version import Version

from batchline import kernels
from batchline.bench.measure.emulator import subjects
from batchline.kernels import backends
from tests.on_tensor_cores import ON_TENSOR_CORES


def _why_not(backend):
    """Why `backend`'s interpreter can't be trusted here, or None."""
    if backend == "triton" and backends.why_absent(backend) is None:
        if Version(backends.triton.__version__) < Version("3.7") and Version(
            numpy.__version__
        ) >= Version("2.4"):
            return "Triton 3.6's interpreter breaks on NumPy 2.4"
    return backends.why_absent(backend)


FILES = (
    "tests/test_variants.py",
    "tests/test_properties.py",
    "tests/test_statistics.py",
)
CHILDREN = [
    pytest.param(
        backend,
        marks,
        id=f"{backend}-{marks}",
        marks=[
            pytest.mark.skipif(bool(_why_not(backend)), reason=str(_why_not(backend))),
            pytest.mark.slow,
        ],
    )
    for backend in backends.INTERPRETED_BACKENDS
    for marks in ("not slow", "slow")
]


@pytest.mark.parametrize("backend, marks", CHILDREN)
def test_gpu_variants_are_right_when_interpreted(backend, marks):
    """In one process for all files: each takes seconds to start."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *FILES,
            "-m",
            marks,
            "-p",
            "no:cacheprovider",
            "--no-header",
        ],
        env=os.environ | backends.interpreter_environment(backend),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_every_gpu_variant_is_executed_somewhere():
    """In emulation, or on the stand-in where torch computes it: none goes without a
    check but the peers, which tests/test_peers_compiled.py executes where they are
    installed, and a product that the library has from sm_100 on, which the stand-in is
    not: tests/test_bmm_mxfp8.py executes that behind a library made up.
    """
    on_the_stand_in = {f"{op}/{name}" for op, name, _ in ON_TENSOR_CORES}
    behind_a_library = {"bmm_mxfp8/torch_scaled_mm"}
    for op in kernels.ops.values():
        for variant in op.variants.values():
            is_tried = (
                variant.backend in subjects.BACKENDS
                or variant.id in on_the_stand_in | behind_a_library
            )
            is_peer = variant.backend in backends.PEERS
            assert variant.needs != "cuda" or is_tried or is_peer, variant.id
