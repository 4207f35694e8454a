"""Which kernels `batchline emulate` executes, and on which inputs: probes, a case, or a
problem of the user's own size.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchline.bench.errors import Missing, UsageError
from batchline.bench.statuses import parse_case_id
from batchline.bench.texts import did_you_mean

if TYPE_CHECKING:
    from batchline.bench.declared import Catalogue, Declared, DeclaredOp
    from batchline.bench.measure.compiled.compile_pool import Pool
    from batchline.bench.measure.emulator.subjects import Subject

ARCHITECTURES = (80, 90, 100)  # whose instructions the emulator knows
_BATCH = "B"
_PARTS = 5  # of a case id


@dataclass(frozen=True)
class Chosen:
    """The subjects, and a line for each variant whose subjects can't be told."""

    subjects: tuple[Subject, ...]
    broken: tuple[str, ...]


def named(
    found: Catalogue, names: Sequence[str]
) -> tuple[list[Declared], dict[str, Declared]]:
    """The GPU variants that are named, and the variants of the case ids by those.

    Raises:
        UsageError: for a name that fits none.
    """
    kernels = [one for one in found.variants if _is_kernel(one)]
    variants, cases = {}, {}
    for name in names or [""]:
        if is_case_id(name):
            cases[name] = _variant_of_case(found, name)
            continue
        exact = [one for one in kernels if one.id == name]
        fitting = exact or [one for one in kernels if name in one.id]
        if not fitting:
            raise UsageError(_why_no_kernel(found, kernels, name))
        variants |= {one.id: one for one in fitting}
    return list(variants.values()), cases


def _is_kernel(variant: Declared) -> bool:
    return variant.backend in ("triton", "numba_cuda")


def _why_no_kernel(found: Catalogue, kernels: Sequence[Declared], name: str) -> str:
    others = [one for one in found.variants if name in one.id]
    others.sort(key=lambda one: (one.id != name, one.broken is None))
    if others and others[0].broken:
        return f"{others[0].id} can't be read: {': '.join(others[0].broken)}"
    if others:
        return (
            f"{others[0].id} is no kernel that can be emulated: its backend is "
            f"{others[0].backend}, and Triton's and Numba's kernels are"
        )
    if broken := next((one for one in found.broken if name in one.file), None):
        return str(broken)
    near = did_you_mean(name, [one.id for one in kernels])
    return (
        f"no GPU kernel is called {name!r}{near}: `batchline list` shows the ids, and a "
        "file of your own lies in its op's folder"
    )


def _variant_of_case(found: Catalogue, case: str) -> Declared:
    """The GPU variant of a case id.

    Raises:
        UsageError: if there is no such variant, scenario, dtype or batch.
    """
    try:
        parts = parse_case_id(case)
    except ValueError as error:
        raise UsageError(
            f"{case!r} is no case id: its last part is B8 or so"
        ) from error
    name = f"{parts['op']}/{parts['variant']}"
    variant = next((one for one in found.variants if one.id == name), None)
    if variant is None or not _is_kernel(variant):
        kernels = [one for one in found.variants if _is_kernel(one)]
        raise UsageError(_why_no_kernel(found, kernels, name))
    scenarios = found.ops[variant.op].scenarios
    if parts["scenario"] not in scenarios:
        near = did_you_mean(parts["scenario"], scenarios)
        raise UsageError(f"{variant.op} has no scenario {parts['scenario']!r}{near}")
    if parts["dtype"] not in (variant.dtypes or ()):
        raise UsageError(
            f"{name} takes {', '.join(variant.dtypes or ())}: not that dtype"
        )
    if parts["batch"] < 1:
        raise UsageError(f"{case}: the batch must be 1 or more")
    return variant


def why_none(variants: Sequence[Declared]) -> str | None:
    """Why nothing of the variants can be executed here, or None."""
    from batchline.bench.measure.compiled.compiler import why_cannot_compile

    whys = {one.backend: why_cannot_compile(one.backend) for one in variants}
    return None if None in whys.values() else "; ".join(filter(None, whys.values()))


def choose(
    pool: Pool,
    options: argparse.Namespace,
    variants: Sequence[Declared],
    cases: Mapping[str, Declared],
    sizes: str | None = None,
) -> Chosen:
    """The subjects of the variants and cases, as the options limit them; of variants
    those of their probes, or of these sizes.

    Raises:
        UsageError: if no subject is left, or one is too large.
    """
    from batchline.bench.measure.emulated import executed
    from batchline.bench.measure.emulator.subjects import architectures_of

    asked = tuple(dict.fromkeys(options.arch or ()))
    can = [one for one in variants if executed.why_not_executed(one.backend) is None]
    if sizes is None:
        work = executed.subjects_of
        jobs = [(one.id, asked or architectures_of(one)) for one in can]
    else:
        work = executed.shape_of
        jobs = [
            (one.id, sizes, options.dtype, asked or architectures_of(one))
            for one in can
        ]
    listed, broken = pool.each(work, jobs)
    wanted = [
        (one.id, *_problem(case), asked or architectures_of(one))
        for case, one in cases.items()
    ]
    of_cases, more = pool.each(executed.case_of, wanted)
    every = [one for job in jobs for one in listed.get(job, ())]
    every += [one for job in wanted for one in of_cases.get(job, ())]
    for one in every:
        if isinstance(one, Missing):
            raise UsageError(one.reason)
    left = _limited(every, options)
    if not left and not broken and not more:
        raise UsageError(_why_nothing_left(every, options))
    return Chosen(tuple(left), (*broken, *more))


def _problem(case: str) -> tuple[str, str, int]:
    parts = parse_case_id(case)
    return parts["scenario"], parts["dtype"], parts["batch"]


def _limited(every: Sequence[Subject], options: argparse.Namespace) -> list[Subject]:
    """Those of the dtype and of the probe."""
    exact = any(one.probe == options.probe for one in every)
    return [
        one
        for one in every
        if options.dtype in (None, one.dtype)
        and (
            one.probe == options.probe if exact else (options.probe or "") in one.probe
        )
    ]


def _why_nothing_left(every: Sequence[Subject], options: argparse.Namespace) -> str:
    dtypes = dict.fromkeys(one.dtype for one in every)
    if options.dtype is not None and options.dtype not in dtypes:
        return f"no dtype {options.dtype!r} here: {', '.join(dtypes)}"
    probes = dict.fromkeys(one.probe for one in every)
    near = did_you_mean(options.probe or "", probes)
    return f"no probe {options.probe!r}{near} here: {', '.join(probes)}"


def sizes_asked_for(
    found: Catalogue, options: argparse.Namespace, variants: Sequence[Declared]
) -> str | None:
    """The sizes of --shape, as a subject's probe is called by; None without it.

    Raises:
        UsageError: for sizes that are no sizes of each variant's op, or a dtype that a
        variant does not take.
    """
    if options.shape is None:
        return None
    if options.probe is not None:
        raise UsageError("--shape and --probe both say which inputs: give one of them")
    if any(map(is_case_id, options.what)):
        raise UsageError("--shape is for op/variant: a case id has its own shape")
    sizes = _parsed(options.shape)
    for op in dict.fromkeys(one.op for one in variants):
        _require_sizes_of(found.ops[op], sizes)
    for one in variants:
        if options.dtype and one.dtypes and options.dtype not in one.dtypes:
            raise UsageError(
                f"{one.id} takes {', '.join(one.dtypes)}: not {options.dtype!r}"
            )
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def is_case_id(name: str) -> bool:
    """Whether a name that was given is that of a case, and of no kernel."""
    return name.count("/") == _PARTS - 1


def is_case(subject: Subject) -> bool:
    """Whether it is a case, and no probe."""
    return "/B" in subject.probe


def _parsed(text: str) -> dict[str, int]:
    """The size of each name in "B=4,M=100"."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (one.strip() for one in part.partition("="))
        if not name or not size.isascii() or not size.lstrip("-").isdigit():
            raise UsageError(f"--shape {part!r} is no size: B=4 is one")
        if name in sizes:
            raise UsageError(f"--shape gives {name} twice")
        if (value := int(size)) < 0:
            raise UsageError(f"--shape {name}={value}: a size is 0 or more")
        sizes[name] = value
    return sizes


def _require_sizes_of(op: DeclaredOp, sizes: Mapping[str, int]) -> None:
    """Raise UsageError unless the sizes are the batch's and those that the op's
    scenarios have; where each scenario has names of its own, any names will do.
    """
    kinds = {tuple(one.sizes) for one in op.scenarios.values()}
    if len(kinds) != 1:
        if _BATCH not in sizes or len(sizes) < 2:
            raise UsageError(
                f"{op.name} takes B and a size for each parameter, by any names: "
                "--shape B=4,w=100,b=7"
            )
        return
    names = (_BATCH, *kinds.pop())
    if set(sizes) != set(names):
        unknown = [name for name in sizes if name not in names]
        missing = [name for name in names if name not in sizes]
        why = f"not {', '.join(unknown)}" if unknown else f"no {missing[0]} is given"
        raise UsageError(f"the dimensions of {op.name} are {', '.join(names)}: {why}")
