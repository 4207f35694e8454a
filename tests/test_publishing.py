"""What a run comes to at its end: each part by itself, in any locale, with any
neighbour, on any disk.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchline.bench import publishing, report
from batchline.bench.report import RunReport, junit
from batchline.bench.report.render import github, html
from batchline.bench.report.sections import choices
from batchline.bench.statuses import FAILED, MEASURED
from batchline.bench.store import files, history, journal, run_json
from batchline.bench.store.formats import OURS
from tests.runs import changed, save_document
from tests.test_records import document
from tests.trees import copy_sources

pytestmark = pytest.mark.commands

REPOSITORY = Path(__file__).resolve().parents[1]
BENCH = [sys.executable, "-m", "batchline"]
PARTS = ["README.md", "index.html", "junit.xml", "bmm-tiny_16-float32.png"]


@pytest.fixture
def stored(tmp_path):
    folder = tmp_path / "2026-01-02-run"
    folder.mkdir()
    save_document(folder, document())
    return folder


def _report(folder, **environment):
    return subprocess.run(
        [*BENCH, "report", str(folder)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
    )


def _but_closing_line(errors):
    """What is on stderr beside the line that says how the command ended."""
    return [
        line
        for line in errors.splitlines()
        if not line.startswith("batchline report: ")
    ]


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"MPLBACKEND": "not_there"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_a_report_is_made_whole_in_any_environment(stored, environment):
    done = _report(stored, **environment)
    assert done.returncode == 0 and _but_closing_line(done.stderr.decode()) == []
    assert all((stored / name).exists() for name in PARTS)
    assert "µs" in (stored / "README.md").read_text(encoding="utf-8")
    shown = done.stdout.decode("utf-8" if "MPLBACKEND" in environment else "ascii")
    assert ("2.50µs" if "MPLBACKEND" in environment else "2.50us") in shown


@pytest.mark.parametrize(
    "redirection, code, words",
    [
        ("> /dev/full", 1, "can't print to stdout (No space left on device)"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("| head -1", 0, ""),
    ],
)
def test_a_report_is_written_also_where_it_can_not_be_printed(
    stored, redirection, code, words
):
    done = subprocess.run(
        f"{sys.executable} -m batchline report {stored} {redirection}; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert _but_closing_line(done.stderr) == ([f"batchline: {words}"] if words else [])
    assert all((stored / name).exists() for name in PARTS)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        '"text"',
        '{"batchline": 1}',
        "null",
        "[" * 100_000,
        json.dumps(document() | {OURS: {"cases": [], "started": 3}}),
    ],
)
def test_a_damaged_neighbour_is_passed_over(stored, damage):
    neighbour = stored.parent / "2026-01-01-damaged"
    neighbour.mkdir()
    (neighbour / run_json.FILE_NAME).write_text(damage)
    assert report.before(run_json.load(stored), stored) is None


def test_a_run_before_that_can_not_be_compared_is_said_and_costs_no_report(
    stored, monkeypatch
):
    monkeypatch.setattr(choices, "compare", lambda *_: {}["clock"])
    run = run_json.load(stored)
    earlier = changed(run, started="2026-01-01T00:00:00+00:00")
    assert (
        "Against the last run: It can't be compared (KeyError: 'clock')."
        in report.terminal(RunReport(run, previous=earlier))
    )


@pytest.mark.parametrize(
    "module, function, what",
    [
        (report, "draw", "drawing the plots failed"),
        (report, "write_readme", "README.md failed"),
        (html, "write", "the page failed"),
        (junit, "of_a_run", "junit.xml failed"),
        (report, "terminal", "the report on the terminal failed"),
        (run_json, "save_benchmark_json", "benchmark.json failed"),
        (history, "append", "the history failed"),
        (github, "step_summary", "the step's summary failed"),
        (github, "announce", "the annotations failed"),
    ],
)
def test_a_part_that_fails_is_a_line_and_costs_no_other(
    stored, monkeypatch, capsys, module, function, what
):
    def fail(*_):
        raise ZeroDivisionError("\ud800 on\na Sunday")

    monkeypatch.setattr(module, function, fail)
    assert not publishing.publish(
        run_json.load(stored), stored, stored.parent / "history"
    )
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(
        f"batchline: {what}: ZeroDivisionError: \ufffd on (at test_publishing.py:"
    )
    made = [(stored / name).exists() for name in PARTS]
    assert made.count(False) == (
        function != "terminal" and module not in (run_json, history, github)
    )
    assert list((stored.parent / "history").glob("*.jsonl")) or module is history
    assert f"report: {stored / 'README.md'}" in printed.out


def test_what_can_be_stored_nowhere_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_other_folders", lambda: iter([tmp_path / "gone"]))
    with pytest.raises(OSError, match="No such file"):
        journal.store(run_json.parse(document()), tmp_path / "gone")


HOSTILE = '''"""::error::idea \\udcff \\x1b[31mred"""
import torch

from batchline.kernels.bmm import bmm


def _megabytes():
    print("::error::printed by it", flush=True)
    raise ValueError("::stop-commands::x \\ud800 \\x1b]0;title\\x07" + "a" * 60_000_000)


@bmm.variant(backend="torch")
def torch_hostile(a, b):
    return torch.bmm(a, b) if a.shape[0] == 1 else _megabytes()
'''


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """kernels/ and bench/ with a hostile variant, a file that no case can name, and a
    damaged tuning file.
    """
    from batchline.kernels.device_files import file_for

    root = copy_sources(tmp_path_factory.mktemp("sources"), measures_ceilings=False)
    (root / "kernels" / "bmm" / "torch_hostile.py").write_text(HOSTILE)
    (root / "kernels" / "bmm" / "torch_größe.py").write_text("", encoding="utf-8")
    for kind in ("bmm", "grad_reduce"):
        tuning = file_for(root / "kernels" / kind, "tuning", "cpu")
        tuning.parent.mkdir(exist_ok=True)
        tuning.write_text("{damaged")
    return root


@pytest.fixture
def full(tmp_path):
    """A temporary folder on a file system that is full; skips where none can be
    mounted.
    """
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)],
        capture_output=True,
    ).returncode:
        pytest.skip("mounting a file system takes root")
    try:
        with pytest.raises(OSError), (folder / "filler").open(
            "wb", buffering=0
        ) as file:
            while file.write(b"0" * 4096):
                pass
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_hostile_variant_in_an_ascii_ci_with_a_full_temporary_folder(
    sources, full, tmp_path
):
    out, summary = tmp_path / "runs", tmp_path / "summary.md"
    environment = {
        "PYTHONIOENCODING": "ascii",
        "TMPDIR": str(full),
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(summary),
        "MPLBACKEND": "not_there",
    }
    done = subprocess.run(
        [
            *BENCH,
            "run",
            "--profile",
            "smoke",
            "--device",
            "cpu",
            "-k",
            "tiny_16 and (torch_bmm or hostile)",
            "--out",
            str(out),
            "--history",
            str(tmp_path / "kept"),
        ],
        cwd=sources,
        env=os.environ | environment,
        capture_output=True,
    )
    errors, shown = done.stderr.decode("ascii"), done.stdout.decode("ascii")
    assert done.returncode == 1 and "Traceback" not in errors, errors
    assert (
        "kernels/bmm/torch_gr\\xf6\\xdfe.py: failed: its name can't be part of a case id"
        in errors
    )
    (folder,) = out.iterdir()
    run = run_json.load(folder)
    statuses = {(record.variant, record.batch): record.status for record in run.records}
    assert statuses == {
        ("torch_bmm", 1): MEASURED,
        ("torch_bmm", 3): MEASURED,
        ("torch_bmm", 16): MEASURED,
        ("torch_hostile", 1): FAILED,
        ("torch_hostile", 3): FAILED,
        ("torch_hostile", 16): FAILED,
    }
    reason = next(record.reason for record in run.records if record.status == FAILED)
    assert (
        reason.startswith("ValueError: : :stop-commands::x \ufffd aaaa")
        and len(reason) < 600
    )
    assert (
        reason.endswith("characters more)")
        and "is not a tuning file" in run.ops["bmm"].tuning.why_not
    )
    assert all((folder / name).exists() for name in PARTS) and list(
        (tmp_path / "kept").glob("*.jsonl")
    )
    commands = [
        line
        for line in shown.splitlines()
        if line.lstrip().startswith("::") or "##[" in line
    ]
    assert [line.partition("::bmm")[0].partition("::its")[0] for line in commands] == [
        "::error title=failed%3A bmm/torch_hostile",
        "::error title=failed%3A kernels/bmm/torch_gr\\xf6\\xdfe.py",
    ]
    for text in (
        shown,
        summary.read_text(encoding="utf-8"),
        (folder / "README.md").read_text(encoding="utf-8"),
    ):
        assert (
            "\x1b" not in text and "::stop-commands" not in text and len(text) < 200_000
        )
    assert journal.read(folder).records == run.records
