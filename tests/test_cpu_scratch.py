"""What a Numba CPU kernel allocates stays its own until it is done with it.

Numba frees an array after its last use by name, whatever its address is used for. With
glibc told to give every block of over 64 KiB back to the system at once, whoever goes
on using one dies.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchline.kernels import backends

LARGE = {
    "bmm": (("linear_forward", 2), ("linear_grad_weight", 2)),
    "grad_reduce": (("odd_100003", 70),),
    "grad_stats": (("odd_100003", 70),),
    "wgrad_stats": (("linear_512_T16", 33), ("odd_37x127x257", 33)),
}
PROGRAM = """
import json, sys
from batchline import kernels
for name, problems in json.loads(sys.argv[1]).items():
    for scenario, batch in problems:
        inputs = kernels.ops[name].make_inputs(scenario, batch, "float32", "cpu")
        for variant in kernels.ops[name].variants.values():
            if variant.backend == "numba_cpu" and variant.why_unsupported(*inputs) is None:
                print(variant.id, scenario, flush=True)
                variant(*inputs)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
@pytest.mark.skipif(
    backends.why_absent("numba_cpu") is not None, reason="Numba is not installed"
)
def test_scratch_lives_as_long_as_it_is_used():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(LARGE)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1]}: {done.stderr}"
    assert {line.partition("/")[0] for line in done.stdout.splitlines()} == set(LARGE)
