"""The numerics audit: what goes wrong is failed and named, what is right is close, and
all of it is shown.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from batchline import kernels
from batchline.bench import report
from batchline.bench.declared import DeclaredAudit
from batchline.bench.errors import ExitCode
from batchline.bench.measure.checking import audit
from batchline.bench.measure.worker.task import WorkerLost
from batchline.bench.report.document import Place, select
from batchline.bench.report.sections import checks
from batchline.bench.running import after_cases
from batchline.bench.running.benchmark import _exit_code
from batchline.bench.statuses import CRASHED, MEASURED, parse_case_id
from batchline.bench.store import run_json
from batchline.bench.store.files import stored_below
from batchline.bench.store.formats import OURS
from batchline.bench.store.records import Record
from batchline.kernels.op import Variant
from tests.documents import in_markdown, readme, section
from tests.runs import run_of, save_document
from tests.test_records import document

GRAD, LAYER = kernels.ops["grad_stats"], kernels.ops["wgrad_stats"]
EVIDENCE = sorted(
    stored_below(
        Path(__file__).resolve().parents[1] / "reports" / "evidence", "run.json"
    )
)
DECLARED = {
    op.name: DeclaredAudit(
        op.audit.names,
        {control.name: control.dtypes for control in op.audit.controls},
    )
    for op in (GRAD, LAYER)
}
HERE = [
    variant
    for op in (GRAD, LAYER)
    for variant in op.variants.values()
    if not variant.why_not_here("cpu") and not variant.slow_start
]


def _off(**wrong):
    """A variant of grad_stats whose named outputs went through these functions."""

    def off(g):
        outputs = dict(zip("mnd", GRAD.variants["torch_passes"](g)))
        return tuple(
            wrong.get(name, lambda output: output)(output)
            for name, output in outputs.items()
        )

    return Variant(GRAD, off, "torch")


def _rows(variant, dtype="float32"):
    return {row["condition"]: row for row in audit.audit(variant, dtype, "cpu")}


@pytest.mark.parametrize("variant", HERE, ids=lambda variant: variant.id)
def test_in_fp32_every_way_is_right_on_what_is_well_conditioned(variant):
    rows = _rows(variant)
    well_conditioned = {"well", "one_token"} & set(rows)
    assert well_conditioned
    for condition in well_conditioned:
        errors = {
            key: rows[condition][key]
            for key in variant.op.audit.names
            if rows[condition][key] is not None
        }
        assert (
            len(errors) == {None: 4, 2: 3, 1: 1}[variant.gives]
        )  # the noise scale is of ḡ and n
        assert max(errors.values()) < 1e-4 and rows[condition]["failed"] is None


def test_what_a_variant_declines_has_no_row():
    assert list(_rows(LAYER.variants["torch_rank_one"])) == [
        "one_token",
        "mean_over_noise",
        "mean_under_noise",
    ]


@pytest.mark.parametrize("op", [GRAD, LAYER], ids=lambda op: op.name)
def test_magnitudes_that_a_dtype_does_not_hold_are_left_out(op):
    baseline = op.variants[op.baseline]
    assert set(op.conditions) - set(_rows(baseline, "float16")) == {"tiny", "huge"}
    assert not set(op.conditions) - set(_rows(baseline, "bfloat16"))


@pytest.mark.parametrize(
    "wrong, failed, impossible",
    [
        ({"n": lambda n: n - 2 * n[:1]}, "n is negative in", True),
        ({"n": lambda n: n * torch.nan}, "n is NaN in 64 of 64", True),
        ({"m": lambda mean: mean * torch.nan}, "mean is NaN in 4096 of 4096", True),
        ({"d": lambda d: d / 0}, "d is infinite in 64 of 64", False),
    ],
)
def test_what_no_norm_can_be_is_a_failed_row_and_named(wrong, failed, impossible):
    row = _rows(_off(**wrong))["well"]
    assert row["failed"].startswith(failed) and row["impossible"] == impossible


def test_errors_are_what_was_put_in():
    row = _rows(
        _off(m=lambda mean: mean * 1.01, n=lambda n: n * 1.1, d=lambda d: d * 1.5)
    )["well"]
    assert row["mean"] == pytest.approx(0.01, rel=1e-3) and row["n"] == pytest.approx(
        0.1, rel=1e-3
    )
    assert 0.3 < row["d"] < 0.5  # half of the cosine of a sample and the mean
    assert (
        row["noise_scale"] > 0.1 and row["failed"] is None
    )  # n is two parts, signal and noise


def test_what_raises_is_a_failed_row_and_the_device_is_looked_at():
    def raises(g):
        raise ValueError("not today\nnor ever")

    asked = []
    rows = audit.audit(
        Variant(GRAD, raises, "torch"), "float32", "cpu", require_device=asked.append
    )
    assert {row["failed"] for row in rows} == {"ValueError: not today"} and len(
        asked
    ) == len(rows)
    assert not any(row["impossible"] for row in rows)


def test_ghost_norms_of_bf16_grams_are_wrong_where_tokens_cancel():
    row = _rows(audit.controls("wgrad_stats")["gram_in_own_dtype"], "bfloat16")[
        "cancelling_tokens"
    ]
    assert (
        row["n"] > 0.1
        and row["failed"].startswith("n is negative")
        and row["whose"] == "control"
    )
    assert (
        _rows(LAYER.variants["torch_ghost"], "bfloat16")["cancelling_tokens"]["n"]
        < 0.01
    )


def test_gradients_rounded_to_bf16_lose_their_noise():
    rows = _rows(audit.controls("wgrad_stats")["gradients_in_own_dtype"], "bfloat16")
    assert rows["mean_over_noise"]["noise_scale"] > 0.01
    assert (
        rows["mean_over_noise"]["noise_scale"]
        > _rows(LAYER.variants["torch_materialize"], "bfloat16")["mean_over_noise"][
            "noise_scale"
        ]
    )


def test_what_needs_a_gpu_is_one_row_that_says_so():
    (row,) = audit.audit(
        audit.controls("wgrad_stats")["tf32_products"], "float32", "cpu"
    )
    assert row["not_run"] == "needs CUDA" and row["condition"] is None


def test_jobs_are_the_variants_then_the_controls_of_their_ops_alone():
    bmm = kernels.ops["bmm"].variants["torch_bmm"]
    assert not audit.jobs([bmm], {"grad_stats": DECLARED["grad_stats"]})
    jobs = [
        (subject.variant, dtype)
        for subject, dtype in audit.jobs([bmm, GRAD.variants["torch_passes"]], DECLARED)
    ]
    assert jobs == [
        (name, dtype)
        for name in ("torch_passes", "mean_of_squares")
        for dtype in audit.DTYPES
    ]


class _Case:
    refusal = None

    def __init__(self, variant):
        self.id, self.variant = f"{variant.id}/x/float32/B1", variant


class _Op:
    name, audit = "grad_stats", DECLARED["grad_stats"]


class _Plan:
    ops = {"grad_stats": _Op}
    cases = [_Case(GRAD.variants["torch_passes"])]


class _Worker:
    def call(self, method, op, variant, dtype):
        assert method == "audit"
        if dtype == "bfloat16":
            raise WorkerLost(
                CRASHED,
                "its process was ended by SIGSEGV",
                f"{op}/{variant}",
                "audit: tiny",
            )
        if variant == "mean_of_squares":
            raise RuntimeError("KeyError: 'x'")
        return audit.audit(GRAD.variants[variant], dtype, "cpu")


def test_a_crash_costs_its_row():
    case = parse_case_id(_Plan.cases[0].id)
    run = run_of(records=[Record(**case, status=MEASURED, samples_s=(1.0,))])
    rows = after_cases.audit_variants(_Worker(), _Plan, run)
    assert [row["condition"] for row in rows[:-3]] == list(GRAD.conditions)
    crashed, ours, last = rows[-3:]
    assert (
        crashed["failed"]
        == last["failed"]
        == "its process was ended by SIGSEGV (audit: tiny)"
    )
    assert ours["failed"] == "Batchline itself failed: KeyError: 'x'"


@pytest.mark.parametrize(
    "whose, impossible, code",
    [
        ("ours", True, ExitCode.FAULT),
        ("ours", False, ExitCode.CLEAN),
        ("peer", True, ExitCode.CLEAN),
        ("control", True, ExitCode.CLEAN),
    ],
)
def test_only_an_impossible_row_of_our_own_breaks_a_run(whose, impossible, code):
    run = run_of(
        {
            "audit": [
                {
                    "op": "op",
                    "variant": "a",
                    "dtype": "c",
                    "whose": whose,
                    "impossible": impossible,
                }
            ]
        },
        {},
        (Record("op", "a", "b", "c", 1, MEASURED),),
    )
    assert _exit_code(run, ExitCode.CLEAN, published=True) == code
    clean = replace(run, audit=())
    assert _exit_code(clean, ExitCode.CLEAN, published=True) == ExitCode.CLEAN
    assert _exit_code(clean, ExitCode.CLEAN, published=False) == ExitCode.FAULT


@pytest.fixture(scope="module")
def audited():
    """A stored run's document with an audit of a few ways."""
    subjects = [LAYER.variants["torch_ghost"], *audit.controls("wgrad_stats").values()]
    with_audit = document()
    by_name = {subject.name: subject for subject in subjects}
    with_audit[OURS]["audit"] = [
        row
        for subject, dtype in audit.jobs(subjects[:1], DECLARED)
        for row in audit.audit(by_name[subject.variant], dtype, "cpu")
    ]
    return with_audit


def test_what_was_audited_is_stored_and_shown(audited, tmp_path):
    save_document(tmp_path, audited)
    run = run_json.load(tmp_path)
    assert [dict(row) for row in run.audit] == audited[OURS]["audit"]
    report.write(report.RunReport(run), tmp_path)
    text = (
        (tmp_path / "README.md")
        .read_text()
        .partition("## Numerics of the statistics")[2]
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert rows[0][1:] == [name.replace("_", " ") for name in LAYER.conditions]
    ways = [row[0] for row in rows if "·" in row[0]]
    assert ways == [
        "torch_ghost · float32",
        "torch_ghost · bfloat16",
        "gram_in_own_dtype · bfloat16 (not of this suite)",
        "gradients_in_own_dtype · bfloat16 (not of this suite)",
    ]
    cancelling = rows[0].index("cancelling tokens")
    assert (
        rows[4][cancelling].startswith("**n is negative in ")
        and "n wrong by" in rows[4][cancelling]
    )
    assert (
        "- cancelling tokens: the worst is gram_in_own_dtype · bfloat16 (not of this suite), n is negative"
        in text
    )
    assert (
        "- tf32_products · float32 (not of this suite) was not run: needs CUDA." in text
    )
    assert (
        "wgrad_stats: cancelling tokens: the worst is gram_in_own_dtype"
        in report.terminal(report.RunReport(run))
    )


def _row(**changes):
    return {
        "op": "o",
        "variant": "v",
        "dtype": "float32",
        "whose": "ours",
        "condition": "well",
        "mean": 1e-8,
        "n": 3e-7,
        "d": None,
        "noise_scale": 2e-6,
        "failed": None,
        "impossible": False,
        "not_run": None,
    } | changes


@pytest.mark.parametrize(
    "row, cell",
    [
        (_row(), "n 3e-7 · scale 2e-6"),
        (_row(mean=2e-3), "**ḡ wrong by 0.2%** · scale 2e-6"),
        (_row(d=1.7), "**d wrong by 1.7 times itself** · scale 2e-6"),
        (_row(noise_scale=0.36), "n 3e-7 · **scale wrong by 36%**"),
        (_row(mean=0.0, n=None, noise_scale=None), "ḡ 0"),
        (_row(failed="ValueError: no", n=None), "**ValueError: no**"),
        (
            _row(failed="n is negative in 7 of 16", n=2.58),
            "**n is negative in 7 of 16, n wrong by 2.58 times itself**",
        ),
    ],
)
def test_a_cell_is_the_worst_error_and_the_noise_scales(row, cell):
    table = in_markdown(section(checks.numerics, run_of({"audit": [row]}, {}, ())))
    assert f"| v · float32 | {cell} " in table


def test_findings_tell_the_worst_ours_and_the_best():
    rows = [
        _row(noise_scale=0.1),
        _row(variant="w", n=0.5, whose="control"),
        _row(variant="x", dtype="bfloat16"),
        _row(variant="gives_less", noise_scale=None, n=None),
        _row(condition=None, failed="it crashed"),
    ]
    numerics = section(checks.numerics, run_of({"audit": rows}, {}, ()))
    (lines,) = (part for part in select(numerics.parts, Place.TERMINAL))
    assert list(lines.lines) == [
        "o: well: the worst is w · float32 (not of this suite), n wrong by 50%; the worst of this suite's v · float32, "
        "scale wrong by 10%; the best x · bfloat16, scale 2e-6.",
        "o: v · float32 failed: it crashed.",
    ]


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.parent.name)
def test_a_run_from_before_the_audit_still_renders(path):
    run = run_json.load(path.parent)
    paragraphs = readme(run, missing="none wanted").split("\n\n")
    assert len(paragraphs) > 10
    assert ("## Numerics" in "".join(paragraphs)) == bool(run.audit)
