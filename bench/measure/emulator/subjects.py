"""Everything that is executed in emulation: each GPU variant in each of its dtypes, on
each probe, for each architecture; and the verdict on one of them.

Beside an op's own probes there are two that no checker could afford: operands whose
elements lie more than 2^31 apart, in address space that is reserved and never filled.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from batchline import kernels
from batchline.bench import texts
from batchline.bench.declared import Declared
from batchline.bench.errors import Missing
from batchline.bench.measure.checking import check
from batchline.bench.measure.emulator.capture import Call, Execute, emulate_call
from batchline.bench.measure.emulator.launch import KernelLaunch, Three
from batchline.bench.measure.emulator.memory import reserve
from batchline.bench.statuses import NotMeasured
from batchline.kernels import architectures
from batchline.kernels.op import FP8, Op, Probe, Tensors, Variant
from batchline.kernels.target import compiling_for

ARCHITECTURES = (80, 90)  # for which every variant is executed
BACKENDS = ("triton", "numba_cuda")
ALL_DTYPES = ("float32", "float16", "bfloat16")  # of a variant that declares none
_FAR = 2**31 + 2**10  # elements: past 32 bits, and a multiple of any aligned row
# By op, the probes of which the first that a variant takes is laid far apart.
_LAID_FAR = {
    "bmm": ("aligned_nt", "aligned_tiny", "aligned_shared_b"),
    "bmm_mxfp8": ("aligned",),
    "wgrad_stats": ("ragged", "one_token"),
}
_RAGGED = ("ragged",)
_BATCH = "/B"  # between a scenario and its batch, where a case stands for a probe
BATCH = "B"  # of the sizes of a shape, "B=4,M=100,N=64,K=32", which stands for one too
MOST_FLOPS, MOST_ELEMENTS = 2**30, 2**25  # of a shape, by the op's definition


@dataclass(frozen=True)
class Subject:
    """A variant by its id, a dtype by its name, a probe by its name, and 90 for sm_90;
    `declined` is why the variant does not take that, or None.
    """

    variant: str
    dtype: str
    probe: str
    architecture: int
    declined: str | None = None

    def __str__(self) -> str:
        return f"{self.variant} {self.dtype} {self.probe} sm_{self.architecture}"


@dataclass(frozen=True)
class Launched:
    """One launch of a subject, by its kernel, compile-time constants, blocks and
    threads, and what its execution found and counted.
    """

    kernel: str
    config: str
    grid: Three
    block: Three
    findings: tuple
    counts: object


@dataclass(frozen=True)
class Verdict:
    """What came of a subject: `wrong` is None where its outputs are right and its
    inputs unchanged, else why not in a line; `seconds` are of all of it, `compile_s`
    of the compilers or their caches alone.
    """

    subject: Subject
    wrong: str | None
    launches: tuple[Launched, ...]
    seconds: float
    compile_s: float

    @property
    def findings(self) -> tuple:
        """Those of all launches, in order."""
        return tuple(one for launch in self.launches for one in launch.findings)

    @property
    def is_right(self) -> bool:
        """Whether the outputs are right and no launch found a fault."""
        return self.wrong is None and not any(one.is_fault for one in self.findings)


def architectures_of(variant: Variant | Declared) -> tuple[int, ...]:
    """For which a variant is executed where nothing else is asked for: ARCHITECTURES,
    and what it says that it is for.
    """
    return tuple(dict.fromkeys((*ARCHITECTURES, *(variant.architectures or ()))))


def subjects(
    ops: Iterable[Op], chosen: Iterable[int] | None = None
) -> Iterator[Subject]:
    """Every subject of these ops' GPU variants for the chosen architectures, or those
    of `architectures_of`; those that are declined among them.
    """
    asked = None if chosen is None else tuple(chosen)
    for op in ops:
        for variant in op.variants.values():
            if variant.backend in BACKENDS:
                for architecture in asked or architectures_of(variant):
                    yield from of_variant(variant, architecture)


def of_variant(variant: Variant, architecture: int) -> Iterator[Subject]:
    """Every subject of one variant for one architecture."""
    for dtype in variant.dtypes or ALL_DTYPES:
        for probe in variant.op.probes:
            yield _subject(variant, dtype, probe, architecture)
        for probes in _far_names(variant.op):
            found = [_subject(variant, dtype, one, architecture) for one in probes]
            yield next((one for one in found if one.declined is None), found[0])


def case(
    variant: Variant, scenario: str, dtype: str, batch: int, architecture: int
) -> Subject:
    """A case, for an architecture: its probe is called "square_128/B8"."""
    return _subject(variant, dtype, f"{scenario}{_BATCH}{batch}", architecture)


def shaped(
    variant: Variant, sizes: str, dtype: str, architecture: int
) -> Subject | Missing:
    """A problem of these sizes, for an architecture; or why it is not executed. Its
    inputs lie as those of a scenario of which nothing but the sizes is known.
    """
    try:
        make = _maker(variant.op, sizes)
        shapes = make(getattr(torch, dtype), "meta", 0)
        flops = variant.op.flops(*shapes)
        elements = sum(tensor.numel() for tensor in shapes)
        if flops > MOST_FLOPS or elements > MOST_ELEMENTS:
            return Missing(
                f"{sizes} is {flops:.1e} operations on {elements:.1e} numbers: up to "
                f"{MOST_FLOPS:.1e} on {MOST_ELEMENTS:.1e} are emulated, which takes minutes"
            )
        if not all(tensor.numel() for tensor in shapes):  # what not every op can draw
            make(getattr(torch, dtype), "cpu", 0)
    except Exception as error:  # whatever the op's own code raises
        return Missing(
            f"{variant.op.name} can't make inputs of {sizes}: {texts.error_line(error)}"
        )
    return _subject(variant, dtype, sizes, architecture)


def _subject(variant: Variant, dtype: str, probe: str, architecture: int) -> Subject:
    declined = _why_declined(variant, dtype, probe, architecture)
    return Subject(variant.id, dtype, probe, architecture, declined)


def _why_declined(
    variant: Variant, dtype: str, probe: str, architecture: int
) -> str | None:
    target = architectures.known(architecture)
    if dtype == FP8 and not target.fp8:
        return f"{target} has no tensor cores for fp8"
    shapes = _maker(variant.op, probe)(getattr(torch, dtype), "meta", 0)
    with compiling_for(architecture):
        return variant.why_unsupported(*shapes)


def _maker(op: Op, probe: str) -> Probe:
    """What makes the inputs of a probe, or of a case or sizes that are called as one."""
    if "=" in probe:
        return _sized(op, probe)
    scenario, is_case, batch = probe.partition(_BATCH)
    if not is_case:
        return probes_of(op)[probe]
    chosen = op.scenarios[scenario]
    return lambda dtype, device, seed: op.inputs(
        chosen, int(batch), dtype, device, seed
    )


def _sized(op: Op, sizes: str) -> Probe:
    parts = (size.partition("=") for size in sizes.split(","))
    known = {name: int(size) for name, _, size in parts}
    batch = known.pop(BATCH)
    kind = type(next(iter(op.scenarios.values())))
    plain = kind(name=sizes, title=sizes, sizes=known)
    return lambda dtype, device, seed: op.inputs(plain, batch, dtype, device, seed)


def probes_of(op: Op) -> dict[str, Probe]:
    """The op's own probes, and those that only the emulator is given."""
    far = {
        f"{near}_{name}": _laid_far(op.probes[near], with_strides)
        for near in _near_names(op)
        for name, with_strides in _LAID.items()
    }
    return op.probes | far


def _near_names(op: Op) -> tuple[str, ...]:
    """Of the op's probes, those that may be laid far apart."""
    chosen = _LAID_FAR.get(op.name, _RAGGED)
    return tuple(name for name in chosen if name in op.probes)


def _far_names(op: Op) -> list[list[str]]:
    """For each way to lay a probe, the names of the probes that are laid so."""
    return [[f"{near}_{name}" for near in _near_names(op)] for name in _LAID]


def _laid_far(near: Probe, strides_of: Callable[[torch.Tensor], list[int]]) -> Probe:
    """The probe's values in other memory, with other strides."""

    def make(dtype, device, seed):
        return tuple(
            _laid(tensor, strides_of(tensor)) for tensor in near(dtype, device, seed)
        )

    return make


def _far_outer(tensor: torch.Tensor) -> list[int]:
    """Dense strides, but for the outermost dimension: a single step passes 32 bits."""
    return _strides(tensor, 0, lambda size: _FAR)


def _far_inner(tensor: torch.Tensor) -> list[int]:
    """The steps of the second dimension fit in 32 bits and their sum doesn't; the outer
    one goes on where that ends.
    """
    return _strides(tensor, 1, lambda size: 2**32 // (size - 1) // 64 * 64 + 64)


_LAID = {"far_outer": _far_outer, "far_inner": _far_inner}


def _strides(
    tensor: torch.Tensor, place: int, step_of: Callable[[int], int]
) -> list[int]:
    """The strides of the tensor's dimensions laid one around the other in their order
    in memory, of which the one at `place` from outside has a step by its size, at
    least. Those of one element, and those that are not stepped along, stay.
    """
    outer_first = sorted(
        (dim for dim, size in enumerate(tensor.shape) if size > 1),
        key=lambda dim: -tensor.stride(dim),
    )
    outer_first = [dim for dim in outer_first if tensor.stride(dim)]
    strides, extent = list(tensor.stride()), 1
    for number, dim in reversed(list(enumerate(outer_first))):
        size = tensor.shape[dim]
        strides[dim] = max(extent, step_of(size)) if number == place else extent
        extent = strides[dim] * size
    return strides


def _laid(tensor: torch.Tensor, strides: list[int]) -> torch.Tensor:
    """The tensor's values with these strides, in memory that is taken where it is
    touched.
    """
    laid = _reserved(tensor, strides)
    if laid.device.type != "meta":
        dims = [slice(1 if stride == 0 else None) for stride in strides]
        laid[tuple(dims)].copy_(tensor[tuple(dims)])
    return laid


def _reserved(like: torch.Tensor, strides: list[int]) -> torch.Tensor:
    """A tensor of its shape and dtype with these strides; what is not touched takes no
    memory.
    """
    if like.device.type == "meta":
        return torch.empty_strided(like.shape, strides, dtype=like.dtype, device="meta")
    elements = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, strides))
    held = torch.frombuffer(reserve(elements * like.element_size()), dtype=like.dtype)
    return held.as_strided(like.shape, strides)


def variant_of(subject: Subject) -> Variant:
    """The variant itself."""
    op, _, name = subject.variant.partition("/")
    return kernels.ops[op].variants[name]


def elements_of(subject: Subject) -> int:
    """How many elements its inputs have together."""
    make = probes_of(variant_of(subject).op)[subject.probe]
    shapes = make(getattr(torch, subject.dtype), "meta", 0)
    return sum(tensor.numel() for tensor in shapes)


def inputs_of(subject: Subject) -> Tensors:
    """Its inputs on the CPU, the same ones every time."""
    make = _maker(variant_of(subject).op, subject.probe)
    seed = zlib.crc32(subject.probe.encode())
    return make(getattr(torch, subject.dtype), "cpu", seed)


def verdict_of(subject: Subject, schedule, execute: Execute | None = None) -> Verdict:
    """Execute the subject's launches by the schedule and judge what comes of them, as
    the checker does (bench.measure.checking.check): shapes, dtypes, the op's tolerance
    against fp64, inputs as they were. `execute` replaces the emulator.

    Whatever the variant, a compiler or the emulator raises is the line of a wrong
    verdict.
    """
    start_s = time.perf_counter()
    variant, done = variant_of(subject), []
    execute = execute or _executed_by(schedule)
    compile_s = 0.0
    try:
        inputs = inputs_of(subject)
        call = emulate_call(
            variant,
            inputs,
            subject.architecture,
            _noted(execute, done),
        )
        compile_s = call.compile_s
        _require_right(variant, inputs, call, subject)
        wrong = None
    except NotMeasured as error:
        wrong = texts.clean_line(error.reason)
    except Exception as error:
        wrong = texts.error_line(error) + _line_of(error)
    launches = tuple(_launched(*one) for one in done)
    seconds = time.perf_counter() - start_s
    return Verdict(subject, wrong, launches, seconds, compile_s)


def _line_of(error: Exception) -> str:
    """ " at `…`", with the line of a kernel that Triton can't compile; else nothing."""
    source, node = getattr(error, "src", None), getattr(error, "node", None)
    if not isinstance(source, str) or node is None:
        return ""
    line = texts.clean_line(source.splitlines()[node.lineno - 1])
    return f" at `{line}`"


def _executed_by(schedule) -> Execute:
    from batchline.bench.measure.emulator.execution import execute

    return lambda launch, memory: execute(launch, memory, schedule)


def _noted(execute: Execute, done: list) -> Execute:
    """Keeps each execution, so that those before an error are known."""

    def executed(launch, memory):
        done.append((launch, execution := execute(launch, memory)))
        return execution

    return executed


def _launched(launch: KernelLaunch, execution) -> Launched:
    return Launched(
        launch.kernel,
        launch.config,
        launch.grid,
        launch.block,
        tuple(getattr(execution, "findings", ())),
        getattr(execution, "counts", None),
    )


def _require_right(
    variant: Variant, inputs: Tensors, call: Call, subject: Subject
) -> None:
    where = f"on {subject.probe}"
    again = inputs_of(subject)
    if not check.same_bits(inputs, again):
        raise NotMeasured(check.WRONG, f"{where}: it changed its inputs")
    expected = check.held_to(variant, again, check.expect(variant.op, again))
    check.check_outputs(call.returned, inputs, expected, where)
