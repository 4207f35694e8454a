"""The compiled facts of the GPU variants: as pinned, where the sources are the same, or else
compiled now; and of one problem, compiled without a GPU: the facts of its kernels,
their instructions, and how many thread blocks are launched.

The launcher runs on CPU tensors, and the launches are only noted.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from batchline import kernels, own_ops, places
from batchline.bench.declared import Declared
from batchline.bench.measure.compiled import (
    compile_pool,
    compiler,
    converged,
    pins,
    sass,
)
from batchline.bench.measure.compiled.compiler import (
    Compiled,
    Launch,
    numba_config,
    triton_config,
)
from batchline.bench.measure.compiled.pins import Job
from batchline.bench.measure.compiled.sass import Instruction, instructions
from batchline.bench.measure.reading.sources import files_of
from batchline.bench.stats.roofline import Waves, occupancy
from batchline.bench.statuses import parse_case_id
from batchline.bench.store.files import SealBroken
from batchline.kernels.architectures import KNOWN, PINNED, WITHOUT_GPU
from batchline.kernels.op import FP8, Tensors, Variant
from batchline.kernels.target import compiling_for

DEFAULTS_FOR = WITHOUT_GPU  # the architecture for which every configuration that a rule gives is compiled
BATCHES = (1, 256)  # of each scenario, in search of configurations
_REPOSITORY = places.CODE
_READERS = (
    Path(__file__),
    *(Path(module.__file__) for module in (compiler, converged, sass)),
)
Captured = tuple[
    dict, Launch | None
]  # what a row says of where it was launched (or its "error"), and the launch


def code_of_case(
    case: str, architecture: int
) -> list[tuple[Compiled, list[Instruction]]]:
    """As `machine_code`, of a case by its id: for a process that may import the
    variant's file.
    """
    parts = parse_case_id(case)
    variant = variant_of(f"{parts['op']}/{parts['variant']}")
    return machine_code(
        variant, parts["scenario"], parts["dtype"], parts["batch"], architecture
    )


def machine_code(
    variant: Variant, scenario: str, dtype: str, batch: int, architecture: int
) -> list[tuple[Compiled, list[Instruction]]]:
    """Each kernel that the variant launches on the problem.

    Raises:
        ValueError: if it is no GPU kernel, or its compiler is not installed, or it does
        not take the problem. RuntimeError: if it launched nothing. What the compiler
        raises passes through.
    """
    if why := compiler.why_cannot_compile(variant.backend):
        raise ValueError(f"{variant.id} has no GPU code here: {why}")
    shapes = variant.op.make_inputs(scenario, batch, dtype, "meta")
    with compiling_for(architecture):
        why = variant.why_unsupported(*shapes)
    if why:
        raise ValueError(f"{variant.id} does not take this problem: {why}")
    launches = compiler.launches_of(variant, never_written(shapes), architecture)
    return [
        (compiled, instructions(sass.listing(launch.cubin, architecture)))
        for compiled, launch in zip(compiler.read(launches), launches)
    ]


@dataclass(frozen=True)
class Facts:
    """Rows of compiled kernels, how many of the jobs were looked up and how many
    compiled, and why some are missing.
    """

    rows: list[dict]
    pinned: int
    compiled: int
    incomplete: str | None


@dataclass(frozen=True)
class Compilation:
    """Rows by job, how many of the jobs this machine had compiled before, and a line
    that says what is missing.
    """

    rows: dict[Job, list[dict]]
    cached: int
    incomplete: str | None


def jobs(
    variants: Iterable[Variant | Declared], dtypes: Sequence[str] | None = None
) -> list[Job]:
    """Every (variant, dtype) of these variants that can be compiled here, in all dtypes
    or these.
    """
    return [
        (variant.id, dtype)
        for variant in variants
        if compiler.why_cannot_compile(variant.backend) is None
        for dtype in variant.dtypes or ()
        if dtypes is None or dtype in dtypes
    ]


def facts(wanted: Sequence[Job]) -> Facts:
    """The rows of the wanted jobs, in their order. Pins that can't be believed are not:
    all is compiled, and that said.
    """
    try:
        pinned, refused = pins.load(), None
    except SealBroken as refusal:
        pinned, refused = {}, f"compiled anew, because {refusal}"
    known = {job: pinned[job]["kernels"] for job in wanted if is_current(job, pinned)}
    missing = [job for job in wanted if job not in known]
    compilation = compiled(missing)
    rows = [
        row for job in wanted for row in known.get(job, compilation.rows.get(job, ()))
    ]
    notes = "; ".join(note for note in (refused, compilation.incomplete) if note)
    return Facts(rows, len(known), len(compilation.rows), notes or None)


def is_current(job: Job, pinned: Mapping[Job, dict]) -> bool:
    """Whether the pins of a job came from the sources that it has now."""
    return job in pinned and pinned[job]["sources"] == fingerprint(job[0])


def variant_of(variant_id: str) -> Variant:
    """The variant itself, for which its file is imported here."""
    op_name, _, name = variant_id.partition("/")
    return kernels.ops[op_name].variants[name]


def fingerprint(variant_id: str, readers: Sequence[Path] = _READERS) -> str:
    """A hash of a variant's source, every file of its repository that it imports,
    directly or not, and what reads it: by default, what makes the compiled facts.

    Raises:
        OSError: if there is no such variant.
    """
    op_name, _, name = variant_id.partition("/")
    folder = own_ops.folder_of(op_name, _REPOSITORY / "kernels")
    found = hashlib.sha256()
    for path in sorted({*files_of(Declared(op_name, name, folder)), *readers}):
        root = _REPOSITORY
        if not path.is_relative_to(root):
            root = own_ops.repository_of(folder.parent)
        label = path.relative_to(root).as_posix()
        found.update(label.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def compiled(wanted: Sequence[Job]) -> Compilation:
    """Compile the jobs in processes of their own, but for those that this machine has
    compiled before.

    The largest should come first, so that the processes end together.
    """
    keys = {job: _key(job) for job in wanted}
    rows = {
        job: kept for job in wanted if (kept := pins.load_cached(keys[job])) is not None
    }
    cached = len(rows)
    missing = [job for job in wanted if job not in rows]
    launched, problems = (
        compile_pool.each(captured_of, missing) if missing else ({}, [])
    )
    try:
        fresh = _read(launched)
    except (ValueError, subprocess.CalledProcessError) as error:
        problems.append(f"the disassembler refused what was compiled ({error})")
        fresh = {}
    for job, found in fresh.items():
        # Whoever edits meanwhile has not compiled what they then have.
        if keys[job] == _key(job) and not any("error" in row for row in found):
            pins.store(keys[job], found)
    return Compilation(rows | fresh, cached, "; ".join(problems) or None)


def _key(job: Job) -> str:
    try:
        return pins.key(job, fingerprint(job[0]))
    except OSError:  # no such variant: the process that should compile it says so
        return "none"


def captured_of(variant_id: str, dtype: str) -> list[Captured]:
    """A job's launches, compiled, with their cubins still unread."""
    return list(_launches(variant_of(variant_id), dtype))


def rows_of(variant: Variant, dtype: str) -> list[dict]:
    """A variant's kernels in one dtype: on its example for each architecture, and for
    one of those every other configuration that its rule gives on the op's scenarios (in
    the first of its dtypes of each width).

    A launch that does not compile is a row with its "error", an example that the
    variant declines on an architecture one with why it is "declined".
    """
    job = variant.id, dtype
    return _read({job: list(_launches(variant, dtype))})[job]


def _read(launched: Mapping[Job, Sequence[Captured]]) -> dict[Job, list[dict]]:
    """The rows by job; all cubins are disassembled at once."""
    facts_of_all = iter(
        compiler.read(
            [launch for found in launched.values() for _, launch in found if launch]
        )
    )
    return {
        job: [
            row | asdict(next(facts_of_all)) if launch else row for row, launch in found
        ]
        for job, found in launched.items()
    }


def _launches(variant: Variant, dtype: str) -> Iterator[Captured]:
    architectures = architectures_for(dtype)
    seen: dict[int, set] = {architecture: set() for architecture in architectures}
    scenario, batch = variant.example
    for architecture in architectures:
        yield from _launched(
            variant,
            dtype,
            scenario,
            batch,
            architecture,
            seen[architecture],
            example=True,
        )
    if dtype != next(name for name in variant.dtypes if _width(name) == _width(dtype)):
        return
    for scenario in variant.op.scenarios:
        for batch in BATCHES:
            yield from _launched(
                variant,
                dtype,
                scenario,
                batch,
                DEFAULTS_FOR,
                seen[DEFAULTS_FOR],
                example=False,
            )


def architectures_for(dtype: str) -> tuple[int, ...]:
    """Those that are pinned and whose tensor cores have the dtype."""
    return tuple(number for number in PINNED if dtype != FP8 or KNOWN[number].fp8)


def _width(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


def never_written(shapes: Tensors) -> Tensors:
    """CPU tensors like these ones; nothing is written to them, so a large problem costs
    no memory.
    """
    return tuple(
        torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        for tensor in shapes
    )


def _launched(
    variant: Variant,
    dtype: str,
    scenario: str,
    batch: int,
    architecture: int,
    seen: set,
    example: bool,
) -> Iterator[Captured]:
    shapes = variant.op.make_inputs(scenario, batch, dtype, "meta")
    row = {
        "variant": variant.id,
        "dtype": dtype,
        "scenario": scenario,
        "batch": batch,
        "example": example,
        "architecture": architecture,
    }
    with compiling_for(architecture):
        why_declined = variant.why_unsupported(*shapes)
    if why_declined:
        if example:
            yield row | {"declined": why_declined}, None
        return
    try:
        yield from (
            (row, launch)
            for launch in compiler.launches_of(
                variant, never_written(shapes), architecture, seen
            )
        )
    except Exception as error:  # whatever the compiler raised
        yield row | {
            "error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        }, None


@dataclass(frozen=True)
class Grid:
    """One launch: its kernel, the configuration as codegen.Compiled words it, and the
    blocks in x, y and z.
    """

    kernel: str
    config: str
    blocks: tuple[int, int, int]


def grids_of(
    variant: Variant, inputs: Tensors, architecture: int = WITHOUT_GPU
) -> list[Grid]:
    """Every launch of the variant on these inputs (CPU tensors) for sm_`architecture`;
    no kernel is compiled or run.
    """
    grids: list[Grid] = []
    note = {"triton": _noted_triton, "numba_cuda": _noted_numba}[variant.backend]
    with compiling_for(architecture), note(grids):
        variant(*inputs)
    return grids


def waves_of(
    variant: Variant,
    scenario: str,
    dtype: str,
    batch: int,
    compiled: Sequence[Mapping],
    gpu: Mapping,
) -> Waves | None:
    """How the variant's launch fills a GPU at `batch`; None where it is not one launch
    with so many blocks a sample.

    Args:
        compiled: rows of bench.measure.compiled.static_facts, in which its kernel must stand in
        its configuration. gpu: "multiprocessors" and "compute_capability" ("9.0").
    """
    architecture = int(gpu["compute_capability"].replace(".", ""))
    if architecture not in KNOWN:
        return None
    problems = (
        never_written(variant.op.make_inputs(scenario, size, dtype, "meta"))
        for size in (batch, 2 * batch)
    )
    launches = [grids_of(variant, inputs, architecture) for inputs in problems]
    if any(len(launched) != 1 for launched in launches):
        return None
    (one,), (twice,) = launches
    blocks, in_twice = math.prod(one.blocks), math.prod(twice.blocks)
    if (
        (one.kernel, one.config) != (twice.kernel, twice.config)
        or in_twice != 2 * blocks
        or blocks % batch
    ):
        return None
    for row in compiled:
        if (
            row["variant"],
            row["dtype"],
            row["architecture"],
            row.get("kernel"),
            row.get("config"),
        ) == (variant.id, dtype, architecture, one.kernel, one.config):
            held = occupancy(
                architecture, row["threads"], row["registers"], row["shared_bytes"]
            )
            return Waves(blocks // batch, gpu["multiprocessors"], held.blocks)
    return None


@contextlib.contextmanager
def _noted_triton(grids: list[Grid]) -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    def note(self, *args, grid, warmup, **kwargs):
        given = (
            grid(dict(zip(self.arg_names, args)) | kwargs) if callable(grid) else grid
        )
        grids.append(
            Grid(self.__name__, triton_config(self, args, kwargs), _three(given))
        )

    run, JITFunction.run = JITFunction.run, note
    try:
        yield
    finally:
        JITFunction.run = run


@contextlib.contextmanager
def _noted_numba(grids: list[Grid]) -> Iterator[None]:
    from numba.cuda import dispatcher

    def note(self, configuration):
        grids.append(
            Grid(
                self.py_func.__name__,
                numba_config(self.py_func),
                _three(configuration[0]),
            )
        )
        return lambda *args: None

    getitem, dispatcher.CUDADispatcher.__getitem__ = (
        dispatcher.CUDADispatcher.__getitem__,
        note,
    )
    try:
        yield
    finally:
        dispatcher.CUDADispatcher.__getitem__ = getitem


def _three(grid) -> tuple[int, int, int]:
    return (*(grid if isinstance(grid, tuple) else (grid,)), 1, 1)[:3]
