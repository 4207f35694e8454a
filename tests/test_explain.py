"""One case on one screen: what was measured, its floors, the rung below, the compiled
facts; a miss says what to do.
"""

from dataclasses import replace

import pytest

from batchline.bench.commands import explain as command
from batchline.bench.errors import UsageError
from batchline.bench.report.of_commands import emulated_rows, kernel_screen, screen
from batchline.bench.statuses import NOT_HERE, NOT_REACHED
from batchline.bench.stats.prediction import CountedCall, LaunchCounts
from batchline.bench.store import formats, run_json
from batchline.bench.store.records import Compiled
from tests.about import about_of
from tests.comparisons import HOSTILE
from tests.pages import HOSTILE as HOSTILE_NAME
from tests.pages import a_run, hostile, timed, with_records
from tests.runs import changed, save_document
from tests.test_records import document

CASE = "bmm/torch_bmm/tiny_16/float32/B4"
ABOUT = {
    "idea": "an idea",
    "backend": "numba_cpu",
    "builds_on": "bmm/torch_bmm",
    "own_tolerance": False,
}


def _flat(text):
    return " ".join(text.split())


def rungs(median_s=1e-6):
    run = with_records(a_run(), timed("fast", 4, median_s, backend="numba_cpu"))
    return with_variant(run, ABOUT)


def with_variant(run, facts):
    return changed(run, variants={**about_of(run)["variants"], "bmm/fast": facts})


def test_a_measured_case():
    text = screen(a_run(), CASE, "somewhere")
    flat = _flat(text)
    for words in (
        "bmm/torch_bmm/tiny_16/float32/B4: the vendor's",
        "Some CPU, smoke run of 2026-01-02, somewhere",
        "2.50 µs ±",
        "by host; half of 4 samples from 1.75 µs to 3.25 µs",
        "9.00 µs ±11.0% by host_cold",
        "launch: 40% of what that ceiling allows, 2.50x its floor",
        "an empty launch 1.00 µs; 12.0 KiB in the cache 123 ns; 3.28e+04 FLOP 328 ns",
        "no law: 1 of at least 4 batch sizes measured",
        "4.00 KiB above 8.00 KiB of inputs, of which 4.00 KiB outputs (resident set)",
        "0.1 of the tolerance against fp64",
        "the fastest here this one",
    ):
        assert words in flat, words
    assert max(map(len, text.splitlines())) <= 100 and len(text.splitlines()) < 40


@pytest.mark.parametrize(
    "median_s, words",
    [
        (1e-6, "torch_bmm: 2.50 µs; this one is 2.50x as fast"),
        (5e-6, "torch_bmm: 2.50 µs; that one is 2.00x as fast"),
        (2.5e-6, "torch_bmm: 2.50 µs, no clear difference from this one"),
    ],
)
def test_the_rung_below(median_s, words):
    run = rungs(median_s)
    run = replace(
        run,
        records=tuple(
            replace(record, samples_s=(2.5e-6,) * 9) if record.id == CASE else record
            for record in run.records
        ),
    )
    assert words in _flat(screen(run, "bmm/fast/tiny_16/float32/B4", "x"))


def test_a_rung_that_is_not_there_or_has_no_time():
    run = with_variant(rungs(), ABOUT | {"builds_on": "bmm/triton_tiled"})
    assert "triton_tiled: not timed here: needs CUDA" in _flat(
        screen(run, "bmm/fast/tiny_16/float32/B4", "x")
    )
    run = with_variant(rungs(), ABOUT | {"builds_on": "bmm/gone"})
    assert "gone: not in this run" in _flat(
        screen(run, "bmm/fast/tiny_16/float32/B4", "x")
    )


def test_a_case_without_a_time_has_its_reason_and_its_compiled_facts():
    run = a_run()
    (refused,) = (record for record in run.records if record.status == NOT_HERE)
    (kernel,) = run.compiled.kernels
    kernel = replace(kernel, dtype=refused.dtype)
    run = replace(run, compiled=Compiled((kernel,)))
    flat = _flat(screen(run, refused.id, "x"))
    assert "no time not timed here: needs CUDA" in flat
    assert (
        "sm_90 on tiny_16/B4: _kernel BLOCK_M=128, 8 warps, 3 stages: 110 regs" in flat
    )


def test_a_law_over_the_batch():
    run = with_records(
        a_run(),
        *(timed("torch_bmm", batch, 1e-6 + 1e-7 * batch) for batch in (8, 16, 64, 256)),
    )
    assert "per sample; saturated from B=" in _flat(
        screen(run, "bmm/torch_bmm/tiny_16/float32/B64", "x")
    )


def test_without_ceilings_it_says_so():
    assert "unknown, for the run has no ceilings: no room" in _flat(
        screen(a_run(ceilings=None, why_no_ceilings="no room"), CASE, "x")
    )


def test_hostile_text_steers_nothing():
    text = screen(hostile(), f"bmm/{HOSTILE_NAME}/{HOSTILE_NAME}/float32/B4", "x")
    assert "\x1b" not in text and HOSTILE.split()[-1] in text


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("2026-01-01-old", "2026-01-02-new"):
        (tmp_path / "reports" / "runs" / name).mkdir(parents=True)
        save_document(tmp_path / "reports" / "runs" / name, document())
    return tmp_path


def test_the_newest_run_that_has_the_case(here):
    assert "reports/runs/2026-01-02-new" in command.explain(CASE, None)
    (here / "reports" / "runs" / "2026-01-02-new" / run_json.FILE_NAME).write_text("{")
    assert "reports/runs/2026-01-01-old" in command.explain(CASE, None)


def test_a_run_that_was_stopped_before_the_case_does_not_hide_one_that_timed_it(here):
    stopped = document()
    stopped[formats.OURS]["cases"] = [
        case | {"status": NOT_REACHED, "reason": "the run ended before it"}
        for case in stopped[formats.OURS]["cases"]
    ]
    save_document(here / "reports" / "runs" / "2026-01-02-new", stopped)
    assert "reports/runs/2026-01-01-old" in command.explain(CASE, None)
    save_document(here / "reports" / "runs" / "2026-01-01-old", stopped)
    assert "not reached" in command.explain(CASE, None)


def test_the_id_that_is_nearest_is_named(here):
    with pytest.raises(
        UsageError,
        match=rf"no stored run has the case '{CASE}0' \(did you mean {CASE}\?\): ",
    ):
        command.explain(f"{CASE}0", None)
    with pytest.raises(
        UsageError, match=rf"has no case '{CASE}0' \(did you mean {CASE}\?\): "
    ):
        command.explain(f"{CASE}0", here / "reports" / "runs" / "2026-01-01-old")


@pytest.mark.parametrize(
    "case, words",
    [
        ("", "say which case: batchline explain "),
        ("bmm/no/tiny_16/float32/B4", "no stored run has the case 'bmm/no/"),
    ],
)
def test_what_is_not_there(here, case, words):
    with pytest.raises(UsageError, match=words):
        command.explain(case, None)
    with pytest.raises(ValueError, match="has no case" if case else words):
        command.explain(case, here / "reports" / "runs" / "2026-01-01-old")


LAUNCH = {
    "variant": "bmm/triton_tiled",
    "dtype": "float16",
    "scenario": "linear_grad_weight",
    "batch": 2,
    "architecture": 90,
    "launch": 0,
    "kernel": "_kernel",
    "instructions": 1000,
    "sectors": 20,
    "sectors_needed": 10,
    "passes": 8,
    "requests": 8,
    "read_bytes": 640,
    "distinct_bytes": 320,
    "lines": {"tiled.py": ["7 a1b2c3 250 20 10 8 8", "9 a1b2c3 750 0 0 0 0"]},
}


# It reads what the problem has twice, and does nothing else.
CALL = CountedCall(
    "square/B64",
    90,
    1.0,
    1e6,
    (LaunchCounts(132, 0, 0, 0, 0, 0, 2 * 10**6, 0, {}, 0),),
)


def test_what_a_kernel_did_in_emulation_is_said_with_its_lines():
    declined = {name: LAUNCH[name] for name in ("scenario", "batch", "architecture")}
    rows = emulated_rows(
        "float16",
        ["ragged sm_80", "ragged sm_90"],
        {"deep sm_90": "off"},
        [LAUNCH, declined | {"declined": "too deep"}],
        [CALL],
    )
    text = _flat(kernel_screen("bmm/triton_tiled", "tiles", list(rows)))
    for words in (
        "bmm/triton_tiled: tiles",
        "float16: right on 2 probes and architectures, WRONG on 1: deep sm_90: off",
        "sm_90 linear_grad_weight/B2 _kernel: 1,000 instructions, sectors 2.00x, banks 1.00x",
        "most at tiled.py:9 750 (75%), tiled.py:7 250 (25%)",
        "sm_90 linear_grad_weight/B2: too deep",
        "predicted from counts float16 square/B64: at most 50% on H100 (memory)",
    ):
        assert words in text, words


def test_a_case_has_what_its_kernel_did_in_emulation_below_it():
    assert "in emulation right" in _flat(
        screen(a_run(), CASE, "x", [("in emulation", "right")])
    )


@pytest.mark.parametrize(
    "is_current, words",
    [
        (True, "right on 1 probes"),
        (False, "changed since it was pinned: `batchline emulate bmm/it`"),
    ],
)
def test_only_what_is_as_it_was_pinned_is_shown(monkeypatch, is_current, words):
    from batchline.bench.measure.emulated import pinned

    entry = pinned.Entry("", "", ("ragged sm_90",), {}, ())
    monkeypatch.setattr(pinned, "load", lambda: {("bmm/it", "float16"): entry})
    monkeypatch.setattr(pinned, "is_current", lambda job, known: is_current)
    ((_, said),) = command._emulated("bmm/it", "float16")
    assert words in said
    ((_, said),) = command._emulated("bmm/other")
    assert said == "nothing is pinned of it: `batchline emulate bmm/other` executes it"
