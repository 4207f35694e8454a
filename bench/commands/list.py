"""`batchline list`: the plan of a profile on a device, as lines or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode

if TYPE_CHECKING:
    from batchline.bench.cases import Plan

HELP = "print every case id and what it can run on"
SAMPLE = """
bmm/torch_bmm/square_128/float32/B1        runs on cpu, cuda  timed here
bmm/numba_cpu_tiny/square_128/float32/B1   runs on cpu        unsupported: M, N or K is over 32
bmm/triton_tiled/square_128/float32/B1     runs on cuda       not timed here: needs CUDA
"""
EXITS = {
    ExitCode.CLEAN: "every case is listed",
    ExitCode.FAULT: "a file is broken; the cases of the others are listed",
    ExitCode.USAGE: "unknown profile or device, or no case matches",
}
READS_OPS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_ops(parser)
    _arguments.add_plan(parser)
    _arguments.add_selection(parser)
    parser.add_argument("--json", action="store_true", help="the same for programs")


def run(options: argparse.Namespace) -> int:
    from batchline.bench.cases import broken_lines, plan
    from batchline.bench.measure.machine.environment import resolve_device

    the_plan = plan(options.profile, resolve_device(options.device))
    broken = broken_lines(the_plan)
    chosen = _chosen(the_plan, options.k)
    print(render(chosen, options.json))
    here = sum(not case.refusal for case in chosen.cases)
    count = f"{len(chosen.cases)} cases, {here} of them timed here"
    print(*broken, count, sep="\n", file=sys.stderr)
    return ExitCode.FAULT if broken else ExitCode.CLEAN


def _chosen(the_plan: Plan, expression: str) -> Plan:
    """The plan's cases that match the expression."""
    if not expression:
        return the_plan
    from batchline.bench.selection import selected

    ids = set(
        selected(
            [case.id for case in the_plan.cases],
            expression,
            f"of profile {the_plan.profile.name}",
        )
    )
    cases = tuple(case for case in the_plan.cases if case.id in ids)
    return dataclasses.replace(the_plan, cases=cases)


def render(the_plan: Plan, as_json: bool) -> str:
    """Every case: its id, the devices it can run on at all, and why it would not be
    timed here, if so.
    """
    cases = the_plan.cases
    if as_json:
        return json.dumps(
            [
                {
                    "id": case.id,
                    "op": case.op,
                    "variant": case.variant.name,
                    "backend": case.variant.backend,
                    "scenario": case.scenario,
                    "dtype": case.dtype,
                    "batch": case.batch,
                    "runs_on": case.variant.runs_on.split(", "),
                    "here": case.refusal is None,
                    "why_not": ": ".join(case.refusal) if case.refusal else None,
                }
                for case in cases
            ],
            indent=1,
        )
    width = max((len(case.id) for case in cases), default=0)
    return "\n".join(
        f"{case.id:<{width}}  runs on {case.variant.runs_on:<9}  "
        f"{': '.join(case.refusal) if case.refusal else 'timed here'}"
        for case in cases
    )
