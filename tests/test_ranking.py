"""Which results may win and be chosen, and what each rung of a ladder gained."""

import importlib
import pkgutil
from dataclasses import replace

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.runner import Runner
from batchline.bench.measure.worker.task import Task
from batchline.bench.report import page_plots
from batchline.bench.report.findings import Findings
from batchline.bench.report.sections import ladder as shown
from batchline.bench.report.sections import ops
from batchline.bench.statuses import FAILED, MEASURED, NOT_HERE, UNSUPPORTED, WRONG
from batchline.bench.stats.prediction import CountedCall, LaunchCounts
from batchline.bench.store.records import (
    Emulated,
    EmulatedLaunch,
    EmulatedVariant,
    Record,
)
from batchline.bench.verdicts import choosing, crossovers, ranking
from batchline.kernels.op import Variant
from tests import wrong_kernels
from tests.about import about_of
from tests.architectures import taken_for
from tests.documents import in_markdown, on_terminal
from tests.runs import changed, run_of
from tests.test_records import compiled_row

EFFORT = Effort(precision=0.5, seconds=0.01)
MODULES = [
    importlib.import_module(f"tests.wrong_kernels.{module.name}")
    for module in pkgutil.iter_modules(wrong_kernels.__path__)
]
EXEMPT = {
    "peer": {"is_peer": True},
    "gives": {"gives": 1},
    "probes": {"probes": 0},
    "tolerance": {"tolerance_multiple": 17.0},
}
BASELINES = {"bmm": "torch_bmm"}


def measured(monkeypatch, module, batch):
    """What the runner makes of a wrong kernel beside its op's baseline, by name."""
    op, name = module.OP, module.__name__.rpartition(".")[2]
    declared = {"backend": "torch", **getattr(module, "DECLARES", {})}
    variant = Variant(op, getattr(module, name), **declared)
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


@pytest.mark.commands
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
    assert module.UNRANKED_FOR in ranking.why_unranked(record)
    assert ranking.may_win(
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
    table = choosing.measured_gains(
        exempt, BASELINES, {"bmm": {"triton_honest", "torch_cheat"}}
    )
    assert [list(one.faster) for one in table] == [["triton_honest"]] * 3


def test_it_gains_nothing_on_a_ladder_and_is_no_opponent(exempt):
    assert ranking.over_opponent(exempt, "bmm/torch_cheat") is None
    assert ranking.over_rung_below(exempt, "bmm/torch_cheat", "bmm/torch_bmm") is None
    assert ranking.over_opponent(exempt, "bmm/triton_honest").mean == pytest.approx(2)
    run = run_of(
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
    row = in_markdown(_rungs(run)).splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "torch_cheat",
        "",
        "",
        "not ranked",
        "",
    ]


def test_its_time_is_shown_with_a_mark_and_the_reason_and_the_star_is_anothers(exempt):
    why = ranking.why_unranked(exempt[2])
    table = in_markdown(*ops.comparison(exempt))
    assert "200 ns † · memory n/a" in table and "**1.00 µs** · 2.00x" in table
    assert table.endswith(f"† not ranked: torch_cheat ({why})")
    on_screen = on_terminal(*ops.latencies(exempt))
    assert (
        "200ns†" in on_screen
        and "1.00µs*" in on_screen
        and "not ranked: torch_cheat" in on_screen
    )
    curves = {
        curve["name"]: curve
        for curve in page_plots._problem(exempt, None, {})["curves"]
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
        ranking.may_win(wide)
        and ranking.opponents([wide, rival])[ranking.problem_of(wide)] is wide
    )
    assert [
        choice.variant for choice in crossovers.choices([wide, rival], BASELINES)
    ] == ["torch_bmm"]


def test_sixteen_times_the_bound_is_ranked_and_what_an_older_run_does_not_say_does_not_count():
    assert ranking.why_unranked(record("a", 1, 1e-6, tolerance_multiple=16.0)) is None
    assert ranking.why_unranked(record("a", 1, 1e-6)) is None
    assert (
        ranking.why_unranked(
            record("a", 1, 1e-6, probes=None, gives=None, tolerance_multiple=None)
        )
        is None
    )
    assert not ranking.may_win(Record("bmm", "a", "s", "float32", 1, FAILED))


def test_a_wider_bound_of_its_own_is_ranked_and_not_chosen():
    split = record("triton_split", 1, 1e-6, own_tolerance=True, tolerance_multiple=9.0)
    assert ranking.may_win(split) and not ranking.may_be_chosen(split)


@pytest.mark.parametrize("op", kernels.ops.values(), ids=kernels.ops)
def test_every_variant_of_ours_takes_part_in_probes(op):
    """By shapes alone, for most of them run on a GPU only."""
    for variant in op.variants.values():
        dtype = getattr(torch, variant.dtypes[0] if variant.dtypes else "float32")
        assert any(
            taken_for(variant, make(dtype, "meta", 0)) for make in op.probes.values()
        ), variant.id


def _record(variant, batch, seconds, status=MEASURED):
    backend = variant.split("_")[0]
    return Record(
        "bmm",
        variant,
        "tiny_16",
        "float32",
        batch,
        status,
        "",
        (seconds,) * 3,
        1,
        {"backend": backend},
    )


RECORDS = [
    _record("torch_a", 1, 4e-6),
    _record("torch_b", 1, 2e-6),
    _record("triton_low", 1, 8e-6),
    _record("triton_high", 1, 2e-6),
    _record("torch_a", 64, 3e-6),
    _record("torch_b", 64, 6e-6),
    _record("triton_low", 64, 2e-6),
    _record("triton_high", 64, 1e-6),
    _record("torch_a", 256, 1e-6, FAILED),
    _record("triton_low", 256, 4e-6),
    _record("triton_high", 256, 1e-9, FAILED),
]


def _rungs(run):
    return shown.rungs(run, Findings(run), "bmm")


def test_the_opponent_is_the_fastest_of_pytorchs_on_each_problem():
    found = ranking.opponents(RECORDS)
    assert {problem[-1]: record.variant for problem, record in found.items()} == {
        1: "torch_b",
        64: "torch_a",
    }


def test_the_gain_over_the_rung_below_is_over_what_both_were_measured_on():
    gain = ranking.over_rung_below(RECORDS, "bmm/triton_high", "bmm/triton_low")
    assert (gain.least, gain.most, gain.cases) == (
        pytest.approx(2),
        pytest.approx(4),
        2,
    )
    assert gain.mean == pytest.approx(8**0.5)


def test_the_gain_over_the_opponent():
    gain = ranking.over_opponent(RECORDS, "bmm/triton_low")
    assert (gain.least, gain.most, gain.cases) == (
        pytest.approx(0.25),
        pytest.approx(1.5),
        2,
    )
    assert ranking.over_opponent(RECORDS[-2:], "bmm/triton_low") is None


def test_the_climb_goes_up_each_backends_ladder():
    variants = {
        "a": {"backend": "x", "builds_on": "c"},
        "b": {"backend": "y", "builds_on": None},
        "c": {"backend": "x", "builds_on": None},
        "d": {"backend": "x", "builds_on": "a"},
        "e": {"backend": "x", "builds_on": "not in this run"},
        "f": {"backend": "x", "builds_on": "c"},
    }
    assert ranking.climb(variants) == [
        ("c", 0),
        ("a", 1),
        ("d", 2),
        ("f", 1),
        ("e", 0),
        ("b", 0),
    ]


def _run(**about):
    variants = {
        f"bmm/{name}": {
            "idea": f"the idea of {name}",
            "backend": name.split("_")[0],
            "builds_on": "bmm/triton_low" if name == "triton_high" else None,
            "own_tolerance": name == "triton_low",
        }
        for name in ("torch_a", "torch_b", "triton_low", "triton_high", "numba_never")
    }
    never = Record(
        "bmm", "numba_never", "tiny_16", "float32", 1, NOT_HERE, "needs CUDA"
    )
    return run_of(
        {
            "variants": variants,
            "compiled": [
                compiled_row(variant="bmm/triton_high"),
                compiled_row(variant="bmm/triton_high", architecture=80, registers=90),
                compiled_row(variant="bmm/triton_high", dtype="float32", matrix=0),
            ],
        }
        | about,
        {},
        (*RECORDS, never),
    )


def test_the_table_has_each_rung_with_its_idea_its_gains_and_its_facts():
    lines = in_markdown(_rungs(_run())).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == [
        "torch_a",
        "torch_b",
        "triton_low",
        "· triton_high",
        "numba_never",
    ]
    high, never = rows[3], rows[4]
    assert (
        rows[2][1]
        == "the idea of triton_low (checked against an error bound of its own)"
    )
    assert high[1] == "the idea of triton_high"
    assert high[2] == "2.83x (2.00x to 4.00x, 2 cases)"
    assert high[3] == "1.73x (1.00x to 3.00x, 2 cases)"
    assert high[4].startswith("sm_90 float16: 110 regs") and "float32" not in high[4]
    assert never[2:] == ["", "not timed here", ""]


def test_a_rung_without_a_gain_says_what_became_of_it():
    wrong = [
        Record("bmm", "numba_never", "tiny_16", "float32", batch, status)
        for batch, status in ((1, UNSUPPORTED), (64, WRONG))
    ]
    run = _run()
    lines = in_markdown(_rungs(run_of(about_of(run), {}, tuple(wrong)))).splitlines()
    assert [cell.strip() for cell in lines[-1].strip("|").split("|")][2:] == [
        "",
        "wrong",
        "",
    ]


def test_a_gpu_is_shown_the_facts_of_its_own_architecture():
    run = _run()
    on_a100 = run_of(about_of(run), {"gpu": {"compute_capability": "8.0"}}, run.records)
    assert "sm_80 float16: 90 regs" in in_markdown(_rungs(on_a100))


def test_the_verdict_names_what_spills_and_where_warps_are_specialised():
    clean = shown.summarize_compiled(_run())
    assert clean == "Of 3 kernels compiled, none uses the stack."
    spilling = shown.summarize_compiled(
        _run(
            compiled=[
                compiled_row(stack_bytes=16, spills=4),
                compiled_row(),
                compiled_row(variant="bmm/ws", warp_specialized=True),
                compiled_row(variant="bmm/no", error="TypeError: no", spills=1),
            ]
        )
    )
    assert spilling == (
        "Of 3 kernels compiled, 1 uses the stack: bmm/triton_tiled float16 on sm_90 (tiny_16). "
        "Warp specialisation engaged in bmm/ws for sm_90."
    )


def test_configurations_stand_in_one_row_with_the_worst_of_their_facts():
    rows = [
        compiled_row(),
        compiled_row(example=False, scenario="odd", registers=255, spills=9),
        compiled_row(
            example=False, scenario="odd", config="BLOCK_M=64, 4 warps, 3 stages"
        ),
        compiled_row(architecture=80),
    ]
    lines = in_markdown(shown.rule_configurations(_run(compiled=rows))).splitlines()[2:]
    assert len(lines) == 2
    assert (
        "tiny_16, odd" in lines[0]
        and "255 regs" in lines[0]
        and "9 spill instructions" in lines[0]
    )


@pytest.mark.parametrize(
    "why, words",
    [
        ({"error": "TypeError: no"}, "does not compile: TypeError: no"),
        ({"declined": "needs TMA"}, "declined: needs TMA"),
    ],
)
def test_what_has_no_code_says_why_in_its_cell(why, words):
    row = {
        "variant": "bmm/x",
        "dtype": "float16",
        "scenario": "s",
        "batch": 1,
        "example": True,
        "architecture": 80,
        **why,
    }
    run = _run(compiled=[row])
    assert words in in_markdown(shown.examples(run))
    assert shown.rule_configurations(run) is None
    assert (
        shown.summarize_compiled(run) == "Of 0 kernels compiled, none uses the stack."
    )


def _tuned(source):
    return Record(
        "bmm",
        "torch_a",
        "tiny_16",
        "float32",
        1,
        MEASURED,
        "",
        (1e-6,) * 3,
        1,
        {"backend": "torch", "config": {"BLOCK": 1}, "config_source": source},
    )


def _emulated(**of_it):
    launch = EmulatedLaunch(
        "tiny_16",
        2,
        90,
        0,
        kernel="_kernel",
        instructions=1200,
        sectors=60,
        sectors_needed=50,
        passes=8,
        requests=8,
        read_bytes=4096,
        distinct_bytes=2048,
    )
    made = {"right": ("ragged sm_90", "nan sm_90"), "launches": (launch,)}
    row = EmulatedVariant("bmm/numba_never", "float16", **made | of_it)
    return replace(
        _run(compiled=[compiled_row(variant="bmm/numba_never")]),
        emulated=Emulated((row,)),
    )


def test_a_kernel_that_was_executed_in_emulation_says_so_with_its_counts():
    last = in_markdown(_rungs(_emulated())).splitlines()[-1]
    assert "executed in emulation" in last and "not yet run" not in last
    assert "right on 2 probes; sm_90 float16 B2: 1,200 instructions" in last
    assert "sectors 1.20x, banks 1.00x, each byte read 2.00x" in last


def test_a_kernel_has_what_is_predicted_from_its_counts():
    launch = LaunchCounts(132, 0, 0, 0, 0, 0, 4 * 10**6, 0, {}, 0)
    run = _emulated(calls=(CountedCall("tiny_16/B64", 90, 1.0, 1e6, (launch,)),))
    last = in_markdown(_rungs(run)).splitlines()[-1]
    assert "at most 25% on H100 (memory), 25% on H200 (memory)" in last
    on_it = run.machine | {"gpu": {"compute_capability": "9.0"}}
    on_it["device_name"] = "NVIDIA H200"
    last = in_markdown(_rungs(replace(run, machine=on_it))).splitlines()[-1]
    assert "at most 25% on H200 (memory)" in last and "H100" not in last
    # 1 MB at 4.8 TB/s are 0.208 us.
    record = Record(
        "bmm", "numba_never", "tiny_16", "float16", 64, MEASURED, "", (2.08e-6,)
    )
    on_it = replace(run, machine=on_it, records=(*run.records, record))
    last = in_markdown(_rungs(on_it)).splitlines()[-1]
    assert "at most 25% on H200 (memory); measured 10%" in last


def test_a_kernel_that_is_wrong_in_emulation_says_so():
    run = _emulated(wrong={"sliced sm_90": "out-of-bounds at a.py:1"})
    assert "wrong in emulation" in in_markdown(_rungs(run)).splitlines()[-1]
    assert "right on 2 probes, WRONG on 1" in in_markdown(_rungs(run))
    told = in_markdown(shown.compiled(run, Findings(run)))
    assert "sliced sm_90: out-of-bounds at a.py:1" in told


def test_a_compiled_kernel_without_a_gpu_is_not_yet_run():
    run = _run(compiled=[compiled_row(variant="bmm/numba_never")])
    assert "compiled, not yet run" in in_markdown(_rungs(run)).splitlines()[-1]
    on_a_gpu = run_of(
        about_of(run), {"gpu": {"compute_capability": "9.0"}}, run.records
    )
    assert "not yet run" not in in_markdown(_rungs(on_a_gpu))


def test_a_bar_in_an_idea_does_not_end_its_cell():
    variants = about_of(_run())["variants"]
    variants["bmm/torch_a"]["idea"] = "within 1% of |a||b|"
    run = changed(_run(), variants=variants)
    assert r"within 1% of \|a\|\|b\|" in in_markdown(_rungs(run))
    assert "within 1% of |a||b|" in on_terminal(_rungs(run))


def test_where_configurations_came_from_is_said():
    found = {
        "file": "kernels/bmm/tuning/some.json",
        "measured": "2026-01-02",
        "seconds": 12,
    }
    run = run_of(
        {"tuning": {"bmm": found}},
        {},
        (_tuned("tuned"), _tuned("tuned"), _tuned("rule")),
    )
    text = in_markdown(*shown.configurations(run, "bmm"))
    assert "`kernels/bmm/tuning/some.json`, 2026-01-02, in 12 s" in text
    assert [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")] == [
        "torch_a",
        "2",
        "0",
        "1",
    ]
    without = run_of(
        {"tuning": {"bmm": found | {"measured": None}}}, {}, (_tuned("rule"),)
    )
    assert "There is no `kernels/bmm/tuning/some.json`" in in_markdown(
        *shown.configurations(without, "bmm")
    )
    assert shown.configurations(run_of({}, {}, ()), "bmm") == []
