"""`batchline list`: the plan of a profile on a device, as lines or as JSON."""

from __future__ import annotations

import json

from batchline.bench.cases import Plan


def show(the_plan: Plan, as_json: bool) -> str:
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
