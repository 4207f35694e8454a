"""Batch invariance: kernels that sum by the batch size are found out, what is kept is
priced, all of it is shown.
"""

from dataclasses import replace

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking import steadiness
from batchline.bench.measure.worker.isolation import WorkerLost
from batchline.bench.report.sections import checks
from batchline.bench.running import after_cases
from batchline.bench.statuses import CRASHED
from batchline.bench.store import run_json
from batchline.bench.store.formats import OURS
from batchline.bench.verdicts.choosing import invariance_by_variant, invariance_prices
from batchline.kernels.op import Variant
from tests.documents import on_terminal, section
from tests.pages import a_run, timed, with_records
from tests.pages import invariance as row
from tests.test_records import document

BMM, REDUCE, STATS = (
    kernels.ops[name] for name in ("bmm", "grad_reduce", "grad_stats")
)
BATCHES = (1, 3, 8)
_calls = []


def by_batch(a, b):
    """Sums in an order that the batch decides."""
    half = a.shape[2] // 2 if len(a) > 4 else 1
    return torch.bmm(a[:, :, :half], b[:, :half]) + torch.bmm(
        a[:, :, half:], b[:, half:]
    )


def by_call(a, b):
    _calls.append(None)
    return torch.bmm(a, b) * (1 + 1e-6 * len(_calls))


def one_by_one(a, b):
    return torch.stack([left @ right for left, right in zip(a, b)])


def raises(a, b):
    raise RuntimeError("no\nmore")


def look(function, op=BMM, scenario="square_64"):
    return steadiness.compare_batches(
        Variant(op, function, "torch"), scenario, "float32", BATCHES, "cpu"
    )


def test_a_sample_that_depends_on_its_batch_is_found_out():
    found = look(by_batch)
    assert (
        found["rows"] is False
        and found["differs_at"] == [1, 3]
        and found["repeats"] is True
    )
    assert found["failed"] is None and found["batches"] == [1, 3, 8]


def test_a_sample_that_does_not_is_the_same():
    found = look(one_by_one)
    assert (
        found["rows"] is True and found["differs_at"] == [] and found["repeats"] is True
    )
    assert found["digest"] == look(one_by_one)["digest"] != look(by_batch)["digest"]


def test_calls_that_differ_are_found_out():
    assert look(by_call)["repeats"] is False


def test_a_mean_has_no_row_a_sample():
    found = look(lambda g: g.mean(0), REDUCE, "digits")
    assert found["rows"] is None and found["repeats"] is True


def test_of_statistics_the_norms_alone_are_a_samples():
    def statistics_of(g):
        mean = g.mean(0)
        return mean, g.square().sum(1), g @ mean

    assert look(statistics_of, STATS, "digits")["rows"] is not None


def test_what_is_raised_is_the_row():
    found = look(raises)
    assert found["failed"] == "RuntimeError: no" and found["rows"] is None


ROWS = [
    row("torch_bmm"),
    row("fast", [1, 16]),
    row("fast", scenario="tiny_32"),
    row("broken", failed="no", rows=None),
    row("mean", rows=None, repeats=False),
]


def run():
    found = with_records(
        a_run(invariance=ROWS),
        timed("torch_bmm", 1, 3e-6),
        timed("fast", 1, 2e-6),
        timed("torch_bmm", 16, 2e-6),
        timed("fast", 16, 4e-6),
        timed("fast", 256, 1e-6),
    )
    return replace(found, records=found.records[2:])


def test_a_verdict_a_variant():
    torch_bmm, fast, broken, mean = invariance_by_variant(ROWS)
    assert (torch_bmm.scenarios, torch_bmm.varies, torch_bmm.repeats) == (1, {}, True)
    assert (fast.scenarios, fast.varies) == (2, {"tiny_16": [1, 16]})
    assert (
        broken.failed == ("tiny_16: no",)
        and broken.repeats is None
        and mean.scenarios == 0
        and not mean.repeats
    )


def test_the_price_is_the_fastest_invariant_over_the_fastest():
    (price,) = invariance_prices(ROWS, run().records)
    assert (price.op, price.dtype, price.problems, price.without) == (
        "bmm",
        "float32",
        2,
        1,
    )
    assert price.mean == pytest.approx(
        1.5**0.5, rel=0.01
    ) and price.most == pytest.approx(1.5, rel=0.01)
    assert price.where == "tiny_16 B=1"


def test_the_section():
    text = on_terminal(section(checks.invariance, run()))
    table = {
        line.split()[0]: line for line in text.splitlines() if line.startswith("bmm/")
    }
    assert (
        "the same on 1 of 2 scenarios" in table["bmm/fast"]
        and "tiny_16 at B=1, 16" in table["bmm/fast"]
    )
    assert "no row per sample" in table["bmm/mean"] and "differs" in table["bmm/mean"]
    assert "tiny_16: no" in table["bmm/broken"]
    assert (
        "costs 1.22x (geometric mean over 2 problems), 1.50x at most (tiny_16 B=1). On 1 problems no"
        in " ".join(text.split())
    )
    assert section(checks.invariance, a_run()) is None


class Worker:
    def __init__(self):
        self.asked, self.closed = [], 0

    def call(self, method, *arguments):
        self.asked.append((method, *arguments))
        if arguments[2] == "tiny_32":
            raise WorkerLost(CRASHED, "gone", "", "")
        digest = str(self.closed) if arguments[1] == "numba_cpu_tiny" else "0"
        return row(arguments[1], scenario=arguments[2], digest=digest)

    def close(self):
        self.closed += 1


class Plan:
    class profile:
        details = False


def measured(*names):
    parts = document()
    bench = parts["benchmarks"][0]
    return run_json.parse(
        parts
        | {
            "benchmarks": [
                bench | {"param": name, "extra_info": {"flops": 1e6}} for name in names
            ],
            OURS: parts[OURS]
            | {
                "cases": [
                    {"id": name, "status": "measured", "reason": ""} for name in names
                ]
            },
        }
    )


def test_each_measured_variant_is_looked_at_over_its_batches():
    worker = Worker()
    found = after_cases.check_invariance(
        worker,
        Plan,
        measured(
            "bmm/torch_bmm/tiny_16/float32/B4",
            "bmm/torch_bmm/tiny_16/float32/B1",
            "bmm/torch_bmm/tiny_32/float32/B1",
        ),
    )
    assert worker.asked[0] == (
        "invariance",
        "bmm",
        "torch_bmm",
        "tiny_16",
        "float32",
        (1, 4),
    )
    assert [row["failed"] for row in found] == [None, "gone"] and worker.closed == 0


def test_only_problems_of_milliseconds_are_looked_at():
    run = measured("bmm/torch_bmm/tiny_16/float32/B4")
    large = replace(run.records[0], facts={"flops": 2 * steadiness.MOST_FLOPS})
    assert (
        after_cases.check_invariance(Worker(), Plan, replace(run, records=(large,)))
        == []
    )


def test_full_asks_a_second_process(monkeypatch):
    monkeypatch.setattr(Plan.profile, "details", True)
    worker = Worker()
    found = after_cases.check_invariance(
        worker,
        Plan,
        measured(
            "bmm/torch_bmm/tiny_16/float32/B4", "bmm/numba_cpu_tiny/tiny_16/float32/B4"
        ),
    )
    assert (
        [row["repeats"] for row in found] == [True, False]
        and worker.closed == 1
        and len(worker.asked) == 4
    )
