"""The mould: workers are forked from it quickly, and nothing that a variant leaves
behind outlives its worker.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from batchline.bench.measure.worker import worker
from batchline.bench.statuses import MEASURED
from tests import fake_worker
from tests.fake_worker import task

pytestmark = pytest.mark.commands

LEAVES = (
    "edits_at_exit",
    "leaves_a_daemon",
    "leaves_a_daemon_and_kills_its_parent",
    "stops_its_parent",
    "forks_20",
)
PROGRAM = """
import sys
import pytest
from tests import fake_worker

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        isolated = fake_worker.isolated(patch, sys.argv[1], 5)
        print(isolated._mould._process.pid, flush=True)
        isolated.measure(fake_worker.task(*sys.argv[2:]))
        print("measured", flush=True)
        sys.stdin.read(1)
        isolated.close()
"""


@pytest.fixture
def isolated(monkeypatch, tmp_path):
    opened = fake_worker.isolated(monkeypatch, tmp_path, deadline_s=5)
    yield opened
    opened.close()


def program(tmp_path, *variants):
    """A run of its own, which waits for a line on its input when it has measured the
    variants.
    """
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, path, tmp_path, *variants],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )


def wait_until(holds, seconds=10):
    until_s = time.monotonic() + seconds
    while not holds() and time.monotonic() < until_s:
        time.sleep(0.05)
    return holds()


@pytest.mark.parametrize("variant", LEAVES)
def test_nothing_that_a_variant_leaves_behind_edits_the_run_later(
    isolated, tmp_path, variant
):
    mark = f"BATCHLINE_MOULD={isolated._mould._mark}"
    outcomes = isolated.measure(task("good", variant))
    assert outcomes["good"].status == MEASURED
    isolated.close()
    assert not worker.marked(mark)
    time.sleep(1.5)
    assert not (tmp_path / "run.json").exists()


def test_a_fresh_worker_has_none_of_what_the_last_one_left(isolated):
    isolated.measure(task("forks_20"))
    isolated.renew()
    assert not worker.descendants(isolated._mould._process.pid)
    assert isolated.call("room") == 1
    assert len(worker.descendants(isolated._mould._process.pid)) == 1


def test_a_run_that_is_killed_leaves_nothing_running(tmp_path):
    with program(tmp_path, "leaves_a_daemon", "good") as run:
        mould_pid = int(run.stdout.readline())
        assert run.stdout.readline() == "measured\n" and worker.descendants(mould_pid)
        run.kill()
    assert wait_until(lambda: not os.path.exists(f"/proc/{mould_pid}"))
    time.sleep(1.5)
    assert not (tmp_path / "run.json").exists()


def test_ctrl_c_is_the_runs_and_not_its_workers(tmp_path):
    with program(tmp_path, "good") as run:
        mould_pid = int(run.stdout.readline())
        assert run.stdout.readline() == "measured\n"
        assert (
            os.getpgid(mould_pid) == mould_pid
        )  # not the run's group, which the terminal's Ctrl-C goes to
        for pid in (mould_pid, *worker.descendants(mould_pid)):
            os.kill(pid, signal.SIGINT)
        _, errors = run.communicate("\n", timeout=30)
    assert run.returncode == 0 and "KeyboardInterrupt" not in errors


def test_what_a_variant_prints_can_not_speak_to_the_ci(tmp_path):
    with program(tmp_path, "prints_commands") as run:
        output, errors = run.communicate("\n", timeout=30)
    assert output.splitlines()[1:] == ["measured"]
    assert "an honest line" in errors and "gone" in errors and "by a child" in errors
    assert "\x1b" not in errors and "##[" not in errors
    assert not any(line.lstrip().startswith("::") for line in errors.splitlines())


def test_60_mb_of_output_are_cut_and_stop_nobody(tmp_path):
    with program(tmp_path, "prints_60_mb") as run:
        output, errors = run.communicate("\n", timeout=60)
    assert output.splitlines()[1:] == ["measured"]
    assert len(errors) < 100_000 and errors.endswith(
        "(it printed more than 64 KiB: the rest is left out)\n"
    )
