"""What each process does that compiles ahead: one variant's launches noted, or one
kernel compiled.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

from batchline import kernels
from batchline.bench import texts
from batchline.bench.measure.ahead import launches
from batchline.bench.measure.ahead.gpu import Gpu, pretended
from batchline.bench.measure.ahead.inputs import Place, inputs_at, places
from batchline.bench.measure.reading import reading_process
from batchline.bench.measure.worker import process_state
from batchline.kernels.op import Variant

Launch = tuple[
    str, str, Place
]  # the compiler, its key of the kernel, and where it is launched first


class Noting(NamedTuple):
    """The arguments of `note`."""

    variant: str
    problems: tuple[tuple[str, str, int], ...]
    gpu: Gpu
    nearby_seed: int | None

    def __str__(self) -> str:
        return f"{self.variant}: what it launches"


class Compiling(NamedTuple):
    """The arguments of `compile_one`."""

    variant: str
    place: Place
    key: str
    gpu: Gpu
    nearby_seed: int | None

    def __str__(self) -> str:
        return f"{self.variant} on {self.place}"


class Made(NamedTuple):
    """Whether a kernel was compiled, or found on disk, and the seconds that it took."""

    is_new: bool
    seconds: float


def note(
    variant_id: str,
    problems: tuple[tuple[str, str, int], ...],
    gpu: Gpu,
    nearby_seed: int | None,
) -> tuple[list[Launch], list[str]]:
    """The distinct kernels that a variant launches when it is measured on these
    (scenario, dtype, batch).

    And a line for each place where its launcher raised: what it launches there is not
    known.
    """
    variant, found, problems_of_it = _variant(variant_id), {}, []
    for place in places(variant, problems, nearby_seed):
        try:
            with pretended(gpu):
                inputs = inputs_at(variant, place, nearby_seed)
            if inputs is not None:
                for key, compiler in launches.keys_of(variant, inputs, gpu).items():
                    found.setdefault(key, (compiler, key, place))
        except (
            Exception
        ) as error:  # whatever a launcher raises that has no memory to look into
            problems_of_it.append(f"{variant_id} on {place}: {texts.error_line(error)}")
    return list(found.values()), problems_of_it


def compile_one(
    variant_id: str, place: Place, key: str, gpu: Gpu, nearby_seed: int | None
) -> Made:
    """Compile the kernel of this key, that the variant launches there, into its
    compiler's cache.
    """
    variant = _variant(variant_id)
    with pretended(gpu):
        inputs = inputs_at(variant, place, nearby_seed)
    began_s = time.perf_counter()
    is_new = launches.compile_one(variant, inputs, gpu, key)
    return Made(is_new, time.perf_counter() - began_s)


def _variant(variant_id: str) -> Variant:
    _from_sources()
    op_name, _, name = variant_id.partition("/")
    return kernels.ops[op_name].variants[name]


@functools.cache
def _from_sources() -> None:
    """As in a worker: what lies in __pycache__ need not be what the source says."""
    reading_process.from_sources_only(process_state.op_folders().values())
