"""The GPU variants' arithmetic without a GPU: the tests of variants and of properties again, interpreting kernels."""
import os
import subprocess
import sys

import numpy
import pytest
from packaging.version import Version

import kernels
from kernels import backends


def _why_not(backend):
    """Why `backend`'s interpreter can't be trusted here, or None."""
    if backend == "triton" and backends.why_absent(backend) is None:
        if Version(backends.triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
            return "Triton 3.6's interpreter breaks on NumPy 2.4"
    return backends.why_absent(backend)


CHILDREN = [(backend, file) for backend in backends.INTERPRETED_BACKENDS
            for file in ("tests/test_variants.py", "tests/test_properties.py", "tests/test_statistics.py")]


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """All of them at once, each a process of its own: on two cores that is half the time."""
    folder = tmp_path_factory.mktemp("children")
    started = {}
    for number, (backend, file) in enumerate(child for child in CHILDREN if not _why_not(child[0])):
        output = folder / str(number)
        with output.open("w") as stream:
            started[backend, file] = output, subprocess.Popen(
                [sys.executable, "-m", "pytest", file, "-p", "no:cacheprovider", "--no-header", "-rN"],
                env=os.environ | backends.interpreter_environment(backend), stdout=stream, stderr=stream)
    yield started
    for _, process in started.values():
        process.kill()


@pytest.mark.parametrize("backend, file", CHILDREN)
def test_gpu_variants_are_right_when_interpreted(children, backend, file):
    if _why_not(backend):
        pytest.skip(_why_not(backend))
    output, process = children[backend, file]
    assert process.wait() == 0, output.read_text()
    assert " passed" in output.read_text()


def test_every_variant_is_run_somewhere():
    """A backend is native on the CPU, or has an interpreter: no variant goes without a check for want of a GPU."""
    for op in kernels.ops.values():
        for variant in op.variants.values():
            assert variant.needs != "cuda" or variant.backend in backends.INTERPRETED_BACKENDS, variant.id
