"""Calls that nobody times: a worker that says what each would take, a run's records,
and tables in a test's folder.
"""

import functools
import json
from dataclasses import replace

from batchline import kernels
from batchline.bench import cases
from batchline.bench.commands import _dispatch_tables
from batchline.bench.measure.machine import environment
from batchline.bench.measure.worker.task import Outcome
from batchline.bench.statuses import FAILED, MEASURED
from batchline.bench.store.formats import OURS
from batchline.bench.store.records import Record
from batchline.kernels import device_files
from batchline.kernels.op import Op
from tests.plans import planned
from tests.runs import save_document

BASELINES = {"bmm": "torch_bmm"}


def record(variant, batch, median_s, spread=0.001, **facts):
    samples = [median_s * (1 + spread * (index - 10) / 10) for index in range(21)]
    return Record(
        "bmm",
        variant,
        "tiny_16",
        "float32",
        batch,
        MEASURED,
        samples_s=tuple(samples),
        facts={"clock": "host", **facts},
    )


class FakeIsolation:
    """A worker of which the calls take what `seconds` says: (variant of the table's
    choice, or baseline) → seconds.
    """

    made = 0
    seconds = {}
    failing = ()
    status = FAILED
    asked = []
    planned_by = []  # the profiles that plans were made for

    def __init__(self, device, deadline_s):
        FakeIsolation.made += 1

    def measure(self, task):
        choice = choice_of(task)
        FakeIsolation.asked.append(
            f"{task.op}/{task.scenario}/{task.dtype}/B{task.batch}"
        )
        times = {
            "dispatched": self.seconds.get((task.batch, choice), 1e-5),
            "torch_bmm": 1e-5,
        }
        return {
            label: (
                Outcome(self.status, "no")
                if task.batch in self.failing
                else Outcome(
                    MEASURED,
                    samples_s=(12e-6 if "look-up" in label else times[name],) * 21,
                    facts={"config": {"variant": choice}, "config_source": "measured"},
                )
            )
            for label, name in task.entries
        }

    def close(self):
        pass


def choice_of(task):
    """By the table that the call is told to go by, or else by the stored one; both
    calls go by the same.
    """
    given, looked_up = (
        next(
            task.configs.get(label, {})
            for label, name in task.entries
            if name == "dispatched" and ("look-up" in label) is behind
        )
        for behind in (False, True)
    )
    assert looked_up.get("table") == given.get("table")
    bmm = kernels.ops["bmm"]
    path = device_files.file_for(bmm.folder, "dispatch", "cpu")
    entries = (
        given["table"]["winners"]
        if given
        else device_files.stored(path).get("winners", ())
    )
    sizes = list(
        bmm.describe(*bmm.make_inputs(task.scenario, task.batch, task.dtype, "meta"))[1]
    )
    return next(
        (
            next(iter(entry["faster"]), "torch_bmm")
            for entry in entries
            if entry["sizes"] == sizes
        ),
        "torch_bmm",
    )


def alone(tmp_path, monkeypatch):
    """Tables in a folder of the test's own, and workers that only say what they would
    have measured: for a fixture.
    """
    the_plan = planned("smoke", "cpu")
    ops = {
        name: replace(op, folder=tmp_path / "op") for name, op in the_plan.ops.items()
    }
    planned_by = []

    def plan(profile, device):
        planned_by.append(profile)
        return replace(the_plan, ops=ops)

    monkeypatch.setattr(cases, "plan", plan)
    monkeypatch.setattr(FakeIsolation, "planned_by", planned_by)
    monkeypatch.setattr(Op, "folder", tmp_path / "op")
    monkeypatch.setattr(_dispatch_tables, "Isolation", FakeIsolation)
    for name, value in (
        ("made", 0),
        ("seconds", {}),
        ("failing", ()),
        ("status", FAILED),
        ("asked", []),
    ):
        monkeypatch.setattr(FakeIsolation, name, value)
    device_files.stored.cache_clear()
    yield tmp_path
    device_files.stored.cache_clear()


@functools.cache
def _this_machine():
    """Asks git and others for it, in a fifth of a second."""
    return environment.machine("cpu")


def a_run(folder, *rows, baselines=BASELINES, **machine):
    """A stored run of this machine with these records."""
    document = {
        "machine_info": {OURS: _this_machine() | machine},
        "benchmarks": [
            {
                "param": row.id,
                "extra_info": dict(row.facts),
                "stats": {"data": list(row.samples_s), "iterations": 1},
            }
            for row in rows
        ],
        OURS: {
            "started": "2026-01-02T03:04:05",
            "profile": "smoke",
            "baselines": baselines,
            "cases": [{"id": row.id, "status": MEASURED, "reason": ""} for row in rows],
        },
    }
    folder.mkdir()
    save_document(folder, document)
    return folder


def table():
    return json.loads(
        device_files.file_for(kernels.ops["bmm"].folder, "dispatch", "cpu").read_text()
    )
