"""The compiled facts of the GPU variants: as pinned, where the sources are the same, or else compiled now.

Compiling happens in processes of its own, where replacing the drivers harms nothing else.
"""
from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import kernels
from bench.measure import codegen, environment, sass
from kernels.device import FP8_FROM
from kernels.op import FP8, Variant

ARCHITECTURES = (80, 90, 100)
DEFAULTS_FOR = 90  # the architecture for which every configuration that a rule gives is compiled
BATCHES = (1, 256)  # of each scenario, in search of configurations
_LONGEST_S = 900  # a hundred kernels at a few seconds each; a compiler that hangs must not hold the report up
_MOST_PROCESSES = 8
_REPOSITORY = Path(__file__).resolve().parents[2]
_FOLDER = _REPOSITORY / "reports" / "baselines"
_TOOLS = ("triton", "numba", "numba-cuda", "nvidia-nvvm", "nvidia-nvjitlink")

Job = tuple[str, str]  # a variant's id, a dtype


@dataclass(frozen=True)
class Facts:
    """Rows of compiled kernels, how many of the jobs were looked up and how many compiled, and why some are missing."""

    rows: list[dict]
    pinned: int
    compiled: int
    incomplete: str | None


def toolchain() -> dict[str, str]:
    """The versions that compiled code depends on (Triton brings its own assembler)."""
    return environment.versions(_TOOLS)


def pin_file() -> Path:
    """Where this toolchain's facts are pinned."""
    versions = toolchain()
    return _FOLDER / f"codegen-triton-{versions['triton']}-numba-cuda-{versions['numba-cuda']}.json"


def jobs(variant_ids: Sequence[str] | None = None, dtypes: Sequence[str] | None = None) -> list[Job]:
    """Every (variant, dtype) that can be compiled here, of those named, or of all."""
    every = [variant for op in kernels.ops.values() for variant in op.variants.values()]
    return [(variant.id, dtype) for variant in every if variant_ids is None or variant.id in variant_ids
            if codegen.why_cannot_compile(variant.backend) is None
            for dtype in variant.dtypes or () if dtypes is None or dtype in dtypes]


def facts(wanted: Sequence[Job]) -> Facts:
    """The rows of the wanted jobs, in their order."""
    pins = pinned()
    known = {job: pins[job]["kernels"] for job in wanted if is_current(job, pins)}
    missing = [job for job in wanted if job not in known]
    compiled, incomplete = compile_in_own_processes(missing) if missing else ({}, None)
    rows = [row for job in wanted for row in known.get(job, compiled.get(job, ()))]
    return Facts(rows, len(known), len(compiled), incomplete)


def is_current(job: Job, pins: Mapping[Job, dict]) -> bool:
    """Whether the pins of a job came from the sources that it has now."""
    return job in pins and pins[job]["sources"] == fingerprint(variant_of(job[0]))


def pin(entries: Mapping[Job, dict]) -> Path:
    """Write the toolchain's pin file: every job's "kernels", and the "sources" that they came from."""
    path = pin_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f' {json.dumps("/".join(job))}: {_entry(entry)}' for job, entry in sorted(entries.items()))
    path.write_text(f'{{"toolchain": {json.dumps(toolchain())},\n"entries": {{\n{lines}\n}}}}\n', encoding="utf-8")
    return path


def _entry(entry: Mapping) -> str:
    """A kernel a line, so that a change of one is a line's change."""
    rows = ",\n  ".join(json.dumps(row) for row in entry["kernels"])
    return f'{{"sources": {json.dumps(entry["sources"])}, "kernels": [\n  {rows}]}}'


def pinned() -> dict[Job, dict]:
    """What is pinned for this toolchain, by job: its "sources" and its "kernels"; {} where nothing is."""
    try:
        document = json.loads(pin_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if document["toolchain"] != toolchain():
        return {}
    return {tuple(name.rsplit("/", 1)): entry for name, entry in document["entries"].items()}


def variant_of(variant_id: str) -> Variant:
    op_name, _, name = variant_id.partition("/")
    return kernels.ops[op_name].variants[name]


def fingerprint(variant: Variant) -> str:
    """A hash of the variant's source, every file of `kernels` that it imports, directly or not, and what reads it."""
    module = sys.modules[variant.function.__module__]
    found = hashlib.sha256()
    for path in sorted({*_sources(Path(module.__file__)), Path(codegen.__file__), Path(sass.__file__), Path(__file__)}):
        found.update(path.relative_to(_REPOSITORY).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _sources(start: Path) -> set[Path]:
    found, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imported(path))
    return found


@functools.cache
def _imported(path: Path) -> list[Path]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    bases = [_REPOSITORY.joinpath(*name.split(".")) for name in names if name.partition(".")[0] == "kernels"]
    candidates = [file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py")]
    return [file for file in candidates if file.is_file()]


def compile_in_own_processes(wanted: Sequence[Job]) -> tuple[dict[Job, list[dict]], str | None]:
    """The rows by job, and a line that says why some are missing, or None. As many processes as there are cores."""
    count = max(1, min(_MOST_PROCESSES, os.cpu_count() or 1, len(wanted)))
    shares = [wanted[start::count] for start in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        started = [_start(share, Path(folder, str(number))) for number, share in enumerate(shares)]
        problems = [problem for problem in map(_ended, started) if problem]
        rows: dict[Job, list[dict]] = {}
        for number in range(count):
            for line in Path(folder, str(number)).read_text(encoding="utf-8").splitlines():
                if line.startswith("{"):
                    row = json.loads(line)
                    rows.setdefault((row["variant"], row["dtype"]), []).append(row)
    return rows, "; ".join(problems) or None


def _start(share: Sequence[Job], output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "bench.measure.static_facts", *(part for job in share for part in job)]
    with output.open("w") as stdout:
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=_REPOSITORY)


def _ended(process: subprocess.Popen) -> str | None:
    try:
        _, errors = process.communicate(timeout=_LONGEST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"a compiling process was stopped after {_LONGEST_S} s"
    last_words = errors.strip().splitlines()[-1:] or [f"exit {process.returncode}"]
    return f"a compiling process failed: {last_words[0]}" if process.returncode else None


def rows_of(variant: Variant, dtype: str) -> Iterator[dict]:
    """A variant's kernels in one dtype: on its example for each architecture, and for one of those every other
    configuration that its rule gives on the op's scenarios (in the first of its dtypes of each width).

    A launch that does not compile is a row with its "error".
    """
    architectures = architectures_for(dtype)
    seen: dict[int, set] = {architecture: set() for architecture in architectures}
    scenario, batch = variant.example
    for architecture in architectures:
        yield from _rows(variant, dtype, scenario, batch, architecture, seen[architecture], example=True)
    if dtype != next(name for name in variant.dtypes if _width(name) == _width(dtype)):
        return
    for scenario in variant.op.scenarios:
        for batch in BATCHES:
            yield from _rows(variant, dtype, scenario, batch, DEFAULTS_FOR, seen[DEFAULTS_FOR], example=False)


def architectures_for(dtype: str) -> tuple[int, ...]:
    """Those whose tensor cores have the dtype."""
    return tuple(number for number in ARCHITECTURES if dtype != FP8 or divmod(number, 10) >= FP8_FROM)


def _width(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


def _rows(variant: Variant, dtype: str, scenario: str, batch: int, architecture: int, seen: set,
          example: bool) -> Iterator[dict]:
    shapes = variant.op.make_inputs(scenario, batch, dtype, "meta")
    if variant.why_unsupported(*shapes):
        return
    row = {"variant": variant.id, "dtype": dtype, "scenario": scenario, "batch": batch, "example": example,
           "architecture": architecture}
    # Never written, so a large problem costs no memory here.
    inputs = tuple(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype) for tensor in shapes)
    try:
        yield from (row | asdict(kernel) for kernel in codegen.compile_variant(variant, inputs, architecture, seen))
    except Exception as error:  # whatever the compiler raised
        yield row | {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def _main(*parts: str) -> None:
    for variant_id, dtype in zip(parts[::2], parts[1::2]):
        for row in rows_of(variant_of(variant_id), dtype):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
