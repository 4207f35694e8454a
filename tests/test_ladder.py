"""What a rung bought: against the rung below, and against the strongest of PyTorch's
own on each problem.
"""

import pytest

from batchline.bench.records import (
    FAILED,
    MEASURED,
    NOT_HERE,
    UNSUPPORTED,
    WRONG,
    Record,
    Run,
)
from batchline.bench.report.findings import Findings
from batchline.bench.report.sections import ladder as shown
from batchline.bench.verdicts import ladder
from tests.documents import in_markdown, on_terminal
from tests.test_records import compiled_row


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
    found = ladder.opponents(RECORDS)
    assert {problem[-1]: record.variant for problem, record in found.items()} == {
        1: "torch_b",
        64: "torch_a",
    }


def test_the_gain_over_the_rung_below_is_over_what_both_were_measured_on():
    gain = ladder.over_rung_below(RECORDS, "bmm/triton_high", "bmm/triton_low")
    assert (gain.least, gain.most, gain.cases) == (
        pytest.approx(2),
        pytest.approx(4),
        2,
    )
    assert gain.mean == pytest.approx(8**0.5)


def test_the_gain_over_the_opponent():
    gain = ladder.over_opponent(RECORDS, "bmm/triton_low")
    assert (gain.least, gain.most, gain.cases) == (
        pytest.approx(0.25),
        pytest.approx(1.5),
        2,
    )
    assert ladder.over_opponent(RECORDS[-2:], "bmm/triton_low") is None


def test_the_climb_goes_up_each_backends_ladder():
    variants = {
        "a": {"backend": "x", "builds_on": "c"},
        "b": {"backend": "y", "builds_on": None},
        "c": {"backend": "x", "builds_on": None},
        "d": {"backend": "x", "builds_on": "a"},
        "e": {"backend": "x", "builds_on": "not in this run"},
        "f": {"backend": "x", "builds_on": "c"},
    }
    assert ladder.climb(variants) == [
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
    return Run(
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
    lines = in_markdown(_rungs(Run(run.about, {}, tuple(wrong)))).splitlines()
    assert [cell.strip() for cell in lines[-1].strip("|").split("|")][2:] == [
        "",
        "wrong",
        "",
    ]


def test_a_gpu_is_shown_the_facts_of_its_own_architecture():
    run = _run()
    on_a100 = Run(run.about, {"gpu": {"compute_capability": "8.0"}}, run.records)
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
                {"variant": "bmm/no", "error": "TypeError: no"},
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


def test_a_compiled_kernel_without_a_gpu_is_not_yet_run():
    run = _run(compiled=[compiled_row(variant="bmm/numba_never")])
    assert "compiled, not yet run" in in_markdown(_rungs(run)).splitlines()[-1]
    on_a_gpu = Run(run.about, {"gpu": {"compute_capability": "9.0"}}, run.records)
    assert "not yet run" not in in_markdown(_rungs(on_a_gpu))


def test_a_bar_in_an_idea_does_not_end_its_cell():
    run = _run()
    run.about["variants"]["bmm/torch_a"]["idea"] = "within 1% of |a||b|"
    assert r"within 1% of \|a\|\|b\|" in in_markdown(_rungs(run))
    assert "within 1% of |a||b|" in on_terminal(_rungs(run))


def test_where_configurations_came_from_is_said():
    found = {
        "file": "kernels/bmm/tuning/some.json",
        "measured": "2026-01-02",
        "seconds": 12,
    }
    run = Run(
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
    without = Run(
        {"tuning": {"bmm": found | {"measured": None}}}, {}, (_tuned("rule"),)
    )
    assert "There is no `kernels/bmm/tuning/some.json`" in in_markdown(
        *shown.configurations(without, "bmm")
    )
    assert shown.configurations(Run({}, {}, ()), "bmm") == []
