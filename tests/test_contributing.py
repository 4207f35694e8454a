"""CONTRIBUTING's blocks of code work: each is put into the file of a copy of the
sources that its first line names, and is used there.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from batchline.bench.store import run_json
from tests.trees import REPOSITORY, copy_sources

pytestmark = pytest.mark.commands

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```python\n# (?P<file>[\w/.]+)(?P<at_end>, at its end)?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LONGEST_OP_LINES = 40


def blocks(heading):
    """The blocks of one section."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return list(BLOCK.finditer(section))


def put(root, heading):
    """Put a section's blocks into the sources below `root`."""
    for block in blocks(heading):
        path = root / block["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if block["at_end"] else "x", encoding="utf-8") as file:
            file.write(f"\n\n{block['code']}" if block["at_end"] else block["code"])


def call(root, *words):
    """What a Python program or a command in the copy has printed, and its exit code."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "BATCHLINE_MOST_BUSY": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A copy of the sources with everything that CONTRIBUTING adds."""
    folder = copy_sources(
        tmp_path_factory.mktemp("contributed"), measures_ceilings=False
    )
    for heading in ("Add a variant", "Add an op", "Add a clock", "Add a command"):
        put(folder, heading)
    return folder


def test_every_block_of_python_names_its_file():
    assert TEXT.count("```python\n") == len(BLOCK.findall(TEXT)) == 6


def test_the_variant_of_the_readme_is_this_one():
    (block,) = blocks("Add a variant")
    assert block.group(0) in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_an_op_takes_40_lines():
    op, _ = blocks("Add an op")
    lines = [line for line in op["code"].splitlines() if line.strip()]
    assert len(lines) <= LONGEST_OP_LINES


def test_the_variant_and_the_op_are_right_and_measured(root):
    done = call(
        root,
        "-m",
        "batchline",
        "check",
        "-k",
        "torch_my_idea or row_scale",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^bmm/torch_my_idea +right +\d+ probes", done.stdout, re.MULTILINE
    )
    assert re.search(r"^row_scale/torch_scale +right", done.stdout, re.MULTILINE)
    assert "2 variants: 2 right" in done.stdout


def test_their_cases_are_listed(root):
    done = call(
        root,
        "-m",
        "batchline",
        "list",
        "--profile",
        "smoke",
        "--device",
        "cpu",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    here = {case["id"] for case in json.loads(done.stdout) if case["here"]}
    assert "bmm/torch_my_idea/tiny_16/float32/B3" in here
    assert "row_scale/torch_scale/linear_64/float32/B3" in here


@pytest.mark.slow
def test_the_clock_times_a_run(root):
    done = call(
        root,
        *("-m", "batchline", "run", "--profile", "smoke", "--device", "cpu"),
        *("--clocks", "host,cpu_time", "-k", "torch_mean/layer_norm/float32/B3"),
        *("--out", str(root / "runs"), "--history", str(root / "kept")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (root / "runs").iterdir()
    (record,) = run_json.load(folder).records
    assert record.facts["clocks"]["cpu_time"]["median_s"] > 0


def test_the_command_prints_its_help_and_does_its_work(root):
    done = call(root, "-m", "batchline", "op-names", "--help")
    assert done.returncode == 0 and "--signature" in done.stdout, done.stderr
    done = call(root, "-m", "batchline", "op-names")
    assert done.returncode == 0 and "row_scale" in done.stdout.splitlines()
