"""The stand-in for a GPU is as unkind as CUDA, and a whole run on it goes from plan to
report.

What it is made of, and what is timed on it, is tested in processes that have it from
their start (tests/on_the_stand_in.py, tests/products_on_the_stand_in.py,
tests/timed_on_the_stand_in.py).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchline import kernels
from batchline.bench.commands import compare, dispatch
from batchline.bench.errors import UsageError
from batchline.bench.measure import stand_in
from batchline.bench.statuses import MEASURED, NOT_HERE, UNSUPPORTED
from batchline.bench.store import history, run_json
from batchline.bench.store.files import read_text
from batchline.kernels import backends
from tests import shared
from tests.plans import planned

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.commands,
    pytest.mark.skipif(
        any(backends.why_absent(name) for name in backends.INTERPRETED_BACKENDS),
        reason="it compiles Triton's and Numba's kernels",
    ),
]


def bench(*arguments, folder=ROOT, sources=ROOT, **variables):
    return subprocess.run(
        [sys.executable, "-m", "batchline", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(sources), **variables},
    )


def on_it(command, *arguments, code=0, **how):
    """What a command on the stand-in prints to stdout, every line of which says so."""
    done = bench(command, "--device", stand_in.NAME, *arguments, **how)
    assert done.returncode == code, done.stdout + done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == stand_in.WORDS and done.stderr.startswith(stand_in.WORDS)
    assert all(line.startswith(stand_in.MARK) for line in lines if line)
    return done.stdout + done.stderr


def beside_the_kernels(kind):
    return list(ROOT.glob(f"kernels/*/{kind}/stand-in*"))


def test_it_is_as_unkind_as_cuda():
    """In one process for all files: each takes seconds to start."""
    files = ("on_the_stand_in", "products_on_the_stand_in", "timed_on_the_stand_in")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *(f"tests/{file}.py" for file in files),
            "-p",
            "no:cacheprovider",
            "--no-header",
        ],
        cwd=ROOT,
        env={**os.environ, **stand_in.environment()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.fixture(scope="module")
def smoke():
    """A run of every variant on it, on the problems that are small enough to be
    emulated: what it printed, and the folder of the run.
    """
    return shared.make_once("a run on the stand-in", _run_smoke)


def _run_smoke(folder):
    done = bench(
        "run",
        "--device",
        stand_in.NAME,
        "--profile",
        "smoke",
        "-k",
        "float16 and (tiny or digits or layer_norm)",
        "--out",
        str(folder / "runs"),
        "--history",
        str(folder / "history"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run_folder,) = (folder / "runs").iterdir()
    return done, run_folder


@pytest.mark.slow
def test_a_whole_run_measures_every_variant_or_says_why_not(smoke):
    _, folder = smoke
    run = run_json.load(folder)
    assert {record.op for record in run.records if record.status == MEASURED} == {
        name
        for name, op in kernels.ops.items()
        if any("float16" in scenario.dtypes for scenario in op.scenarios.values())
    }
    statuses = {}
    for record in run.records:
        statuses.setdefault(f"{record.op}/{record.variant}", set()).add(record.status)
    expected = {case.variant.id for case in planned("smoke", "cuda").cases}
    assert set(statuses) == expected
    assert set().union(*statuses.values()) <= {MEASURED, NOT_HERE, UNSUPPORTED}
    unmeasured = {name for name, found in statuses.items() if MEASURED not in found}
    assert unmeasured == {name for name in expected if _declined(name, run)}
    for record in run.records:
        if record.status == MEASURED:
            assert set(record.facts["clocks"]) == {
                "device_cold",
                "device_hot",
                "graph",
                "host",
            }


@pytest.mark.slow
def test_torch_compile_is_declined_with_a_reason(smoke):
    _, folder = smoke
    slow = {
        case.variant.id
        for case in planned("smoke", "cuda").cases
        if case.variant.slow_start
    }
    declined = [
        record
        for record in run_json.load(folder).records
        if f"{record.op}/{record.variant}" in slow
    ]
    assert {f"{record.op}/{record.variant}" for record in declined} == slow
    assert all(record.status != MEASURED and record.reason for record in declined)
    assert any(record.reason.startswith(stand_in.NAME) for record in declined)


def _declined(name, run):
    """Whether it needs the CPU, takes seconds to compile, or takes none of the small
    problems.
    """
    return all(
        record.status in (NOT_HERE, UNSUPPORTED) and record.reason
        for record in run.records
        if f"{record.op}/{record.variant}" == name
    )


@pytest.mark.slow
def test_all_that_it_writes_says_that_no_time_was_measured(smoke):
    done, folder = smoke
    assert stand_in.WORDS in done.stderr and "no time here was measured" in " ".join(
        done.stdout.split()
    )
    for path in folder.iterdir():
        if path.suffix in (".md", ".json", ".html", ".svg", ".xml"):
            assert "no time here was measured" in path.read_text(
                encoding="utf-8"
            ), path.name


@pytest.mark.slow
def test_nothing_is_built_upon_it(smoke):
    _, folder = smoke
    with pytest.raises(UsageError, match=stand_in.WORDS):
        compare.compare(folder, folder)
    with pytest.raises(UsageError, match=stand_in.WORDS):
        dispatch._evidence(folder, "cpu")
    assert history.append(run_json.load(folder), folder / "history") is None


@pytest.mark.slow
def test_tuned_configurations_go_into_a_folder_of_their_own(tmp_path):
    on_it(
        "tune",
        "--profile",
        "smoke",
        "-k",
        "grad_stats/triton_one_read",
        folder=tmp_path,
    )
    (path,) = (tmp_path / "reports" / "runs").glob("*-tune/grad_stats-stand-in*.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert (
        document["stand_in"] == stand_in.WORDS
        and document["winners"]["triton_one_read"]
    )
    assert not beside_the_kernels("tuning")


@pytest.mark.slow
def test_the_tables_of_its_runs_go_into_the_folder_of_the_run(smoke):
    _, folder = smoke
    on_it("dispatch", "--run", str(folder), "-k", "grad_stats")
    (path,) = (folder / dispatch.TABLES).glob("grad_stats-*.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["stand_in"] == stand_in.WORDS and any(
        entry["faster"] for entry in document["winners"]
    )
    assert not beside_the_kernels("dispatch")


@pytest.mark.slow
def test_what_is_stored_of_it_says_so_wherever_it_is_shown(smoke):
    _, folder = smoke
    case = next(
        record.id
        for record in run_json.load(folder).records
        if record.status == MEASURED
    )
    for arguments in (("explain", case, "--run", str(folder)), ("report", str(folder))):
        done = bench(*arguments)
        assert done.returncode == 0, done.stderr
        assert "no time here was measured" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_profiler_has_nothing_to_see(tmp_path):
    said = on_it(
        "profile", "bmm/triton_naive/tiny_4/float16/B1", code=3, folder=tmp_path
    )
    assert "was called, and no profiler sees" in " ".join(said.split())


@pytest.mark.parametrize(
    "arguments", [("list", "--device", "cpu"), ("codegen",)], ids=" ".join
)
def test_a_variable_that_was_left_set_measures_and_compiles_nothing_else(arguments):
    done = bench(*arguments, **{stand_in.VARIABLE: "1"})
    assert (
        done.returncode == 2
        and "unset it" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


@pytest.mark.slow
def test_with_one_of_its_variables_set_a_command_has_them_all(tmp_path):
    assert "timed here" in on_it(
        "list", "--profile", "smoke", **{stand_in.VARIABLE: "1"}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, options",
    [("aa", ()), ("selftest", ()), ("noise-cost", ("--seconds", "0.2"))],
    ids=["aa", "selftest", "noise-cost"],
)
def test_what_is_timed_twice_or_beside_others(tmp_path, command, options):
    profile = (
        ()
        if command == "noise-cost"
        else ("--profile", "smoke", "--into", str(tmp_path))
    )
    on_it(command, *profile, *options)
    for path in tmp_path.iterdir():
        assert "no time here was measured" in path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["noise", "claims"])
def test_a_study_of_both_workloads_and_the_advice_from_it(tmp_path, command):
    on_it(command, "--profile", "smoke", "--out", str(tmp_path))
    (folder,) = tmp_path.iterdir()
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert [
        name for name, one in study["noise"]["workloads"].items() if one["points"]
    ] == ["digits", "characters"]
    for path in folder.iterdir():
        if path.suffix != ".png":
            assert "no time here was measured" in path.read_text(
                encoding="utf-8"
            ), path.name
    advised = bench("advise", "--run", str(folder))
    assert advised.returncode == 0 and advised.stdout.startswith(stand_in.WORDS)


@pytest.mark.slow
def test_advice_is_measured_on_it(tmp_path):
    assert "Train at batch" in on_it(
        "advise", "--profile", "smoke", "--workload", "digits", folder=tmp_path
    )


@pytest.mark.slow
def test_a_changed_kernel_is_compared_with_the_one_before(tmp_path):
    for name in ("batchline", "bench", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
    for arguments in (
        ["init", "--quiet"],
        ["add", "."],
        ["commit", "--quiet", "--message", "base"],
    ):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    kernel = tmp_path / "kernels" / "bmm" / "triton_naive.py"
    kernel.write_text(
        kernel.read_text(encoding="utf-8").replace(
            "    return c\n", "    return c + 0\n"
        ),
        encoding="utf-8",
    )
    on_it(
        "regress",
        "--base",
        "HEAD",
        "--profile",
        "smoke",
        "-k",
        "bmm and tiny_4 and (triton_naive or torch_bmm)",
        "--budget",
        "0.5",
        code=3,
        folder=tmp_path,
        sources=tmp_path,
    )


EVERY_PART = "clocks,tests,sanitizer,cases,noise,dispatch"


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["tests,sanitizer,cases", EVERY_PART])
def test_evidence_of_it_goes_to_its_end_and_is_none(tmp_path, parts):
    done = bench(
        "evidence",
        "--device",
        stand_in.NAME,
        "--part",
        parts,
        "-k",
        "tiny_16 and torch_bmm",
        "--into",
        str(tmp_path / "made"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of them run here" in done.stderr and "in all" in done.stderr
    text = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    assert ("Partial" in text) == (parts != EVERY_PART) and "Not to its end" not in text
    assert (
        text.count("Left out: there is no GPU here") == 2
        and "Nothing to show" not in text
    )
    files = list((tmp_path / "made").iterdir())
    assert len(files) <= 8 and {
        "README.md",
        "evidence.json",
        "run.json.gz",
        "report.md",
    } <= {path.name for path in files}
    for path in files:
        assert stand_in.WORDS.removeprefix("stand-in: ") in read_text(path), path.name


def test_it_is_never_among_the_committed_evidence():
    done = bench(
        "evidence", "--device", stand_in.NAME, "--into", "reports/evidence/made-up"
    )
    assert (
        done.returncode == 2 and f"{stand_in.WORDS}: it is no evidence" in done.stderr
    )
    assert not (ROOT / "reports" / "evidence" / "made-up").exists()
