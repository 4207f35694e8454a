"""`batchline new`: what it writes, and that it writes over nothing."""

import ast
from pathlib import Path

import pytest

from batchline.__main__ import main
from batchline.bench import folders
from batchline.bench.commands import new
from batchline.bench.errors import ExitCode, UsageError

EXAMPLE = Path(__file__).with_name("own_repository")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The folder in which it is called; where runs go is not the next test's."""
    monkeypatch.setenv(folders.VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    return tmp_path


def test_the_example_is_as_it_is_written(here):
    (here / "pyproject.toml").write_text((EXAMPLE / "pyproject.toml").read_text())
    assert main(["new", "op", "row_scale"]) == ExitCode.CLEAN
    assert main(["new", "variant", "row_scale/numba_cpu_loop"]) == ExitCode.CLEAN
    for folder in (here, EXAMPLE):
        files = {path.name for path in (folder / "my_ops" / "row_scale").glob("*.py")}
        assert files == {"__init__.py", "torch_broadcast.py", "numba_cpu_loop.py"}
    for path in (here / "my_ops" / "row_scale").glob("*.py"):
        example = EXAMPLE / "my_ops" / "row_scale" / path.name
        assert ast.dump(ast.parse(path.read_text())) == ast.dump(
            ast.parse(example.read_text())
        )


def test_it_says_what_was_written_and_what_comes_next(here, capsys):
    assert main(["new", "op", "my_op", "--into", "mine"]) == ExitCode.CLEAN
    assert capsys.readouterr().out.splitlines() == [
        "mine/my_op/__init__.py",
        "mine/my_op/torch_broadcast.py",
        "next: batchline check --ops mine -k my_op",
    ]
    main(["new", "op", "my_op", "--into", "all mine"])
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "next: batchline check --ops 'all mine' -k my_op"


def test_a_variant_of_another_op_calls_its_baseline_and_declares_what_that_does(here):
    op = here / "mine" / "my_op"
    op.mkdir(parents=True)
    (op / "__init__.py").write_text(
        'my_op = Op(__name__, signature="a[B] → b[B]", calls=Calls("torch_it"))\n'
    )
    (op / "torch_it.py").write_text(
        '@my_op.variant(backend="torch", dtypes=("float32",), supports=f)\n'
        "def torch_it(a, weight):\n    return a\n"
    )
    (path,) = new.write_variant(here / "mine", "my_op/triton_fast")
    text = path.read_text()
    assert "builds_on=\"torch_it\", dtypes=('float32',))" in text
    assert "def triton_fast(a, weight):\n    return torch_it(a, weight)\n" in text


def test_a_name_that_says_triton_is_a_triton_kernel_of_the_op_that_it_wrote(here):
    new.write_op(here, "my_op")
    (path,) = new.write_variant(here, "my_op/triton_fast")
    assert "@triton.jit" in path.read_text() and "{" not in path.read_text()


@pytest.mark.parametrize(
    "words, said",
    [
        (["op", "my_op"], "is there already"),
        (["op", "bmm"], "Batchline has a module 'bmm' already"),
        (["op", "my-op"], "'my-op' can't name an op"),
        (["op", "class"], "'class' can't name an op: it is a word of Python's own"),
        (["op", "Draw"], "the files that are written use the name 'Draw'"),
        (["op", "torch"], "the files that are written use the name 'torch'"),
        (["op", "_my_op"], "'_my_op' can't name an op"),
        (["variant", "my_op"], "say of which op: batchline new variant my_op/"),
        (["variant", "my_op/2nd"], "'2nd' can't name a variant"),
        (["variant", "my_op/my_op"], "'my_op' is the op itself"),
        (["variant", "my_op/dispatched"], "'dispatched' is the op itself"),
        (["variant", "/fast"], "'' can't name an op"),
        (["variant", "other/fast"], "there is no op 'other' in mine"),
        (["variant", "my_op/torch_broadcast"], "is there already"),
    ],
    ids=" ".join,
)
def test_what_it_can_not_write_is_a_line_and_nothing_is_written(
    here, capsys, words, said
):
    new.write_op(here / "mine", "my_op")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert main(["new", *words, "--into", "mine"]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert before == {path: path.stat().st_mtime_ns for path in here.rglob("*")}


def test_it_asks_for_the_folder_where_nothing_says_it(here, capsys):
    assert main(["new", "op", "my_op"]) == ExitCode.USAGE
    assert "say which folder has your ops: --into my_ops" in capsys.readouterr().err


@pytest.mark.parametrize(
    "init, said",
    [
        ("x = 1\n", "makes no Calls"),
        ("Calls(name)\n", "name no baseline"),
        ('Calls("torch_gone")\n', "name no baseline"),
        ("def (\n", "can't be read"),
    ],
)
def test_an_op_whose_baseline_can_not_be_read_is_a_line(here, init, said):
    (here / "my_op").mkdir()
    (here / "my_op" / "__init__.py").write_text(init)
    with pytest.raises(UsageError, match=said):
        new.write_variant(here, "my_op/fast")
