"""`batchline all-reduce` on gloo ranks of this machine, and what `advise` reads of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from batchline.bench import own_study
from batchline.bench.measure.machine import environment
from batchline.bench.noise.rank_scaling import Scaling
from batchline.bench.store import files

pytestmark = pytest.mark.commands
ROOT = Path(__file__).resolve().parents[1]


def all_reduce(*words):
    return subprocess.run(
        [sys.executable, "-m", "batchline", "all-reduce", "--device", "cpu", *words],
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
    result = Scaling.of(files.read_json(path))
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
        (("--ranks", "1"), "--ranks must be 2 or more"),
        (("--parameters", str(10**9)), "give fewer --parameters"),
        (("--to", "/no/such/folder/x.json"), "there is no folder"),
        (("--to", "/"), "is a folder: name a file"),
    ],
)
def test_a_call_that_is_not_usable_is_one_line(words, said):
    done = all_reduce(*words)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
