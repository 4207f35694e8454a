"""What there is to measure, asked in a process of its own: whoever runs a command
imports no file of an op.

`read` starts the process, which imports torch once, and forks one more for each op, and
for the variants of an op as many as there are cores. A file that raises, exits, hangs,
crashes or changes its process is broken, and the others are read all the same: each of
those that shared its process has then one of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from batchline.bench import reader
from batchline.bench.declared import (
    BrokenFile,
    Catalogue,
    Declared,
    DeclaredAudit,
    DeclaredOp,
    Problem,
    Refusal,
)
from batchline.bench.errors import UsageError
from batchline.bench.statuses import BROKEN, FAILED, UNSUPPORTED
from batchline.bench.texts import clean_line
from batchline.kernels.op import Scenario

LONGEST_S = 60.0  # that a file may take to be imported, or to answer for one problem
_START_S = 120.0  # for the process to import torch
_LATE_S = 30.0  # beyond the longest step, within which the process says that it is still there


def read(
    request: Mapping | None = None,
    deadline_s: float = LONGEST_S,
    tree: Path | None = None,
) -> Catalogue:
    """The ops, their variants, and what is asked of their problems.

    Args:
        request: fields of bench.measure.reading.declarations.Request; by default no problems,
        only what is declared. deadline_s: the longest that a step may take before a
        file counts as hung.
        tree: the folder whose `kernels` are read, where that is not the one beside this
        `bench`.

    Raises:
        UsageError: if the ops can't be read at all.
    """
    asked = {"request": dict(request or {}), "deadline_s": deadline_s}
    ops: dict[str, DeclaredOp] = {}
    broken: list[BrokenFile] = []
    for kind, answer in _answers(asked, deadline_s, tree):
        if kind == "op":
            ops[answer["name"]] = _op(answer)
        elif kind == "variant":
            ops[answer["op"]] = _with_variant(ops[answer["op"]], answer)
        elif kind == "changed":
            broken.append(_changed(ops, clean_line(answer["file"])))
        else:
            broken.append(
                BrokenFile(
                    clean_line(answer["file"]), *map(clean_line, answer["failure"])
                )
            )
    return Catalogue(
        {name: _in_order(_without_circles(ops[name])) for name in sorted(ops)},
        tuple(broken),
    )


def _answers(
    asked: Mapping, deadline_s: float, tree: Path | None
) -> Iterator[tuple[str, dict]]:
    """What the process says, one after another: what it read as ("op" | "variant" |
    "broken" | "changed", data).
    """
    with reader.process(tree) as process:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{json.dumps(asked)}\n".encode())
            process.stdin.close()
        longest_s, told, received = _START_S, set(), {"op": 0, "variant": 0}
        while True:
            ready, _, _ = select.select([process.stdout], [], [], longest_s)
            line = process.stdout.readline() if ready else b""
            if not line:
                raise UsageError(
                    f"the kernels can't be read: {_how_it_ended(process, bool(ready))}"
                )
            kind, data = _message(line)
            longest_s = deadline_s + _LATE_S
            if kind == "done":
                _require_all(received, data)
                return
            if kind == "failed":
                raise UsageError(f"the kernels can't be read: {clean_line(data)}")
            if kind == "waiting" and data not in told:
                told.add(data)
                print(clean_line(data), file=sys.stderr)
            elif kind in ("op", "variant", "broken", "changed"):
                if kind in received:
                    received[kind] += 1
                yield kind, data


def _message(line: bytes) -> tuple[object, object]:
    """What one line says: its kind, and the data."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, list) or len(message) != 2:
        raise UsageError(
            "the kernels can't be read: the process that reads them wrote a line that is no answer"
        )
    return tuple(message)


def _require_all(received: Mapping[str, int], answered: object) -> None:
    """Raise UsageError unless as much has arrived as the process says that it answered
    for: nothing is left out.
    """
    if answered != received:
        raise UsageError(
            f"the kernels can't be read: {received['op']} ops and {received['variant']} variants have "
            f"arrived, and the process that reads them says: {clean_line(json.dumps(answered))}"
        )


def _how_it_ended(process: subprocess.Popen, has_ended: bool) -> str:
    if not has_ended:
        return "the process that reads them does not answer"
    return f"the process that reads them ended with exit code {process.wait()}"


def _op(answer: Mapping) -> DeclaredOp:
    name = answer["name"]
    scenarios = [
        Scenario(
            **scenario
            | {
                "title": clean_line(scenario["title"]),
                "dtypes": tuple(scenario["dtypes"]),
            }
        )
        for scenario in answer["scenarios"]
    ]
    return DeclaredOp(
        name,
        Path(answer["folder"]),
        clean_line(answer["signature"]),
        answer["baseline"],
        {scenario.name: scenario for scenario in scenarios},
        _audit(answer["audit"]),
        *(
            tuple(
                Problem(name, **problem | {"sizes": tuple(problem["sizes"])})
                for problem in answer[which]
            )
            for which in ("problems", "left_out")
        ),
    )


def _audit(data: Mapping | None) -> DeclaredAudit | None:
    if data is None:
        return None
    controls = {
        name: None if dtypes is None else tuple(dtypes)
        for name, dtypes in data["controls"].items()
    }
    return DeclaredAudit(tuple(data["errors"]), controls)


def _with_variant(op: DeclaredOp, answer: Mapping) -> DeclaredOp:
    """The op with one variant more, as far as it has answered."""
    name, failure = answer["name"], answer["failure"]
    variant, refusals, configs = Declared(op.name, name, op.folder), [], []
    try:
        if answer["data"]:
            variant = _declared(op, name, answer["data"][0])
        if not failure:
            refusals = [_refusal(one) for one in answer["data"][1]["refusals"]]
            configs = answer["data"][1]["configs"]
            if len(refusals) != len(op.problems):
                raise ValueError("not every problem has an answer")
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
    ) as error:  # a file can answer what it likes
        failure = FAILED, f"what it declares can't be read: {error}"
    broken = (
        (failure[0], clean_line(f"{answer['file']}: {failure[1]}")) if failure else None
    )
    variant = dataclasses.replace(
        variant, broken=broken, is_baseline=name == op.baseline
    )
    return dataclasses.replace(
        op,
        variants={**op.variants, name: variant},
        refusals={**op.refusals, name: refusals},
        configs={**op.configs, name: configs},
    )


def _changed(ops: dict[str, DeclaredOp], file: str) -> BrokenFile:
    """A file that changed while the ops were read is not measured: what was read need
    not be what is there now.

    Of an op's other files every variant rests on it. Who has done it can't be told: an
    editor, or another file.

    Raises:
        UsageError: if it is a file of none of the ops.
    """
    line = "it changed while the ops were read, by hand or by another file"
    op, name = ops.get(Path(file).parent.name), Path(file).stem
    if op is None:
        raise UsageError(
            f"{file} changed while the ops were read, by hand or by a file of an op: try again"
        )
    resting = (name,) if name in op.variants else op.variants
    variants = {
        other: dataclasses.replace(
            op.variants[other], broken=(FAILED, f"{file}: {line}")
        )
        for other in resting
    }
    ops[op.name] = dataclasses.replace(op, variants={**op.variants, **variants})
    return BrokenFile(file, FAILED, line)


def _declared(op: DeclaredOp, name: str, data: Mapping) -> Declared:
    """The variant's declaration, every part of the kind that it must be of.

    Raises:
        ValueError, TypeError, KeyError: if one is not.
    """
    kinds = {
        "backend": str,
        "needs": str,
        "builds_on": str,
        "gives": int,
        "tunable": bool,
        "own_tolerance": bool,
        "slow_start": bool,
        "detail": bool,
        "idea": str,
    }
    optional = ("needs", "builds_on", "gives")
    for field, kind in kinds.items():
        if not (
            isinstance(data[field], kind) or (field in optional and data[field] is None)
        ):
            raise ValueError(f"{field} is no {kind.__name__}")
    scenario, batch = data["example"]
    dtypes = None if data["dtypes"] is None else tuple(map(str, data["dtypes"]))
    numbers = data["architectures"]
    return Declared(
        op.name,
        name,
        op.folder,
        dtypes=dtypes,
        architectures=None if numbers is None else tuple(map(int, numbers)),
        example=(str(scenario), int(batch)),
        **{field: data[field] for field in kinds} | {"idea": clean_line(data["idea"])},
    )


def _refusal(answer: Sequence | None) -> Refusal | None:
    if answer is None:
        return None
    status, reason = answer
    return (status if status in (UNSUPPORTED, *BROKEN) else FAILED), clean_line(reason)


def _without_circles(op: DeclaredOp) -> DeclaredOp:
    """The op with those variants broken that stand on themselves: no ladder has a place
    for them.
    """
    variants = dict(op.variants)
    for name, variant in op.variants.items():
        below, seen = variant.builds_on, [name]
        while below in op.variants and below not in seen:
            seen.append(below)
            below = op.variants[below].builds_on
        if below == name:
            file = f"{op.folder.parent.name}/{op.name}/{name}.py"
            circle = ", ".join([*seen, name])
            line = f"{file}: builds_on goes in a circle: {circle}"
            variants[name] = dataclasses.replace(
                variant, builds_on=None, broken=(FAILED, line)
            )
    return dataclasses.replace(op, variants=variants)


def _in_order(op: DeclaredOp) -> DeclaredOp:
    """The op with its variants as kernels.op.Op has them: the baseline first, then by
    name.
    """
    names = sorted(op.variants, key=lambda name: (name != op.baseline, name))
    return dataclasses.replace(op, variants={name: op.variants[name] for name in names})
