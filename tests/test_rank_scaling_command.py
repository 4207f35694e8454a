"""`batchline all-reduce` on gloo ranks of this machine, and what `advise` reads of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchline.bench import own_study
from batchline.bench.measure.machine import environment
from batchline.bench.noise.rank_scaling import Scaling
from batchline.bench.report.render import html
from batchline.bench.store import rank_times, run_json
from tests.rank_evidence import measured
from tests.runs import save_document
from tests.test_records import document

pytestmark = pytest.mark.commands
ROOT = Path(__file__).resolve().parents[1]


COMMAND = [sys.executable, "-m", "batchline", "all-reduce", "--device", "cpu"]


def all_reduce(*words):
    return subprocess.run(
        [*COMMAND, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_every_way_is_right_on_two_ranks_and_the_advisor_is_fed(tmp_path):
    path = tmp_path / "ranks.json"
    words = "--ranks", "2", "--parameters", "70000", "--batches", "2,4"
    done = all_reduce(*words, "--to", str(path))
    assert done.returncode == 0, done.stderr
    result = Scaling.of(rank_times.load(path))
    assert not result.wrong and result.ranks == (1, 2)
    for (_, wire), errors in result.errors.items():
        assert max(errors.values()) < (1e-6 if wire == "float32" else 0.01)
        assert errors[2] > 0
    assert "Weak scaling" in done.stdout and "Strong scaling" in done.stdout
    name = environment.machine("cpu")["device_name"]
    assert own_study.stored_all_reduce(path, name).seconds(2, 280000) > 0


@pytest.mark.parametrize(
    "words, said",
    [
        (("--ranks", "0"), "'0' is not a whole number above 0"),
        (("--ranks", "100000"), "65,536 ranks would take"),
        (("--batches", "8,0"), "'0' is not a whole number above 0"),
        (("--batches", "8,"), "'' is not a whole number above 0"),
        (("--ranks", "1"), "--ranks must be 2 or more"),
        (("--parameters", str(10**9)), "give fewer --parameters"),
        (("--to", "/no/such/folder/x.json"), "there is no folder"),
        (("--to", "/"), "there is no run in /: name a file"),
    ],
)
def test_a_call_that_is_not_usable_is_one_line(words, said):
    done = all_reduce(*words)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def started(tmp_path):
    """The command with two ranks that are at work, and the numbers of the ranks."""
    path = tmp_path / "ranks.json"
    process = subprocess.Popen(
        [*COMMAND, "--ranks", "2", "--batches", "1,2,3,4", "--to", str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, _ranks_of(process), path
    finally:
        process.kill()
        process.communicate()


def _ranks_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for _ in range(600):
        time.sleep(0.1)
        ranks = [
            number
            for number in map(int, children.read_text().split())
            if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()
        ]
        if len(ranks) == 2 and all(_cpu_s(number) > 1 for number in ranks):
            return ranks
    raise AssertionError("the ranks did not start")


def _cpu_s(number):
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_one_line_and_ends_the_others(started, rank):
    process, ranks, path = started
    os.kill(ranks[rank], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in errors
    assert "2 ranks could not be timed over gloo" in errors
    assert not path.exists()
    assert not any(Path(f"/proc/{number}").exists() for number in ranks)


def test_a_call_that_is_stopped_leaves_no_rank_behind(started):
    process, ranks, path = started
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert not path.exists()
    assert not any(Path(f"/proc/{number}").exists() for number in ranks)


def test_the_report_of_a_run_has_the_ranks_that_lie_beside_it(tmp_path):
    save_document(tmp_path, document())
    shutil.copy(tmp_path / run_json.FILE_NAME, tmp_path / "before")
    (tmp_path / rank_times.FILE_NAME).write_text(json.dumps(measured(cores=2)))
    done = subprocess.run(
        [sys.executable, "-m", "batchline", "report", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "4 on 2 cores" in text and "![Time of the mean gradient" in text
    assert (tmp_path / "ranks.png").exists() and (tmp_path / "ranks.svg").exists()
    if not html.why_no_page():
        page = (tmp_path / html.FILE_NAME).read_text(encoding="utf-8")
        assert '<section id="ranks"' in page and "4 ranks on 2 cores" in page
    before = (tmp_path / "before").read_bytes()
    assert (tmp_path / run_json.FILE_NAME).read_bytes() == before
