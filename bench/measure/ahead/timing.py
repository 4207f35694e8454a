"""How long a kernel takes to compile, by compiler: `python -m
batchline.bench.measure.ahead.timing [ARCHITECTURE …]`.

Of the kernels that PROFILE=smoke needs, every so-many-th is compiled, by one process
for each two cores, into a folder that is removed.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence

from batchline.bench.cases import plan
from batchline.bench.measure import ahead
from batchline.bench.measure.ahead.folder import kernels_folder
from batchline.bench.measure.ahead.gpu import H200
from batchline.bench.measure.compiled.compile_pool import Pool
from batchline.kernels.device import cpu_name

_EVERY = 12


def seconds_by_compiler(architecture: int) -> dict[str, list[float]]:
    """Seconds of each kernel that was compiled for an H200 of another architecture."""
    gpu = dataclasses.replace(H200, architecture=architecture)
    with kernels_folder(), Pool(max(1, ahead.default_processes() // 2)) as pool:
        needed = ahead.specialisations(
            ahead.problems_of(plan("smoke", "cuda").cases), gpu, pool
        )
        chosen = [
            job
            for compiler in ahead.COMPILE_S
            for job in [one for one in needed.jobs if one.compiler == compiler][
                ::_EVERY
            ]
        ]
        made, failed = ahead.compile_all(chosen, gpu, pool)
    for line in failed:
        print(line, file=sys.stderr)
    return {
        compiler: [one.seconds for job, one in made.items() if job.compiler == compiler]
        for compiler in ahead.COMPILE_S
    }


def main(architectures: Sequence[str]) -> None:
    """Print a line for each architecture and compiler."""
    print(cpu_name())
    for architecture in architectures or ("80", "90", "100"):
        for compiler, seconds in seconds_by_compiler(int(architecture)).items():
            print(
                f"sm_{architecture} {compiler}: {len(seconds)} kernels, median {statistics.median(seconds):.2f} s, "
                f"mean {statistics.mean(seconds):.2f} s, longest {max(seconds):.2f} s"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
