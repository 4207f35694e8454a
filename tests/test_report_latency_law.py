"""The latency law's table: each column from laws that are known, and every kind of row."""

import math
from dataclasses import asdict

import pytest

from batchline.bench.report.sections import laws
from batchline.bench.stats.roofline import Waves
from batchline.bench.statuses import FAILED, MEASURED
from batchline.bench.store.records import Record
from tests.documents import in_markdown, section
from tests.runs import run_of

CEILINGS = {
    "launch_s": {"host": 2e-6},
    "cache_bytes": 2**20,
    "cache_bytes_per_s": 1e11,
    "copy_bytes_per_s": 1e10,
    "read_bytes_per_s": 1e10,
    "matmul_flops_per_s": {"float32": 1e11},
    "fma_flops_per_s": {},
}
QUICK = (1, 3, 8, 33, 64, 256, 1024, 4096)
KEY = "bmm", "torch_bmm", "tiny_16", "float32"


def _line(batch):
    return 6e-6 + 5e-8 * batch


def _records(seconds=_line, batches=QUICK, status=MEASURED, **other):
    identity = dict(zip(("op", "variant", "scenario", "dtype"), KEY)) | other
    return [
        Record(
            **identity,
            batch=batch,
            status=status,
            samples_s=(seconds(batch),),
            facts={
                "clock": "host",
                "peak_bytes": 1024 * batch,
                "input_bytes": 2048 * batch,
                "flops": 1000 * batch,
                "least_bytes": 100 * batch,
                "output_bytes": 50 * batch,
            },
        )
        for batch in batches
    ]


def _table(records, ceilings=CEILINGS, waves=None):
    rows = [
        dict(zip(("op", "variant", "scenario", "dtype"), key)) | asdict(one)
        for key, one in (waves or {}).items()
    ]
    run = run_of({"ceilings": ceilings, "waves": rows}, {}, tuple(records))
    made = section(laws.latency, run)
    return in_markdown(*made.parts) if made else None


def _rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    headers, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines
    ]
    return [dict(zip(headers, row)) for row in rows]


def test_a_row_says_what_the_law_is_beside_what_bounds_it():
    (row,) = _rows(_table(_records()))
    assert row == {
        "variant": "bmm/torch_bmm",
        "scenario": "tiny_16",
        "launch floor": "6.00 µs (6.00 µs to 6.00 µs)",
        "over an empty launch": "3.00x (2.00 µs by host)",
        "cost per sample": "50.0 ns (50.0 ns to 50.0 ns)",
        "floor per sample": "10.0 ns compute",
        "memory per sample": "3.00 KiB",
        "second slope": "",
        "saturated from": row["saturated from"],
        "misfit": "0.0%",
        "stands out": "",
    }
    assert row["saturated from"].startswith("1,080 (1,080 to 1,08")


def test_the_note_comes_first():
    assert (
        _table(_records()).startswith(laws._LATENCY_NOTE)
        and "90% of the law's best" in laws._LATENCY_NOTE
    )


def test_without_ceilings_there_is_no_empty_launch_and_no_floor():
    (row,) = _rows(_table(_records(), ceilings=None))
    assert row["over an empty launch"] == row["floor per sample"] == "" and row[
        "launch floor"
    ].startswith("6.00 µs")


def test_a_floor_that_is_an_empty_launch_is_none_of_a_sample():
    (row,) = _rows(_table(_records(batches=QUICK[:4])))
    assert row["floor per sample"] == ""


def test_a_launch_that_is_not_told_from_an_empty_one_is_said():
    (row,) = _rows(
        _table(
            _records(
                lambda batch: (2e-6 + 5e-8 * batch)
                * (1.02 if batch in (1, 33, 64) else 0.98)
            )
        )
    )
    assert row["over an empty launch"] == "no clear difference (2.00 µs by host)"


def test_a_second_slope_says_from_where():
    (row,) = _rows(
        _table(_records(lambda batch: _line(batch) + 2e-7 * max(batch - 256, 0)))
    )
    assert row["second slope"] == "from B=256: 250 ns (250 ns to 250 ns)"


@pytest.mark.parametrize(
    "row, factor, words",
    [
        (3, 1.41, "B=33: +41% over the law"),
        (0, 0.4, "B=1: 60% under the law"),
        (7, 1.8, "B=4096: +80% over the law, or dearer from B=1024 on"),
    ],
)
def test_a_batch_that_stands_out_is_said(row, factor, words):
    (shown,) = _rows(
        _table(
            _records(
                lambda batch: _line(batch) * (factor if batch == QUICK[row] else 1)
            )
        )
    )
    assert shown["stands out"] == words


def test_waves_are_said_and_one_more_is_named():
    waves = Waves(ctas_per_sample=4, multiprocessors=64, ctas_per_multiprocessor=2)
    records = _records(lambda batch: 1e-6 + 5e-6 * waves.count(batch))
    (row,) = _rows(_table(records, waves={KEY: waves}))
    assert row["second slope"] == "waves of 32 samples"
    assert (
        row["stands out"] == f"B=33: one more wave, +{11 / (1 + 5 * 33 / 32) - 1:.0%}"
    )


def test_a_saturation_beyond_what_was_measured_says_so():
    (row,) = _rows(_table(_records(batches=QUICK[:6])))
    assert row["saturated from"].endswith(", beyond the measured)")


def test_what_does_not_grow_is_not_saturated():
    (row,) = _rows(_table(_records(lambda batch: 6e-6)))
    assert row["saturated from"] == "not seen to grow"


def test_an_open_saturation_says_from_where():
    assert laws._span(laws.Saturation(1200, 1000, math.inf)) == "1,000 upwards"


def test_scenarios_without_a_law_share_a_row_for_each_reason():
    few = [
        record
        for scenario in ("square_64", "square_128")
        for record in _records(batches=(1, 2), scenario=scenario)
    ]
    bad = _records(lambda batch: 1e-9 * batch**2, scenario="tiny_4")
    text = _table([*few, *bad, *_records()])
    start = text.index("| variant ", text.index("| variant ") + 1)
    laws, others = _rows(text[:start]), _rows(text[start:])
    assert [row["scenario"] for row in laws] == ["tiny_16"]
    assert others[0] == {
        "variant": "bmm/torch_bmm",
        "no law": "2 of at least 4 batch sizes measured",
        "scenarios": "square_64, square_128",
    }
    assert (
        others[1]["no law"].startswith("the best line, bent or not, misses by")
        and len(others) == 2
    )


def test_a_run_without_any_law_has_the_reasons_alone():
    text = _table(_records(batches=(1, 2)))
    assert text.startswith("| variant") and _rows(text)[0]["scenarios"] == "tiny_16"


def test_the_dtype_is_said_where_there_are_several():
    rows = _rows(_table([*_records(), *_records(dtype="float16")]))
    assert [row["scenario"] for row in rows] == [
        "tiny_16 · float32",
        "tiny_16 · float16",
    ]
    assert (
        rows[1]["floor per sample"] == "1.00 ns cache"
    )  # no product was measured in float16


def test_nothing_timed_has_no_table():
    assert _table(_records(status=FAILED)) is None


def test_a_launcher_that_could_not_be_looked_at_is_said():
    run = run_of(
        {
            "ceilings": CEILINGS,
            "waves": [
                dict(zip(("op", "variant", "scenario", "dtype"), KEY))
                | {"why_not": "TypeError: no"}
            ],
        },
        {},
        tuple(_records()),
    )
    assert in_markdown(section(laws.latency, run)).endswith(
        "No waves are known of bmm/torch_bmm: TypeError: no."
    )
