"""What a declaration exempts from a check is timed and shown, and wins nothing: in no
table, choice or file.
"""

import importlib
import pkgutil

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.runner import Runner
from batchline.bench.measure.sampling import Effort
from batchline.bench.measure.task import Task
from batchline.bench.records import FAILED, MEASURED, Record, Run
from batchline.bench.report import page_plots
from batchline.bench.report.findings import Findings
from batchline.bench.report.sections import ladder as ladder_report
from batchline.bench.report.sections import ops
from batchline.bench.verdicts import crossovers, dispatch, eligible, ladder
from batchline.kernels.op import Variant
from tests.documents import in_markdown, on_terminal
from tests import wrong_kernels

EFFORT = Effort(precision=0.5, seconds=0.01)
MODULES = [
    importlib.import_module(f"tests.wrong_kernels.{module.name}")
    for module in pkgutil.iter_modules(wrong_kernels.__path__)
]
EXEMPT = {
    "gives": {"gives": 1},
    "probes": {"probes": 0},
    "tolerance": {"tolerance_multiple": 17.0},
}
BASELINES = {"bmm": "torch_bmm"}


def measured(monkeypatch, module, batch):
    """What the runner makes of a wrong kernel beside its op's baseline, by name."""
    op, name = module.OP, module.__name__.rpartition(".")[2]
    variant = Variant(
        op, getattr(module, name), backend="torch", **getattr(module, "DECLARES", {})
    )
    op.variants
    monkeypatch.setitem(op.variants._loaded, name, variant)
    scenario = "tiny_16" if op.name == "bmm" else "layer_norm"
    entries = ((op.baseline, op.baseline), (name, name))
    outcomes = Runner("cpu").measure(
        Task(
            op.name,
            scenario,
            "float32",
            batch,
            entries,
            ("host",),
            EFFORT,
            EFFORT,
            warm_up_s=0.001,
        )
    )
    return outcomes[op.baseline], outcomes[name]


@pytest.mark.parametrize(
    "module",
    [module for module in MODULES if hasattr(module, "UNRANKED_FOR")],
    ids=lambda module: module.__name__,
)
def test_a_wrong_kernel_that_cannot_be_refused_is_not_ranked(monkeypatch, module):
    baseline, outcome = measured(monkeypatch, module, 3)
    assert outcome.status == MEASURED, outcome.reason
    record = Record(
        "op",
        "it",
        "s",
        "float32",
        3,
        MEASURED,
        samples_s=outcome.samples_s,
        facts=outcome.facts,
    )
    assert module.UNRANKED_FOR in eligible.why_unranked(record)
    assert eligible.may_win(
        Record("op", "it", "s", "float32", 3, MEASURED, facts=baseline.facts)
    )


@pytest.mark.parametrize(
    "module",
    [module for module in MODULES if hasattr(module, "KEEPS_BYTES")],
    ids=lambda module: module.__name__,
)
def test_memory_that_stays_counts_and_an_honest_neighbours_does_not(
    monkeypatch, module
):
    baseline, outcome = measured(monkeypatch, module, 7)
    if outcome.facts["kept_bytes"] is None or outcome.facts["peak_bytes"] is None:
        pytest.skip("memory can't be measured here")
    assert outcome.facts["kept_bytes"] == pytest.approx(module.KEEPS_BYTES, rel=0.05)
    assert outcome.facts["peak_bytes"] >= outcome.facts["kept_bytes"]
    assert baseline.facts["kept_bytes"] == 0 and baseline.facts["peak_bytes"] < 2**20


def record(variant, batch, seconds, **facts):
    facts = {
        "backend": variant.partition("_")[0],
        "peak_bytes": None,
        "clock": "host",
    } | facts
    samples_s = tuple(seconds * (1 + number / 1e4) for number in range(20))
    return Record(
        "bmm",
        variant,
        "tiny_16",
        "float32",
        batch,
        MEASURED,
        samples_s=samples_s,
        facts=facts,
    )


def records(facts):
    """A baseline, an honest variant twice as fast, and one ten times as fast that these
    facts exempt.
    """
    return [
        one
        for batch in (1, 8, 64)
        for one in (
            record("torch_bmm", batch, 2e-6, is_baseline=True),
            record("triton_honest", batch, 1e-6),
            record("torch_cheat", batch, 2e-7, **facts),
        )
    ]


@pytest.fixture(params=EXEMPT.values(), ids=EXEMPT)
def exempt(request):
    return records(request.param)


def test_it_is_no_choice_no_crossover_and_no_entry_of_a_dispatch_table(exempt):
    assert {choice.variant for choice in crossovers.choices(exempt, BASELINES)} == {
        "triton_honest"
    }
    assert set(crossovers.by_problem(exempt)["bmm", "tiny_16", "float32"]) == {
        "torch_bmm",
        "triton_honest",
    }
    table = dispatch.measured(
        exempt, BASELINES, {"bmm": {"triton_honest", "torch_cheat"}}
    )
    assert [list(one.faster) for one in table] == [["triton_honest"]] * 3


def test_it_gains_nothing_on_a_ladder_and_is_no_opponent(exempt):
    assert ladder.over_opponent(exempt, "bmm/torch_cheat") is None
    assert ladder.over_rung_below(exempt, "bmm/torch_cheat", "bmm/torch_bmm") is None
    assert ladder.over_opponent(exempt, "bmm/triton_honest").mean == pytest.approx(2)
    run = Run(
        {
            "variants": {
                "bmm/torch_cheat": {
                    "idea": "",
                    "backend": "torch",
                    "builds_on": None,
                    "own_tolerance": False,
                }
            },
            "compiled": [],
        },
        {},
        tuple(exempt),
    )
    row = in_markdown(ladder_report.rungs(run, Findings(run), "bmm")).splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "torch_cheat",
        "",
        "",
        "not ranked",
        "",
    ]


def test_its_time_is_shown_with_a_mark_and_the_reason_and_the_star_is_anothers(exempt):
    why = eligible.why_unranked(exempt[2])
    table = in_markdown(*ops.comparison(exempt))
    assert "200 ns † · memory n/a" in table and "**1.00 µs** · 2.00x" in table
    assert table.endswith(f"† not ranked: torch_cheat ({why})")
    shown = on_terminal(*ops.latencies(exempt))
    assert (
        "200ns†" in shown and "1.00µs*" in shown and "not ranked: torch_cheat" in shown
    )
    curves = {
        curve["name"]: curve for curve in page_plots._problem(exempt, None)["curves"]
    }
    assert (
        curves["torch_cheat"]["speedup"] == [None] * 3
        and f"not ranked: {why}" in curves["torch_cheat"]["text"][0]
    )
    assert curves["triton_honest"]["speedup"] == [pytest.approx(2)] * 3


def test_a_baseline_is_ranked_whatever_bound_its_library_needs():
    wide = record(
        "torch_bmm",
        1,
        1e-6,
        own_tolerance=True,
        tolerance_multiple=241.0,
        is_baseline=True,
    )
    rival = record("triton_honest", 1, 2e-6)
    assert (
        eligible.may_win(wide)
        and ladder.opponents([wide, rival])[ladder.problem_of(wide)] is wide
    )
    assert [
        choice.variant for choice in crossovers.choices([wide, rival], BASELINES)
    ] == ["torch_bmm"]


def test_sixteen_times_the_bound_is_ranked_and_what_an_older_run_does_not_say_does_not_count():
    assert eligible.why_unranked(record("a", 1, 1e-6, tolerance_multiple=16.0)) is None
    assert eligible.why_unranked(record("a", 1, 1e-6)) is None
    assert (
        eligible.why_unranked(
            record("a", 1, 1e-6, probes=None, gives=None, tolerance_multiple=None)
        )
        is None
    )
    assert not eligible.may_win(Record("bmm", "a", "s", "float32", 1, FAILED))


def test_a_wider_bound_of_its_own_is_ranked_and_not_chosen():
    split = record("triton_split", 1, 1e-6, own_tolerance=True, tolerance_multiple=9.0)
    assert eligible.may_win(split) and not eligible.may_be_chosen(split)


@pytest.mark.parametrize("op", kernels.ops.values(), ids=kernels.ops)
def test_every_variant_of_ours_takes_part_in_probes(op):
    """By shapes alone, for most of them run on a GPU only."""
    for variant in op.variants.values():
        dtype = getattr(torch, variant.dtypes[0] if variant.dtypes else "float32")
        assert any(
            variant.why_unsupported(*make(dtype, "meta", 0)) is None
            for make in op.probes.values()
        ), variant.id
