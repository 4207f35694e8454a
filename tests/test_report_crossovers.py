"""Which variant at which batch size, as it is said: ranges, where they meet, and the
answer in a sentence.
"""

from batchline.bench.report.document import tables
from batchline.bench.report.findings import Findings
from batchline.bench.report.sections import choices
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record
from tests.documents import section
from tests.runs import run_of
from tests.test_crossovers import line as crossover_line


def line(variant, *times, **facts):
    return crossover_line(
        variant,
        *times,
        backend="torch" if variant.startswith("torch") else "triton",
        **facts,
    )


def run(*records):
    return run_of({"baselines": {"bmm": "torch_bmm"}}, {}, records)


def _table(found):
    (table,) = tables(section(choices.choices, found).parts)
    return table


def _answer(found):
    return choices.best_variants(Findings(found))


def test_the_ranges_and_where_they_meet():
    found = run(*line("torch_bmm", 10e-6, 1e-6), *line("ours", 30e-6, 0.5e-6))
    ((op, scenario, use, meet),) = _table(found).rows
    assert (op, scenario, use) == (
        "bmm",
        "tiny_16 · float32",
        "torch_bmm (B=1 to 33), ours (B=64 to 1024)",
    )
    assert meet.startswith("40 (39.") and meet.endswith(")")
    assert _answer(found) == (
        "On 1 of 1 problems something beats PyTorch's fastest at some batch: bmm/ours on 1."
    )


def test_a_faster_way_of_pytorchs_with_a_bound_of_its_own_is_named():
    found = run(
        *line("torch_bmm", 30e-6, 1e-6),
        *line("ours", 10e-6, 1e-6),
        *line("torch_split", 5e-6, 0.5e-6, own_tolerance=True, tolerance_multiple=2.0),
    )
    assert _table(found).rows[0][2] == (
        "ours (B=1 to 1024; faster there within bounds of their own: torch_split)"
    )
    assert (
        _answer(found)
        == "On none of 1 problems is a variant clearly faster than PyTorch's fastest."
    )


def test_undecided_batches_are_named():
    batches = (8, 40, 256)
    found = run(
        *line("torch_bmm", 10e-6, 1e-6, batches), *line("ours", 30e-6, 0.5e-6, batches)
    )
    assert "undecided at B=40" in _table(found).rows[0][-1]


def test_a_change_that_no_two_times_show_is_between_two_batches():
    found = run(
        *line("torch_bmm", 10e-6, 1e-6, (1, 8)), *line("ours", 5e-6, 1e-6, (64,))
    )
    assert _table(found).rows[0][-1] == "between 8 and 64"


def test_nothing_better_is_an_answer_and_nothing_timed_too():
    assert _answer(run(*line("torch_bmm", 1e-5, 1e-6))) == (
        "On none of 1 problems is a variant clearly faster than PyTorch's fastest."
    )
    assert (
        _answer(run()) == "Nothing was timed."
        and section(choices.choices, run()) is None
    )


def test_the_answer_names_four_and_counts_the_rest():
    records = [
        Record(
            "bmm",
            name,
            f"s{number}",
            "float32",
            1,
            MEASURED,
            samples_s=(seconds,) * 9,
            facts={"backend": name.partition("_")[0]},
        )
        for number in range(6)
        for name, seconds in (("torch_bmm", 2e-5), (f"v{number}", 1e-5))
    ]
    assert _answer(run(*records)).endswith("bmm/v3 on 1 and 2 more variants.")
