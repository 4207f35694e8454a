"""What may be built upon: no run that was stopped, and none of a machine that was busy
in a good part of it.
"""

import pytest

from batchline.bench.commands import dispatch as command
from batchline.bench.errors import UsageError
from batchline.bench.measure.machine import environment
from batchline.bench.statuses import INVALID, MEASURED
from batchline.bench.store import history
from batchline.bench.store.history import why_unusable
from batchline.bench.store.records import Record
from tests.runs import run_of

BUSY = "the machine was busy: other processes took 43% of the cores, three times"


def run(measured=9, busy=0, impossible=0, partial=False):
    records = [
        Record(
            "bmm",
            "torch_bmm",
            "tiny_16",
            "float32",
            batch,
            MEASURED,
            samples_s=(1e-5,) * 6,
            facts={"clock": "host"},
        )
        for batch in range(measured)
    ]
    records += [
        Record("bmm", "torch_bmm", "tiny_16", "float32", 1000 + batch, INVALID, reason)
        for batch, reason in enumerate(
            [BUSY] * busy + ["by host, it is impossible"] * impossible
        )
    ]
    about = {
        "partial": partial,
        "started": "2026-01-02T03:04:05",
        "profile": "smoke",
        "baselines": {},
    }
    return run_of(about, environment.machine("cpu"), tuple(records))


@pytest.mark.parametrize(
    "one, why",
    [
        (run(), None),
        (run(measured=9, busy=1), None),
        (run(impossible=9), None),
        (
            run(measured=8, busy=1),
            "the machine was busy or throttled during 1 of 9 cases",
        ),
        (run(partial=True), "it was stopped before its end"),
    ],
)
def test_what_may_be_built_upon(one, why):
    assert why_unusable(one) == why


@pytest.mark.parametrize(
    "one, kept", [(run(), True), (run(busy=9), False), (run(partial=True), False)]
)
def test_a_history_takes_what_may_be_built_upon(tmp_path, one, kept):
    assert (
        bool(history.append(one, tmp_path)) is kept
        and bool(list(tmp_path.iterdir())) is kept
    )


def test_tables_of_calls_too(tmp_path, monkeypatch):
    monkeypatch.setattr(command.run_json, "load", lambda folder: run(busy=9))
    with pytest.raises(
        UsageError,
        match="is no evidence: the machine was busy or throttled during 9 of 18 cases",
    ):
        command._evidence(tmp_path, "cpu")
