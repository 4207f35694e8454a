"""A run's parts by the keys of format 1, which many tests name them by."""

from __future__ import annotations

from batchline.bench.store.formats import to_json
from batchline.bench.store.records import Row, Run

# What a row had only where there was something to say.
_SPARSE = ("error", "declined", "why_not", "kernel", "config")


def about_of(run: Run) -> dict:
    """The keys of format 1; of those that its older runs lacked, only what is there."""
    about = {
        "profile": run.plan.profile,
        "selection": run.plan.selection,
        "started": run.started,
        "partial": run.partial,
        "ceilings": _plain(run.ceilings),
        "why_no_ceilings": run.why_no_ceilings,
        "signatures": {name: op.signature for name, op in run.ops.items()},
        "baselines": run.baselines,
        "scenarios": {
            name: {scenario: one.title for scenario, one in op.scenarios.items()}
            for name, op in run.ops.items()
        },
        "sizes": {
            name: {
                scenario: one.sizes
                for scenario, one in op.scenarios.items()
                if one.sizes
            }
            for name, op in run.ops.items()
        },
        "variants": _plain(run.variants),
        "tuning": {
            name: _plain(op.tuning) for name, op in run.ops.items() if op.tuning
        },
        "left_out": _plain(run.plan.left_out),
        "broken_files": _plain(run.broken_files),
        "along": list(run.along),
        "audit": _plain(run.audit),
        "invariance": _plain(run.invariance),
        "noise": _plain(run.noise),
        "sweep": run.sweep,
        "room_bytes": run.capacity.room_bytes,
        "capacity": _plain(run.capacity.trials),
        "compiled": _plain(run.compiled.kernels),
        "not_compiled": run.compiled.incomplete,
        "waves": _plain(run.waves),
    }
    optional = {
        "seconds": run.seconds,
        "limits": _plain(run.plan.limits),
        "effort": _plain(run.plan.effort),
        "forecast": _plain(run.forecast),
    }
    return about | {
        name: value for name, value in optional.items() if value is not None
    }


def _plain(value):
    if isinstance(value, Row):
        return {
            name: _plain(entry)
            for name, entry in value.items()
            if entry is not None or name not in _SPARSE
        }
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return to_json(value)
