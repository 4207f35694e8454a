"""A run that is stopped or killed, from the outside: what was measured is kept, and no
worker outlives it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchline.bench.statuses import MEASURED, NOT_REACHED
from batchline.bench.stopping import put_off
from batchline.bench.store import journal, run_json
from tests.trees import copy_sources

pytestmark = pytest.mark.commands

ROOT = Path(__file__).resolve().parents[1]
BENCH = [sys.executable, "-m", "batchline"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """kernels/ and bench/, with a variant that is slow enough to be stopped in, and
    without the ceilings' seconds.
    """
    root = copy_sources(tmp_path_factory.mktemp("sources"), measures_ceilings=False)
    (root / "kernels" / "bmm" / "torch_zz_slow.py").write_text(
        '"""Takes its time."""\nimport time\n\nimport torch\n\nfrom batchline.kernels.bmm import bmm\n\n\n'
        '@bmm.variant(backend="torch")\ndef torch_zz_slow(a, b):\n'
        "    if a.shape[0] == 3 and a.shape[1] == 4:\n        time.sleep(1)\n    return torch.bmm(a, b)\n"
    )
    return root


@pytest.fixture
def stopped(sources, tmp_path):
    """Starts a run, waits until its first problem is in the journal, and gives the
    process and its folder.
    """
    started = []

    def start():
        process = subprocess.Popen(
            [
                *BENCH,
                "run",
                "--profile",
                "smoke",
                "--device",
                "cpu",
                "-k",
                "tiny_4 and (torch_bmm or zz_slow) and not torch_bmm_",
                "--out",
                str(tmp_path / "runs"),
                "--history",
                str(tmp_path / "history"),
            ],
            cwd=sources,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hear_all,
        )
        started.append(process)
        return process, _folder_with_two_cases(tmp_path / "runs", process)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _hear_all():
    """A shell tells its background jobs to ignore Ctrl-C, and they hand it on."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _folder_with_two_cases(parent, process):
    while process.poll() is None:
        for path in parent.glob(f"*/{journal.FILE_NAME}"):
            if path.read_text().count('"case":') == 2:
                return path.parent
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


def _workers(process):
    children = (
        Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    )
    return [int(child) for child in children]


def _are_gone(pids):
    for _ in range(100):
        if not any(
            Path(f"/proc/{pid}").exists()
            and "zombie" not in Path(f"/proc/{pid}/status").read_text()
            for pid in pids
        ):
            return True
        time.sleep(0.1)
    return False


def _assert_two_of_six_are_kept(folder):
    run = run_json.load(folder)
    assert [record.status for record in run.records] == [MEASURED] * 2 + [
        NOT_REACHED
    ] * 4
    assert run.partial and run.why_no_ceilings == "left out here"
    assert len(run.records[0].samples_s) >= 6
    assert "**Partial.**" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGQUIT], ids=lambda number: number.name
)
def test_a_closed_terminal_and_a_quit_are_as_ctrl_c(stopped, number):
    process, folder = stopped()
    workers = _workers(process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and "PARTIAL" in output and "Traceback" not in errors
    )
    _assert_two_of_six_are_kept(folder)
    assert _are_gone(workers)


@pytest.mark.slow
def test_more_ctrl_c_stop_the_report_and_lose_nothing(stopped, sources):
    process, folder = stopped()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, errors = process.communicate(timeout=60)
    assert (
        process.returncode in (130, -signal.SIGINT) and "Traceback" not in errors
    )  # the last may find it at its exit
    assert (
        folder / run_json.FILE_NAME
    ).exists()  # the second finds it stored, or waits until it is
    subprocess.run(
        [*BENCH, "report", str(folder)], cwd=sources, capture_output=True, check=True
    )
    _assert_two_of_six_are_kept(folder)


def test_a_run_that_is_killed_is_reported_from_its_journal(stopped, sources):
    process, folder = stopped()
    workers = _workers(process)
    process.kill()
    process.communicate()
    assert _are_gone(workers) and not (folder / run_json.FILE_NAME).exists()
    with (folder / journal.FILE_NAME).open("a") as file:
        file.write(
            '{"case":"bmm/torch_bmm/tiny_4/float32/B3","status":"meas'
        )  # killed in the middle of a line
    done = subprocess.run(
        [*BENCH, "report", str(folder)], cwd=sources, capture_output=True, text=True
    )
    assert done.returncode == 0 and "PARTIAL" in done.stdout
    (closing,) = done.stderr.splitlines()
    assert closing.startswith("batchline report: the report is written (")
    _assert_two_of_six_are_kept(folder)


def test_a_signal_in_what_must_be_done_whole_counts_after_it():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    done = []
    try:
        with pytest.raises(KeyboardInterrupt):
            with put_off():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("whole")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done == ["whole"]


def test_a_process_that_is_just_started_hears_no_ctrl_c():
    """Not even the first one, at whose start multiprocessing changes the mask."""
    mask = "import signal; print(signal.SIGINT in signal.pthread_sigmask(0, ()))"
    start = f"""
from multiprocessing import get_context
from batchline.bench.stopping import put_off_and_kept_from_children
with put_off_and_kept_from_children():
    child = get_context("spawn").Process(target=exec, args=({mask!r},))
    child.start()
child.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr
