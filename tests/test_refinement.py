"""A second pass measures where the first one saw the answer change: around a crossover,
beside a cliff.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from batchline.bench import records
from batchline.bench.cases import refined
from batchline.bench.journal import _in_order
from batchline.bench.records import MEASURED, Record
from batchline.bench.verdicts.refinement import batches_to_add
from tests.plans import planned

BASELINES = {"bmm": "torch_bmm"}
GROUP = "bmm", "tiny_16", "float32"
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)


def curve(variant, seconds_of, batches=BATCHES):
    return [
        Record(
            "bmm",
            variant,
            "tiny_16",
            "float32",
            batch,
            MEASURED,
            samples_s=tuple(
                seconds_of(batch) * (1 + index * 1e-4) for index in range(-10, 11)
            ),
            facts={"clock": "host", "backend": "torch"},
        )
        for batch in batches
    ]


def test_around_a_crossover():
    found = batches_to_add(
        [
            *curve("torch_bmm", lambda batch: 1e-6 + 1e-7 * batch),
            *curve("fast", lambda batch: 5e-6 + 5e-8 * batch),
        ],
        BASELINES,
    )
    assert found == {GROUP: (72, 80, 143)}  # they meet at 80, between 64 and 256


def test_beside_a_cliff_of_what_is_chosen():
    def cliff(batch):
        return (1e-6 + 1e-7 * batch) * (1.6 if batch == 64 else 1)

    batches = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    assert batches_to_add(curve("torch_bmm", cliff, batches), BASELINES) == {
        GROUP: (63, 65)
    }
    slower = curve("slow", lambda batch: 3 * cliff(batch), batches)
    assert (
        batches_to_add(
            [*curve("torch_bmm", lambda batch: 1e-6 + 1e-7 * batch, batches), *slower],
            BASELINES,
        )
        == {}
    )


@pytest.mark.parametrize(
    "seconds_of", [lambda batch: 1e-6 + 1e-7 * batch, lambda batch: 1e-6]
)
def test_nothing_where_nothing_changes(seconds_of):
    assert batches_to_add(curve("torch_bmm", seconds_of), BASELINES) == {}
    assert batches_to_add([], BASELINES) == {}


def test_neighbours_have_nothing_between_them():
    rows = [
        *curve("torch_bmm", lambda batch: 1e-6 * batch**2, (1, 2)),
        *curve("fast", lambda batch: 2e-6, (1, 2)),
    ]
    assert batches_to_add(rows, BASELINES) == {}


def test_the_plan_of_what_is_added():
    whole = planned("full", "cpu")
    more = refined(whole, {GROUP: (72, 80)})
    assert {case.problem for case in more.cases} == {(*GROUP, 72), (*GROUP, 80)}
    variants = {
        case.variant.name for case in whole.cases if case.problem == (*GROUP, 64)
    }
    assert {case.variant.name for case in more.cases} == variants


def test_the_added_cases_stand_in_their_groups_by_batch():
    cases = [
        {"id": f"bmm/{variant}/{scenario}/float32/B{batch}"}
        for scenario in ("tiny_16", "tiny_4")
        for batch in (1, 8)
        for variant in ("torch_bmm", "fast")
    ]
    added = [
        {"id": f"bmm/{variant}/tiny_16/float32/B3"} for variant in ("torch_bmm", "fast")
    ]
    assert [case["id"] for case in _in_order(cases + added)] == [
        *(case["id"] for case in cases[:2]),
        *(case["id"] for case in added),
        *(case["id"] for case in cases[2:]),
    ]


@pytest.mark.slow
def test_a_run_that_refines_measures_them_too(tmp_path):
    program = f"""
from dataclasses import replace
from pathlib import Path
from batchline.bench import cases
from batchline.bench.running import benchmark
from batchline.bench.running.benchmark import Request
benchmark.Measurer.ceilings = lambda self: (None, "they take seconds")
cases.PROFILES["smoke"] = replace(cases.PROFILES["smoke"], refines=True)
benchmark.batches_to_add = lambda records, baselines: {{("bmm", "tiny_4", "float32"): (2,)}}
folder = Path({str(tmp_path)!r})
print(int(benchmark.benchmark(Request("smoke", "cpu", "torch_bmm and tiny"), folder, folder)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    (path,) = tmp_path.glob(f"*/{records.FILE_NAME}")
    found = records.load(path.parent)
    assert [
        (record.batch, record.status)
        for record in found.records
        if record.scenario == "tiny_4"
    ] == [(batch, MEASURED) for batch in (1, 2, 3, 16)]
    assert len(found.records) == len({record.id for record in found.records})
