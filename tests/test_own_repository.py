"""From an empty folder to a repository with an op and two variants: its report, a wrong
variant that is a row, and a planted slow-down that its gate finds.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchline.bench.statuses import MEASURED, WRONG
from batchline.bench.store import regressions, run_json
from batchline.bench.store.regressions import REGRESSED
from tests.test_base_tree import commit, git

pytestmark = pytest.mark.commands
REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLE = REPOSITORY / "tests" / "own_repository"
VARIANT = "my_ops/row_scale/numba_cpu_loop.py"
WRONG_VARIANT = '''"""Off by a thousandth."""

from . import row_scale


@row_scale.variant(backend="torch", builds_on="torch_broadcast")
def torch_wrong(x, s):
    return x * (1.001 * s)[:, None]
'''
CALL = "    _kernel(x.detach().numpy(), s.detach().numpy(), y.numpy())\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The newcomer's: what `batchline new` writes, committed on main."""
    folder = tmp_path_factory.mktemp("own")
    git(folder, "init", "-q", "-b", "main")
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(EXAMPLE / name, folder / name)
    assert batchline(folder, "new", "op", "row_scale").returncode == 0
    done = batchline(folder, "new", "variant", "row_scale/numba_cpu_loop")
    assert done.returncode == 0, done.stderr
    commit(folder)
    return folder


def batchline(folder, *words):
    """The command in that folder, on a machine that may be busy with other tests."""
    return subprocess.run(
        [sys.executable, "-m", "batchline", *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "BATCHLINE_MOST_BUSY": "1",
        },
        capture_output=True,
        text=True,
    )


def test_a_run_reports_its_variants_and_a_wrong_one_is_a_row(repository):
    wrong = repository / "my_ops" / "row_scale" / "torch_wrong.py"
    wrong.write_text(WRONG_VARIANT)
    done = batchline(repository, "run", "--profile", "smoke", "-k", "B16")
    wrong.unlink()
    assert done.returncode == 1, done.stderr
    (folder,) = (repository / ".batchline" / "runs").iterdir()
    run = run_json.load(folder)
    statuses = {record.variant: record.status for record in run.records}
    assert statuses["torch_wrong"] == WRONG
    assert statuses["torch_broadcast"] == statuses["numba_cpu_loop"] == MEASURED
    assert set(run.ops) == {"row_scale"}
    head = git(repository, "rev-parse", "HEAD").strip()
    assert run.machine["revision"] == {"commit": head, "dirty": True}
    assert "row_scale" in (folder / "README.md").read_text()
    assert list((repository / ".batchline" / "history").glob("*.jsonl"))
    assert not (repository / ".benchmarks").exists()  # of pytest-benchmark


def test_a_slow_down_that_was_planted_fails_its_gate(repository):
    variant = repository / VARIANT
    right = variant.read_text()
    assert CALL in right
    variant.write_text(right.replace(CALL, 4 * CALL))
    selected = "numba_cpu_loop and B16", "--profile", "smoke"
    done = batchline(repository, "regress", "--base", "main", "-k", *selected)
    variant.write_text(right)
    assert done.returncode == 1, done.stdout + done.stderr
    (folder,) = (repository / ".batchline" / "runs").glob("*-regress*")
    regression = regressions.load(folder)
    (slower,) = regression.of(REGRESSED)
    assert slower.id == "row_scale/numba_cpu_loop/linear_64/float32/B16"


def test_a_gpu_kernel_that_does_more_fails_without_a_gpu(repository):
    """What its compiled code executes is pinned in the repository, and counted again."""
    pytest.importorskip("triton")
    assert (
        batchline(repository, "new", "variant", "row_scale/triton_row").returncode == 0
    )
    path = repository / "my_ops" / "row_scale" / "triton_row.py"
    text = path.read_text()
    text = text.replace('("float32", "float16", "bfloat16")', '("float32",)')
    path.write_text(text)
    pinned = batchline(repository, "codegen", "--pin")
    assert pinned.returncode == 0, pinned.stdout + pinned.stderr
    assert "all right" in pinned.stdout
    assert len(list((repository / ".batchline" / "baselines").glob("*.json"))) == 2
    load = "tl.load(x_ptr + row * stride_xb + offs * stride_xp, mask=inside)"
    assert load in text
    twice = load.replace("mask=inside", "mask=inside, volatile=True")
    path.write_text(text.replace(load, f"({load} + {twice}) / 2"))
    moved = batchline(repository, "codegen", "--only", "executed")
    assert moved.returncode == 1, moved.stdout + moved.stderr
    assert "(1.00x → 2.00x of the distinct ones) at triton_row.py:" in " ".join(
        moved.stdout.split()
    )
    path.unlink()


def test_a_base_without_its_ops_is_a_line(repository):
    git(repository, "checkout", "-q", "--orphan", "empty")
    git(repository, "rm", "-rq", "--cached", ".")
    git(repository, "commit", "-q", "--allow-empty", "-m", "nothing")
    git(repository, "symbolic-ref", "HEAD", "refs/heads/main")
    git(repository, "reset", "-q")
    done = batchline(repository, "regress", "--base", "empty")
    assert done.returncode == 2
    assert "has no ops in my_ops/ to compare with" in done.stderr


def test_a_run_of_ops_that_do_not_load_ends_with_a_line(tmp_path):
    op = tmp_path / "ops" / "broken" / "__init__.py"
    op.parent.mkdir(parents=True)
    op.write_text("def broken(:\n")
    done = batchline(tmp_path, "run", "--profile", "smoke", "--ops", "ops")
    assert done.returncode == 2 and "SyntaxError" in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("batchline: there are no cases of profile smoke")
    assert not list(tmp_path.rglob("run.json"))
