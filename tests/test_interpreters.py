"""The GPU variants' arithmetic without a GPU: test_variants.py again, in a process that interprets their kernels."""
import os
import subprocess
import sys

import pytest

import kernels
from kernels import backends


@pytest.mark.parametrize("backend", backends.INTERPRETED_BACKENDS)
def test_gpu_variants_are_right_when_interpreted(backend):
    if backends.why_absent(backend):
        pytest.skip(backends.why_absent(backend))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/test_variants.py", "-p", "no:cacheprovider", "--no-header", "-rN"],
        env=os.environ | backends.interpreter_environment(backend), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_every_variant_is_run_somewhere():
    """A backend is native on the CPU, or has an interpreter: no variant goes without a check for want of a GPU."""
    for op in kernels.ops.values():
        for variant in op.variants.values():
            assert variant.needs != "cuda" or variant.backend in backends.INTERPRETED_BACKENDS, variant.id
