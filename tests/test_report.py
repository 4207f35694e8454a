"""Tables, plots and the README of a run, from records alone."""

import html
import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from batchline.bench import report, units
from batchline.bench.declared import Declared
from batchline.bench.report import RunReport, figures
from batchline.bench.report.sections import checks, laws, machine, ops
from batchline.bench.running.budget import Forecast
from batchline.bench.running.session import Progress
from batchline.bench.statuses import FAILED, MEASURED, NOT_HERE, WRONG
from batchline.bench.store import formats, run_json
from batchline.bench.store.records import Record
from tests.documents import in_markdown, readme, section
from tests.pages import HOSTILE, a_run, hostile, with_records
from tests.runs import run_of, save_document
from tests.test_records import document

FACTS = {
    "peak_bytes": 2048,
    "input_bytes": 4096,
    "output_bytes": 2048,
    "least_bytes": 6144,
    "flops": 32768,
    "clock": "host",
    "clocks": {},
    "backend": "numba_cpu",
}
CEILINGS = document()["batchline"]["ceilings"]


def _record(variant, batch, seconds=None, status=MEASURED, reason=""):
    samples = (seconds,) * 3 if seconds else ()
    facts = FACTS | ({"backend": "torch"} if variant.startswith("torch") else {})
    return Record(
        "bmm",
        variant,
        "tiny_16",
        "float32",
        batch,
        status,
        reason,
        samples,
        1,
        facts if samples else {},
    )


COMPARED = [
    _record("torch_bmm", 1, 2e-6),
    _record("fast", 1, 1e-6),
    _record("broken", 1, status=WRONG, reason="on ragged: no"),
    _record("absent", 1, status=NOT_HERE, reason="needs CUDA"),
    _record("torch_bmm", 64, 3e-6),
    _record("fast", 64, status=FAILED, reason="ValueError: B"),
    _record("broken", 64, status=WRONG, reason="on ragged: no"),
    _record("absent", 64, status=NOT_HERE, reason="needs CUDA"),
]


def test_comparison_ranks_what_was_measured_and_nothing_else():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in in_markdown(*ops.comparison(COMPARED)).splitlines()
    ]
    assert rows[0] == ["batch", "torch_bmm", "fast"]
    assert rows[2] == ["1", "2.00 µs · 2.00 KiB", "**1.00 µs** · 2.00x · 2.00 KiB"]
    assert rows[3] == ["64", "**3.00 µs** · 2.00 KiB", "failed"]


def test_text_of_a_variants_own_is_no_html_and_no_link_in_the_report_and_keeps_its_code():
    text = readme(hostile())
    for trick in (
        "``` <img src=x> `",
        "\\`<img src=x>\\`",
        "[t \\` ](http://evil) \\`",
    ):
        run = with_records(
            a_run(), Record("bmm", "torch_bmm", "tiny_16", "float32", 8, FAILED, trick)
        )
        tricked = readme(run)
        assert "<img" not in tricked and "](http" not in tricked
    assert HOSTILE.split()[0] not in text and "](http" not in text and "&#60;" in text
    assert html.unescape(text).count(HOSTILE.split()[0]) > 2
    plain = readme(a_run())
    assert "`" in plain and "&#" not in plain


def test_speed_ups_are_over_the_fastest_of_pytorchs_at_each_batch():
    other = [_record("torch_other", 1, 1.5e-6), _record("torch_other", 64, 4e-6)]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in in_markdown(*ops.comparison([*COMPARED, *other])).splitlines()
    ]
    assert rows[2] == [
        "1",
        "2.00 µs · 0.75x · 2.00 KiB",
        "**1.00 µs** · 1.50x · 2.00 KiB",
        "1.50 µs · 2.00 KiB",
    ]
    assert rows[3] == [
        "64",
        "**3.00 µs** · 2.00 KiB",
        "failed",
        "4.00 µs · 0.75x · 2.00 KiB",
    ]


def test_comparison_without_a_baseline_gives_no_speed_up():
    assert "x ·" not in in_markdown(*ops.comparison(COMPARED[1:2]))


def test_a_cell_says_which_ceiling_binds_it_and_how_much_of_that_was_reached():
    slow = _record(
        "torch_bmm", 1, 4e-6
    )  # an empty launch takes 1 µs, and the rest of its work less
    assert "· 25% launch" in in_markdown(*ops.comparison([slow], CEILINGS))
    assert "launch" not in in_markdown(*ops.comparison([slow]))


def test_every_clock_stands_in_one_row():
    facts = FACTS | {
        "clocks": {
            "device_cold": {"median_s": 8e-6, "precision": 0.004},
            "graph": {"why_not": "graph: can't be captured: it waits"},
        }
    }
    records_ = [
        Record("bmm", name, "tiny_16", "float32", 1, MEASURED, "", (8e-6,), 1, facts)
        for name in "ab"
    ]
    table = in_markdown(
        *ops.clocks(records_, CEILINGS | {"launch_s": {"device_cold": 2e-6}})
    )
    assert "8.00 µs ±0.4% · 25% launch" in table
    assert table.count("(1)") == 3 and table.endswith(
        "(1) graph: can't be captured: it waits"
    )
    one_clock = Record(
        "bmm",
        "a",
        "tiny_16",
        "float32",
        1,
        MEASURED,
        "",
        (8e-6,),
        1,
        FACTS | {"clocks": {"host": {"median_s": 8e-6, "precision": 0.004}}},
    )
    assert ops.clocks([one_clock], CEILINGS) == []


def _grown(variant, per_sample, batches=(1, 8, 64)):
    return [
        Record(
            "bmm",
            variant,
            "tiny_16",
            "float32",
            batch,
            MEASURED,
            "",
            (1e-6 * batch,),
            1,
            FACTS
            | {"peak_bytes": 4096 + per_sample * batch, "input_bytes": 2048 * batch},
        )
        for batch in batches
    ]


TRIED = {"predicted": 1000, "room_bytes": 2**32}


@pytest.mark.parametrize(
    "tried, words",
    [
        (
            TRIED | {"fits": {"95%": True, "105%": False}},
            "confirmed: 1,000 ±5% fill 4.00 GiB",
        ),
        (
            TRIED | {"fits": {"95%": True, "105%": True}},
            "refuted: 5% above 1,000 still fits in 4.00 GiB",
        ),
        (
            TRIED | {"fits": {"95%": False, "105%": False}},
            "refuted: 5% below 1,000 does not fit in 4.00 GiB",
        ),
        (
            {"why_not": "a call of that size would take about 9 s"},
            "no: a call of that size would take about 9 s",
        ),
    ],
)
def test_the_memory_law_its_prediction_and_its_trial(tried, words):
    key = {"op": "bmm", "variant": "a", "scenario": "tiny_16", "dtype": "float32"}
    run = run_of(
        {"room_bytes": 4096 + 3072 * 500, "capacity": [key | tried]},
        {},
        (*_grown("a", 1024), *_grown("b", 1024, batches=(1, 8))),
    )
    lines = in_markdown(section(laws.memory, run)).splitlines()
    row = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert row == [
        "bmm/a",
        "tiny_16",
        "4.00 KiB",
        "1.00 KiB",
        "2.00 KiB",
        "0.0%",
        "500",
        words,
    ]
    assert not [line for line in lines if "bmm/b" in line]  # two batches make no law


def test_memory_that_is_no_line_predicts_nothing():
    bent = (
        _grown("a", 1024)[:2]
        + _grown("a", 9000)[2:]
        + _grown("a", 1024, batches=(128,))
    )
    run = run_of({"room_bytes": 2**30, "capacity": []}, {}, tuple(bent))
    assert "no law: it does not grow in a line" in in_markdown(
        section(laws.memory, run)
    )


def test_a_run_without_ceilings_says_why():
    run = run_of({"ceilings": None, "why_no_ceilings": "RuntimeError: no"}, {}, ())
    assert "not measured (RuntimeError: no)" in in_markdown(*machine.ceilings(run))


def test_comparison_of_nothing_timed_is_none():
    assert ops.comparison(COMPARED[2:4]) == []


def test_memory_that_could_not_be_read_says_so():
    record = Record(
        "bmm",
        "fast",
        "tiny_16",
        "float32",
        1,
        MEASURED,
        "",
        (1e-6,),
        1,
        FACTS | {"peak_bytes": None},
    )
    assert "memory n/a" in in_markdown(*ops.comparison([record]))


def test_every_case_without_a_time_is_a_row_with_its_reason():
    run = run_of({}, {}, tuple(COMPARED))
    lines = in_markdown(checks.without_a_time(run.records)).splitlines()[2:]
    assert [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines
    ] == [
        ["bmm/broken", "wrong: on ragged: no", "2", "tiny_16/float32; B = 1, 64"],
        ["bmm/absent", "not timed here: needs CUDA", "2", "tiny_16/float32; B = 1, 64"],
        ["bmm/fast", "failed: ValueError: B", "1", "tiny_16/float32; B = 64"],
    ]


@pytest.fixture
def stored(tmp_path):
    save_document(tmp_path, document())
    return tmp_path


def test_the_report_has_its_tables_plots_and_machine(stored):
    assert report.write(RunReport(run_json.load(stored)), stored) == []
    text = (stored / "README.md").read_text()
    for words in (
        "# Batchline: smoke run on Some CPU, 2026-01-02",
        "| torch_bmm ",
        "**2.50 µs** · 4.00 KiB · 40% launch",
        "9.00 µs ±11.0%",
        "3 samples were dropped",
        "other processes took 4% of the cores",
        "100 GFLOP/s",
        "empty launch by host_cold",
        "not timed here: needs CUDA",
        "not yet run",
        "110 regs, 25% occupancy (by registers), 96.0 KiB shared, wgmma x4, loads 24 x 16 B, stores 8 x 16 B",
        "16.0 GiB",
        "![latency, speed-up and memory",
        "`bmm/tiny_16/float32`: B = 4096",
        "Clock: host",
    ):
        assert words in text
    png = (stored / "bmm-tiny_16-float32.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 10_000
    assert "torch_bmm" in "".join(
        ElementTree.parse(stored / "bmm-tiny_16-float32.svg").getroot().itertext()
    )


def test_the_same_run_gives_the_same_report(stored):
    run = run_json.load(stored)
    report.write(RunReport(run), stored)
    first = {path.name: path.read_bytes() for path in stored.iterdir()}
    report.write(RunReport(run), stored)
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == first


def test_without_matplotlib_the_report_says_so(stored, monkeypatch):
    monkeypatch.setattr(figures, "why_no_plots", lambda: "matplotlib is not installed")
    assert report.write(RunReport(run_json.load(stored)), stored) == [
        "no plots: matplotlib is not installed"
    ]
    assert (
        "No plots: matplotlib is not installed." in (stored / "README.md").read_text()
    )


def test_a_partial_run_says_so_everywhere(stored):
    partial = document()
    partial["batchline"]["partial"] = True
    save_document(stored, partial)
    run = run_json.load(stored)
    report.write(RunReport(run), stored)
    assert "**Partial.**" in (stored / "README.md").read_text()
    assert report.terminal(RunReport(run)).splitlines()[-1].startswith("PARTIAL")


def test_what_was_not_compiled_is_said(stored):
    cut_short = document()
    cut_short["batchline"] |= {
        "compiled": [],
        "not_compiled": "the compiling process failed: MemoryError",
    }
    save_document(stored, cut_short)
    report.write(RunReport(run_json.load(stored)), stored)
    assert (
        "not compiled to the end: the compiling process failed: MemoryError."
        in (stored / "README.md").read_text()
    )


@pytest.mark.parametrize(
    "text, value",
    [
        ("1.23 ms", units.duration(1.2345e-3)),
        ("12.3 µs", units.duration(12.345e-6)),
        ("123 s", units.duration(123.4)),
        ("5.00 ns", units.duration(5e-9)),
        ("10.0 ms", units.duration(9.9999e-3)),
        ("0 B", units.size(0)),
        ("1023 B", units.size(1023)),
        ("1.00 KiB", units.size(1024)),
        ("1.50 GiB", units.size(1.5 * 2**30)),
        ("0.05x", units.ratio(0.05)),
        ("100x", units.ratio(99.96)),
    ],
)
def test_units(text, value):
    assert value == text


class FakeCase:
    def __init__(self, name, refusal=None):
        self.id, self.refusal, self.scenario, self.dtype = (
            name,
            refusal,
            "tiny_16",
            "float32",
        )
        self.op, self.variant = "bmm", Declared(
            "bmm", "torch_bmm", Path("kernels", "bmm")
        )
        self.problem = self.op, self.scenario, self.dtype, 1


class FakeSchedule:
    name = "the 5 min 00 s of PROFILE=quick"

    def within_budget(self, left_s):
        return left_s


def _progress(stream, tell_every_s=10):
    """Two cases of a problem that is expected to take 40 s, one of a problem of 20 s,
    and 30 s more after them.
    """
    seconds = iter(range(0, 1000, tell_every_s))
    progress = Progress(stream, now=lambda: next(seconds))
    cases = [
        FakeCase("a"),
        FakeCase("b"),
        FakeCase("c"),
        FakeCase("gpu", (NOT_HERE, "needs CUDA")),
    ]
    cases[2].problem = "bmm", "tiny_4", "float32", 4
    late = FakeCase("late")
    late.problem = "bmm", "tiny_16", "float32", 4096
    forecast = Forecast(
        {cases[0].problem: 40.0, cases[2].problem: 20.0},
        frozenset({late.problem}),
        21.0,
        4.0,
        30.0,
    )
    progress.plan([*cases, late], forecast, FakeSchedule())
    progress.start()
    progress.done(cases[3], NOT_HERE, "needs CUDA", None)
    progress.done(cases[0], WRONG, "on ragged: no", None)
    progress.done(cases[1], FAILED, "ValueError: B", None)
    progress.done(late, NOT_HERE, "beyond it", None)
    progress.end()
    return stream.getvalue()


def test_progress_in_a_log_counts_what_runs_and_tells_faults_at_once():
    assert _progress(io.StringIO()).splitlines() == [
        "5 cases planned, 4 of them run here",
        "3 of those, on 2 problems, fit into the 5 min 00 s of PROFILE=quick; the others are rows without a time "
        "(-k chooses)",
        "expected to take 1 min 55 s: 21 s before the cases, 4 s to compile kernels, 1 min 00 s for the cases, 30 s "
        "after them",
        "a: wrong: on ragged: no",
        "[1/3] 41 s left        a wrong",
        "b: failed: ValueError: B",
        "[2/3] 50 s left        b failed",
    ]


def test_progress_in_a_log_tells_nothing_twice_in_five_seconds():
    assert [
        line
        for line in _progress(io.StringIO(), tell_every_s=1).splitlines()
        if line.startswith("[")
    ] == ["[1/3] 39 s left        a wrong"]


@pytest.mark.parametrize(
    "budget_s, least_s, most_s", [(None, 120, 240), (100, 35, 45)], ids=["none", "100"]
)
def test_the_estimate_begins_from_the_plan_and_ends_with_the_budget(
    budget_s, least_s, most_s
):
    """60 problems of 10 cases, of a second each by the plan; the first takes a minute,
    as where a compiler starts.
    """
    seconds = iter([0.0, *[60.0] * 10])
    stream = io.StringIO()
    progress = Progress(stream, now=lambda: next(seconds))
    cases = [FakeCase(str(number)) for number in range(600)]
    for number, case in enumerate(cases):
        case.problem = "bmm", "tiny_4", "float32", number // 10
    schedule = FakeSchedule()
    if budget_s:
        schedule.within_budget = lambda left_s: min(left_s, budget_s - 60.0)
    planned = {case.problem: 1.0 for case in cases}
    progress.plan(cases, Forecast(planned, frozenset(), 0.0, 0.0, 0.0), schedule)
    progress.start()
    progress.done(cases[0], FAILED, "no", None)
    (line,) = [one for one in stream.getvalue().splitlines() if " left " in one]
    words = line.partition("] ")[2].split()
    left_s = sum(
        float(number) * {"min": 60, "s": 1}[unit]
        for number, unit in zip(words, words[1:])
        if unit in ("min", "s")
    )
    assert least_s <= left_s <= most_s, line


def test_progress_on_a_terminal_rewrites_one_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert "\r\x1b[K[2/3] " in _progress(Terminal())


def _stored_run(folder, started, **about):
    run_document = document()
    run_document[formats.OURS] |= {"started": started, **about}
    folder.mkdir()
    save_document(folder, run_document)
    return folder


def test_the_run_before_is_the_newest_comparable_one_beside_it(tmp_path):
    own = _stored_run(tmp_path / "2026-01-05-own", "2026-01-05T00:00:00+00:00")
    run = run_json.load(own)
    assert report.before(run, own) is None
    _stored_run(tmp_path / "2026-01-01-older", "2026-01-01T00:00:00+00:00")
    _stored_run(tmp_path / "2026-01-02-old", "2026-01-02T00:00:00+00:00")
    _stored_run(
        tmp_path / "2026-01-03-part", "2026-01-03T00:00:00+00:00", selection="tiny"
    )
    _stored_run(
        tmp_path / "2026-01-04-quick", "2026-01-04T00:00:00+00:00", profile="quick"
    )
    _stored_run(tmp_path / "2026-01-06-later", "2026-01-06T00:00:00+00:00")
    (tmp_path / "2026-01-07-damaged").mkdir()
    (tmp_path / "2026-01-07-damaged" / run_json.FILE_NAME).write_text("{")
    assert report.before(run, own).started.startswith("2026-01-02")
    assert "Against the last run: " in report.terminal(
        RunReport(run, previous=report.before(run, own))
    )


def test_it_says_what_fences_took_and_which_gains_were_there_again():
    stored_run = document()
    stored_run[formats.OURS].pop("seconds", None)  # runs of before have none
    facts = stored_run["benchmarks"][0]["extra_info"]
    assert "fences" not in machine.how_measured(run_json.parse(stored_run))
    facts |= {
        "task_s": 2.0,
        "fences_s": 0.1,
        "confirmed": {"published": 2.0, "why_not": "hung"},
    }
    text = machine.how_measured(run_json.parse(stored_run))
    assert (
        "fences took 5.0% of the time for the cases" in text
        and "0 of 1 gains over the baseline" in text
    )
    stored_run[formats.OURS]["seconds"] = 4.0
    text = machine.how_measured(run_json.parse(stored_run))
    assert (
        "fences took 2.5% of the run's 4 s, and 5.0% of the time for the cases" in text
    )
    facts["confirmed"] = {"published": 2.0, "again": 1.9}
    assert "1 of 1 gains over the baseline" in machine.how_measured(
        run_json.parse(stored_run)
    )
