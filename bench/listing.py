"""`bench list`: the plan of a profile on a device, as lines or as JSON."""
from __future__ import annotations

import json

from bench.cases import plan


def show(profile: str, device: str, as_json: bool) -> str:
    """Every case: its id, the devices it can run on at all, and why it would not be timed here, if so.

    Raises:
        ValueError: for an unknown profile.
    """
    cases = plan(profile, device).cases
    if as_json:
        return json.dumps([
            {"id": case.id, "op": case.op.name, "variant": case.variant.name, "backend": case.variant.backend,
             "scenario": case.scenario, "dtype": case.dtype, "batch": case.batch, "runs_on": case.runs_on.split(", "),
             "here": case.refusal is None, "why_not": ": ".join(case.refusal) if case.refusal else None}
            for case in cases], indent=1)
    width = max(len(case.id) for case in cases)
    return "\n".join(f"{case.id:<{width}}  runs on {case.runs_on:<9}  "
                     f"{': '.join(case.refusal) if case.refusal else 'timed here'}" for case in cases)
