"""torchrun starts `batchline run` on several ranks: one run, with the verdicts of one
rank, whatever becomes of the others.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import batchline
from batchline.bench.statuses import MEASURED
from batchline.bench.store import journal

pytestmark = pytest.mark.commands

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
RUN = ("-m", "batchline", "run", "--profile", "smoke", "--device", "cpu")
CASES = "grad_reduce/torch_mean and digits or grad_reduce/numba_cuda_static and digits"
LONGEST_S = 900


def start(folder, *launcher):
    """`batchline run` of few cases, whose folders lie in `folder`."""
    environment = {**os.environ, "BATCHLINE_MOST_BUSY": "1"}
    for name in ("RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    folders = "--out", str(folder / "runs"), "--history", str(folder / "history")
    return subprocess.Popen(
        [sys.executable, *launcher, *RUN, "-k", CASES, *folders],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_in(folder):
    """The one run that a command has written."""
    (one,) = (folder / "runs").iterdir()
    return batchline.load(one)


def statuses(run):
    return {record.id: record.status for record in run.records}


def children(pid):
    return [
        int(child)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def rank_of(launcher, rank):
    """The process of a rank, once torchrun has started it."""
    wanted = f"RANK={rank}".encode()
    return wait_for(
        lambda: next(
            (
                pid
                for pid in children(launcher.pid)
                if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ),
            None,
        ),
        launcher,
    )


def server_of(launcher, rank):
    """The process that measures on a rank's device."""
    watching = rank_of(launcher, rank)
    return wait_for(
        lambda: next(
            (
                pid
                for pid in children(watching)
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ),
            None,
        ),
        launcher,
    )


def wait_for(what, launcher):
    until_s = time.monotonic() + LONGEST_S
    while time.monotonic() < until_s and launcher.poll() is None:
        try:
            if result := what():
                return result
        except OSError:  # a process has just ended
            pass
        time.sleep(0.1)
    pytest.fail(f"it did not come to that: {launcher.communicate()[0]}")


def has_measured(folder):
    """Whether a case of the run is in its journal."""
    return any(MEASURED in path.read_text() for path in folder.rglob(journal.FILE_NAME))


def test_four_ranks_give_the_verdicts_of_one_and_a_rank_that_dies_costs_none(tmp_path):
    alone, four = tmp_path / "alone", tmp_path / "four"
    command = start(alone)
    printed, _ = command.communicate(timeout=LONGEST_S)
    assert command.returncode == 0, printed
    launcher = start(four, *TORCHRUN, "4")
    server = server_of(launcher, 1)
    wait_for(lambda: list(four.rglob(journal.FILE_NAME)), launcher)
    os.kill(server, signal.SIGKILL)
    printed, _ = launcher.communicate(timeout=LONGEST_S)
    assert launcher.returncode == 0, printed
    assert "rank 1 has ended: its process was ended by SIGKILL" in printed
    run = run_in(four)
    assert statuses(run) == statuses(run_in(alone))
    assert MEASURED in statuses(run).values() and not run.partial
    assert [one["rank"] for one in run.machine["ranks"]] == [0, 1, 2, 3]
    by_problem = {}
    for record in run.records:
        if record.status == MEASURED:
            problem = record.op, record.scenario, record.dtype, record.batch
            by_problem.setdefault(problem, set()).add(record.rank)
    assert all(len(ranks) == 1 for ranks in by_problem.values())
    assert {rank for ranks in by_problem.values() for rank in ranks} <= {0, 1, 2, 3}


@pytest.mark.slow
def test_after_a_restart_by_torchrun_nothing_is_measured_twice(tmp_path):
    launcher = start(tmp_path, *TORCHRUN, "2", "--max-restarts", "1")
    wait_for(lambda: has_measured(tmp_path), launcher)
    os.kill(rank_of(launcher, 1), signal.SIGKILL)
    printed, _ = launcher.communicate(timeout=LONGEST_S)
    assert launcher.returncode == 0, printed
    first, second = sorted(
        (tmp_path / "runs").iterdir(), key=lambda one: one.stat().st_ctime
    )
    before, after = (
        {record.id: record for record in journal.read(one).records}
        for one in (first, second)
    )
    kept = [name for name, one in before.items() if one.status == MEASURED]
    assert kept
    for name in kept:
        assert after[name].samples_s == before[name].samples_s
    assert not batchline.load(second).partial
    assert all("not_reached" not in one.status for one in after.values())
