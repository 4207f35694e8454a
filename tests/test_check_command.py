"""`batchline check` names what is wrong with a variant's file in one line, and passes a
right one.
"""

import importlib
import os
import pkgutil
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchline.bench.commands import new
from batchline.bench.errors import ExitCode
from tests import wrong_kernels
from tests.trees import copy_sources, drop_in

pytestmark = pytest.mark.commands
ROOT = Path(__file__).resolve().parents[1]

RIGHT = '''"""The mean as a sum and a product."""
from batchline.kernels.grad_reduce import grad_reduce


@grad_reduce.variant(backend="torch", dtypes=("float64",), builds_on="torch_mean")
def torch_{name}(g):
    return g.sum(0) / len(g)
'''
# A file of grad_reduce that is wrong before anything is called: its text, and what is said.
FILES = {
    "my-mean": (RIGHT.format(name="mean"), "'my-mean' can't name a variant: rename it"),
    "torch_broken": ("def torch_broken(g:\n", "it does not load: SyntaxError"),
    "torch_other": (RIGHT.format(name="another"), "a variant is named after its file"),
    "torch_nothing": ('"""Helps."""\n', "it registers no variant"),
    "torch_silent": (
        RIGHT.format(name="silent").partition("\n")[2],
        "it has no docstring: write",
    ),
    "torch_narrow": (
        RIGHT.format(name="narrow").replace("float64", "float8_e4m3fn"),
        "no scenario of grad_reduce is in float8_e4m3fn: declare some of float32",
    ),
    "torch_wide": (
        RIGHT.format(name="wide").replace("float64", "float46"),
        "'float46' is no dtype of torch",
    ),
    "torch_takes_numba": (
        RIGHT.format(name="takes_numba").replace("from ", "import numba\nfrom ", 1),
        "it can't be imported where no compiler is installed: ModuleNotFoundError",
    ),
    "torch_on_top": (
        RIGHT.format(name="on_top").replace("torch_mean", "torch_maen"),
        "did you mean 'torch_mean'?",
    ),
}
CALLED = (
    "changes_its_inputs",
    "clips_infinities",
    "differs_from_call_to_call",
    "leaves_output_unwritten",
)


def call(root, *words):
    return subprocess.run(
        [sys.executable, "-m", "batchline", "check", "--device", "cpu", *words],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )


def lines_of(done):
    """What is said of each variant, by its name."""
    said = re.findall(r"^(\w+)/(\S+) +(right|wrong|not run) +(.*)$", done.stdout, re.M)
    return {name: (kind, line) for _, name, kind, line in said}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A copy of the sources with a right variant of grad_reduce and many wrong ones."""
    folder = copy_sources(tmp_path_factory.mktemp("checked"))
    op = folder / "kernels" / "grad_reduce"
    (op / "torch_right.py").write_text(RIGHT.format(name="right"), encoding="utf-8")
    for name, (text, _) in FILES.items():
        (op / f"{name}.py").write_text(text, encoding="utf-8")
    for name in CALLED:
        drop_in(folder, name)
    return folder


@pytest.fixture(scope="module")
def checked(root):
    done = call(root, "-k", " or ".join(["torch_right", *FILES, *CALLED]))
    assert done.returncode == ExitCode.FAULT, done.stderr
    return done


def test_each_is_one_line_and_the_last_line_counts_them(checked):
    lines = checked.stdout.splitlines()
    count = 1 + len(FILES) + len(CALLED)
    assert len(lines) == count + 1 and len(lines_of(checked)) == count
    assert lines[-1] == f"{count} variants: 1 right, {count - 1} wrong"


def test_a_right_one_passes(checked):
    kind, line = lines_of(checked)["torch_right"]
    assert kind == "right" and re.fullmatch(r"\d+ probes in float64", line)


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_gets_wrong_is_said(checked, name):
    kind, line = lines_of(checked)[name]
    assert kind == "wrong" and FILES[name][1] in line


@pytest.mark.parametrize("name", CALLED)
def test_what_a_call_gets_wrong_is_said_and_what_to_do(checked, name):
    kind, line = lines_of(checked)[name]
    assert kind == "wrong" and line.startswith("in float32: on ")
    module = importlib.import_module(f"tests.wrong_kernels.{name}")
    assert module.REFUSED_FOR in line
    assert re.search(r": (write|add|compare|allocate) ", line)


def test_one_variant_takes_seconds(root):
    """Of the processors' time: other work may share them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = call(root, "-k", "torch_right")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == ExitCode.CLEAN and "1 variant: 1 right" in done.stdout
    assert after.ru_utime - before.ru_utime < 30


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it runs")
def test_what_can_not_run_here_is_no_pass(root):
    done = call(
        root, "-k", "grad_reduce and triton_whole_words or numba_cuda_two_stage"
    )
    assert done.returncode == ExitCode.NOT_MEASURED, done.stdout + done.stderr
    assert set(kind for kind, _ in lines_of(done).values()) == {"not run"}
    assert "needs CUDA (its name, imports and dtypes are right)" in done.stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (["-k", "torch_rihgt"], "did you mean 'grad_reduce/torch_right'?"),
        (["-k", "torch_right and"], "is not an expression that pytest -k understands"),
        (["--deadline", "0"], "argument --deadline: '0' is not a number above 0"),
    ],
)
def test_a_call_that_is_none_is_usage(root, words, said):
    done = call(root, *words)
    assert done.returncode == 2 and said in done.stderr


def test_an_op_without_a_variant_has_a_line_of_its_own(tmp_path):
    written = new.write_op(tmp_path / "ops", "my_op")
    (broken,) = new.write_op(tmp_path / "ops", "broken")[:1]
    broken.write_text("def broken(:\n", encoding="utf-8")
    for path in (*written[1:], broken.with_name(written[1].name)):
        path.unlink()
    done = call(ROOT, "--ops", str(tmp_path / "ops"))
    assert done.returncode == ExitCode.FAULT and not done.stderr.count("Traceback")
    first, second, last = sorted(done.stdout.splitlines(), key=len, reverse=True)
    assert first.startswith("broken/ ") and "does not load: SyntaxError" in first
    assert second.startswith("my_op/ ") and "torch_broadcast" in second
    assert last == "2 variants: 2 wrong"


@pytest.mark.slow
def test_whatever_the_checker_refuses_is_named(tmp_path):
    """Every wrong kernel that the checker alone refuses."""
    names = [
        module.name
        for module in pkgutil.iter_modules(wrong_kernels.__path__)
        if wrong_kernels.refused_by_the_checker(module.name)
    ]
    copy_sources(tmp_path)
    for name in names:
        drop_in(tmp_path, name)
    done = call(tmp_path, "-k", " or ".join(names))
    said = lines_of(done)
    assert set(said) == set(names)
    assert not [name for name, (kind, _) in said.items() if kind != "wrong"]
