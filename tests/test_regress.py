"""`batchline regress` from end to end, on a repository of its own: real checkouts, real
processes, real times.
"""

import os
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

from batchline.bench.store import regressions
from batchline.bench.store.regressions import (
    IDENTICAL,
    LATENCY,
    MISSING,
    NEW,
    REGRESSED,
)
from tests.trees import copy_sources

pytestmark = pytest.mark.commands

VARIANT = '''"""{idea}"""
import torch

from batchline.kernels.grad_reduce import grad_reduce


@grad_reduce.variant(backend="torch")
def {name}(g):
    {body}
'''
READS = """from pathlib import Path

    for _ in range(int((Path(__file__).parents[2] / "assets" / "times.txt").read_text())):
        mean = g.mean(0)
    return mean"""
CHOSEN = "grad_reduce/torch and layer_norm and B16"


def variant(root, name, body):
    (root / "kernels" / "grad_reduce" / f"{name}.py").write_text(
        VARIANT.format(idea="An idea.", name=name, body=body)
    )


def git(root, *arguments):
    somebody = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", *somebody, *arguments],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A commit with four more variants; the working tree makes one slower, one wrong
    and one slower by what it reads.

    It adds one more, and removes one.
    """
    root = copy_sources(tmp_path_factory.mktemp("repository"))
    variant(root, "torch_slows", "return g.mean(0)")
    variant(root, "torch_errs", "return g.mean(0)")
    variant(root, "torch_goes", "return g.mean(0)")
    variant(root, "torch_reads", READS)
    (root / ".gitignore").write_text("__pycache__/\n")
    (root / "assets").mkdir()
    (root / "assets" / "times.txt").write_text("1")
    git(root, "init", "--quiet")
    git(root, "add", "-A")
    git(root, "commit", "--quiet", "-m", "base")
    variant(
        root,
        "torch_slows",
        "return (g.mean(0) + g.mean(0) + g.mean(0) + g.mean(0)) / 4",
    )
    variant(root, "torch_errs", "return g.mean(0) * 1.01")
    (root / "assets" / "times.txt").write_text("50")
    variant(root, "torch_new_idea", "return g.mean(0)")
    (root / "kernels" / "grad_reduce" / "torch_goes.py").unlink()
    return root


def command(*arguments):
    return [
        sys.executable,
        "-m",
        "batchline",
        "regress",
        "--profile",
        "smoke",
        "--device",
        "cpu",
        *arguments,
    ]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def regressed(repository, temporary, tmp_path_factory):
    summary = tmp_path_factory.mktemp("ci") / "summary.md"
    done = subprocess.run(
        command("--base", "HEAD", "-k", CHOSEN),
        cwd=repository,
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_ACTIONS": "true",
            "TMPDIR": str(temporary),
        },
    )
    (folder,) = (repository / "reports" / "runs").iterdir()
    return done, folder, summary.read_text()


@pytest.mark.slow
def test_each_case_has_its_verdict(regressed):
    done, folder, _ = regressed
    assert done.returncode == 1, done.stderr
    found = regressions.load(folder)
    assert found.void is None
    verdicts = {
        row.id.split("/")[1]: row for row in found.cases if row.quantity == LATENCY
    }
    assert {name: row.verdict for name, row in verdicts.items()} == {
        "torch_mean": IDENTICAL,
        "torch_slows": REGRESSED,
        "torch_errs": REGRESSED,
        "torch_reads": REGRESSED,
        "torch_new_idea": NEW,
        "torch_goes": MISSING,
    }
    slow = verdicts["torch_slows"]
    assert (
        slow.effect > 0.5
        and slow.pairs == 10
        and slow.low > slow.floor
        and slow.base > 1e-6
    )
    assert verdicts["torch_errs"].reason.startswith("the base works; head: wrong: on ")
    assert [state["pair"] for state in found.states] == list(
        range(1, 11)
    ) and found.states[0]["throttled"] == {}
    assert (
        len(found.ratios[LATENCY][verdicts["torch_mean"].id])
        == found.about["pairs"]
        == 10
    )  # a control, in each


@pytest.mark.slow
def test_it_is_said_in_each_place(regressed):
    done, folder, summary = regressed
    assert "3 of 6 cases REGRESSED: " in done.stdout and "Traceback" not in done.stderr
    assert done.stdout.count("::error ") == 3
    assert (
        "torch_slows" in (folder / "README.md").read_text() and "torch_slows" in summary
    )
    suite = ElementTree.parse(folder / "junit.xml").getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("3", "0")


@pytest.mark.slow
def test_nothing_is_left_behind(regressed, repository, temporary):
    assert git(repository, "worktree", "list").count("\n") == 1
    assert not list(temporary.glob("batchline-base-*"))


def _ctrl_c_counts():
    """In a process that a shell has put into the background it is ignored, and that is
    inherited.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_no_tree_and_no_empty_folder(repository, tmp_path):
    before = set((repository / "reports" / "runs").glob("*"))
    process = subprocess.Popen(
        command("--base", "HEAD", "-k", CHOSEN),
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_ctrl_c_counts,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    deadline = time.monotonic() + 300
    while (
        not list(tmp_path.glob("batchline-base-*/tree/kernels"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it goes on: {process.communicate()[1]}")
    # A shell says 130 of both: CPython ends by the signal itself where it came inside
    # an exec of a string, in imports.
    assert (
        process.returncode in (130, -signal.SIGINT) and "Traceback" not in errors
    ), errors
    assert not list(tmp_path.glob("batchline-base-*"))
    assert all(
        any(folder.iterdir())
        for folder in set((repository / "reports" / "runs").glob("*")) - before
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--base", "nowhere"), "git knows no revision 'nowhere'"),
        (("--base", ""), "say what to compare with"),
        pytest.param(
            ("--base", "HEAD", "-k", "nothing_at_all"),
            "-k 'nothing_at_all' matches none of the",
            marks=pytest.mark.slow,
        ),
        (("--base", "HEAD", "--budget", "0"), "leaves no time"),
    ],
)
def test_a_wrong_call_is_a_line_and_2(repository, arguments, words):
    done = subprocess.run(
        command(*arguments), cwd=repository, capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and words in done.stderr
        and len(done.stderr.splitlines()) == 1
    ), done.stderr


def test_a_ctrl_c_while_pytest_selects_is_one(monkeypatch):
    from batchline.bench import selection

    monkeypatch.setattr(
        selection.pytest, "main", lambda *arguments, **how: pytest.ExitCode.INTERRUPTED
    )
    with pytest.raises(KeyboardInterrupt):
        selection.selected(
            ["bmm/torch_bmm/tiny_16/float32/B1"], "tiny_16", "of profile smoke"
        )
