"""Ops that lie in another repository: who says where they are, what is refused in a line,
and that every process reads the same ones.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchline import own_ops, places
from batchline.__main__ import main
from batchline.bench import folders, own_repository, reader, selection
from batchline.bench.declared import Declared
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure.compiled import pins, static_facts
from batchline.bench.measure.emulated import pinned
from batchline.bench.measure.machine import environment as environment_of
from batchline.bench.measure.reading import sources
from batchline.bench.regress import base_tree
from batchline.bench.running import after_cases
from batchline.kernels.backends import DISPATCH
from tests.test_base_tree import commit, git


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No test's folders are the next one's."""
    for name in (own_ops.VARIABLE, folders.VARIABLE):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(own_repository, "_entry_points", tuple)
    kernels = sys.modules["batchline.kernels"]
    monkeypatch.setattr(kernels, "__path__", list(kernels.__path__))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository, and the folder that commands are called in."""
    folder = tmp_path / "repository"
    (folder / ".git").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def make_op(folder, name="my_op"):
    """A folder that looks like an op: nothing of it is imported here."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    return folder


def test_a_folder_that_is_named_is_read_in_place_of_the_suites(repository):
    ops = make_op(repository / "my_ops")
    own_repository.use(["my_ops"])
    assert own_ops.read_folders(Path("suite")) == [ops]
    assert own_ops.repository() == repository
    assert own_ops.has(ops / "my_op") and not own_ops.has(Path("kernels/bmm"))


def test_the_suites_ops_are_read_where_nothing_is_named_and_where_they_are(repository):
    own_repository.use(None)
    assert own_ops.read_folders(Path("suite")) == [Path("suite")]
    ops = make_op(repository / "my_ops")
    own_repository.use(["my_ops", "batchline"])
    assert own_ops.read_folders(Path("suite")) == [ops, Path("suite")]
    assert own_ops.repository() is None


@pytest.mark.parametrize(
    "file, text",
    [
        ("pyproject.toml", '[tool.batchline]\nops = "my_ops"\n'),
        ("pyproject.toml", '[tool.batchline]\nops = ["my_ops"]\n'),
        ("setup.cfg", "[tool:batchline]\nops = my_ops\n"),
    ],
)
def test_a_repository_says_it_once_for_every_folder_in_it(
    repository, monkeypatch, file, text
):
    ops = make_op(repository / "my_ops")
    (repository / file).write_text(text)
    (repository / "below").mkdir()
    monkeypatch.chdir(repository / "below")
    own_repository.use(None)
    assert own_ops.folders() == [ops]
    assert folders.runs() == Path("..", ".batchline", "runs")
    assert folders.history() == Path("..", ".batchline", "history")


def test_a_repository_may_name_the_suites_own_ops_too(repository):
    ops = make_op(repository / "my_ops")
    (repository / "pyproject.toml").write_text(
        '[tool.batchline]\nops = ["my_ops", "batchline"]\n'
    )
    own_repository.use(None)
    assert own_ops.named() == [str(ops), own_ops.SUITE]


def test_a_file_in_another_encoding_says_nothing(repository):
    (repository / "setup.cfg").write_bytes("# Jos\u00e9\n".encode("latin-1"))
    own_repository.use(None)
    assert own_ops.named() == []


def test_what_is_measured_is_kept_where_the_repository_says(repository):
    make_op(repository / "my_ops")
    (repository / "pyproject.toml").write_text(
        '[tool.batchline]\nops = "my_ops"\nreports = "measured"\n'
    )
    own_repository.use(None)
    assert folders.runs() == Path("measured", "runs")
    assert folders.baselines() == Path("measured", "baselines")


def test_ops_that_are_named_are_measured_into_their_repository(repository, monkeypatch):
    ops = make_op(repository / "my_ops")
    monkeypatch.chdir(repository.parent)
    own_repository.use([str(ops)])
    assert folders.runs() == Path("repository", ".batchline", "runs")


@pytest.mark.parametrize(
    "text, said",
    [
        ('[tool.batchline]\nop = "my_ops"\n', "knows ops and reports"),
        ("[tool.batchline]\nops = 3\n", "ops is no folder"),
        ("[tool.batchline]\nops = [3]\n", "ops is no folder"),
        ('[tool.batchline]\nops = ""\n', "ops is no folder"),
        ('[tool]\nbatchline = "my_ops"\n', r"write \[tool.batchline\]"),
        ("[tool]\nbatchline = 3\n", r"write \[tool.batchline\]"),
        ("[tool.batchline]\nreports = 3\n", "reports is no folder"),
        ("[tool.batchline\n", "can't be read"),
        ('[tool.batchline]\nops = "nowhere"\n', "there is no folder"),
    ],
)
def test_a_setting_that_is_none_is_a_line(repository, text, said):
    (repository / "pyproject.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        own_repository.use(None)


def test_a_folder_without_ops_says_what_to_name(repository):
    (repository / "empty").mkdir()
    with pytest.raises(UsageError, match='--ops "" names no folder'):
        own_repository.use([""])
    with pytest.raises(UsageError, match="`batchline new op NAME` writes one"):
        own_repository.use(["empty"])
    make_op(repository / "my_ops")
    (repository / "my_ops" / "my_op" / "torch_it.py").touch()
    with pytest.raises(UsageError, match="name the folder above it"):
        own_repository.use(["my_ops/my_op"])


@pytest.mark.parametrize("name", ["bmm", "tuning", "_cpu"])
def test_a_name_that_batchline_has_is_refused(repository, name):
    make_op(make_op(repository / "my_ops"), name)
    with pytest.raises(UsageError, match=f"{name} has the name of what Batchline has"):
        own_repository.use(["my_ops"])


def test_two_folders_with_one_op_are_refused(repository):
    for folder in ("a", "b"):
        make_op(repository / folder)
    with pytest.raises(UsageError, match="b/my_op has the name of what .*/a has"):
        own_repository.use(["a", "b"])


def test_the_ops_of_an_installed_package_are_read_beside_the_suites(
    repository, monkeypatch
):
    make_op(repository / "site" / "their_package" / "ops")
    monkeypatch.syspath_prepend(repository / "site")
    monkeypatch.setattr(
        own_repository,
        "_entry_points",
        lambda: [entry_point("their_package.ops"), entry_point("their_package.ops")],
    )
    own_repository.use(None)
    expected = repository / "site" / "their_package" / "ops"
    assert set(own_ops.read_folders(Path("suite"))) == {Path("suite"), expected}
    assert "their_package" not in sys.modules


def test_an_installed_package_without_its_ops_is_a_line(repository, monkeypatch):
    monkeypatch.setattr(
        own_repository, "_entry_points", lambda: [entry_point("not_there.ops")]
    )
    with pytest.raises(UsageError, match="theirs says that its ops are in not_there"):
        own_repository.use(None)


def entry_point(value):
    class Distribution:
        name = "theirs"

    one = importlib.metadata.EntryPoint("ops", value, own_repository.GROUP)
    vars(one).update(dist=Distribution)
    return one


IMPORTED = """
import batchline.kernels, sys
print(list(batchline.kernels.ops)[-1], batchline.kernels.__path__[1], sys.path[0])
import importlib
print(importlib.import_module("batchline.kernels.zz_op").WORD)
"""


def test_a_process_that_is_started_takes_them_in(repository):
    ops = make_op(repository / "my_ops", "zz_op")
    (repository / "beside.py").write_text("WORD = 'beside'\n")
    (ops / "zz_op" / "__init__.py").write_text("from beside import WORD\n")
    own_repository.use(["my_ops"])
    root = Path(own_ops.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["zz_op", str(ops), str(repository), "beside"]


def test_the_reader_of_another_tree_is_told_of_its_folders(repository, monkeypatch):
    make_op(repository / "my_ops")
    own_repository.use(["my_ops"])
    started = []
    monkeypatch.setattr(
        reader.subprocess,
        "Popen",
        lambda words, env, **rest: started.append((words, env)) or sys.exit(),
    )
    with pytest.raises(SystemExit):
        reader._start(repository.parent / "base")
    words, env = started[0]
    assert env[own_ops.VARIABLE] == str(repository.parent / "base" / "my_ops")
    assert words[-1] == str(reader._REPOSITORY)


def declared(repository, name="idea", **rest):
    folder = repository / "lib" / "my_ops" / "my_op"
    return Declared("my_op", name, folder, **rest)


FILES = {
    "lib/my_ops/my_op/__init__.py": "HERE = 1\n",
    "lib/my_ops/my_op/idea.py": "from batchline.kernels.my_op._help import H\n",
    "lib/my_ops/my_op/_help.py": "from lib.tiles import T\nimport batchline.kernels.op\n",
    "lib/my_ops/my_op/other.py": "OTHER = 1\n",
    "lib/tiles.py": "T = 1\n",
    "lib/__init__.py": "",
}


@pytest.fixture
def written(repository):
    for name, text in FILES.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return repository


def test_the_files_of_a_variant_are_those_of_its_own_repository(written):
    found = sources.files_of(declared(written))
    names = {path.relative_to(written).as_posix() for path in found}
    assert names == {*FILES} - {"lib/my_ops/my_op/other.py"}


def test_an_ops_own_call_has_the_files_of_its_op_and_not_the_contract(written):
    found = sources.files_of(declared(written, "dispatched", backend=DISPATCH))
    assert {path.relative_to(written).as_posix() for path in found} == {*FILES}


def test_the_same_files_elsewhere_have_the_same_digest(written, tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "base" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    base = tmp_path / "base"

    def digests():
        sources.read.cache_clear()
        sources._decided_by.cache_clear()
        return (
            sources.launch_digest(declared(written), "cpu"),
            sources.launch_digest(declared(base), "cpu", base),
        )

    assert len(set(digests())) == 1
    (written / "lib" / "tiles.py").write_text("T = 2\n")
    assert len(set(digests())) == 2


def test_what_is_compiled_and_executed_is_pinned_in_their_repository(written, capsys):
    own_repository.use(["lib/my_ops"])
    assert pins.path().resolve().parent == written / ".batchline" / "baselines"
    assert pinned.path().parent == pins.path().parent
    # Without the folder it would pin Batchline's own where no file names the folder.
    assert "`batchline codegen --ops lib/my_ops --pin`" in pins.why_none()
    own_repository.use(["lib/my_ops", own_ops.SUITE])
    assert pins.folder() == places.BASELINES
    assert main(["codegen"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "(--ops batchline) or the other (--ops lib/my_ops)" in said


def test_a_run_says_how_its_own_kernels_are_executed(written, monkeypatch):
    own_repository.use(["lib/my_ops"])
    jobs = [("my_op/idea", "float32")]
    monkeypatch.setattr(after_cases, "_jobs_of", lambda the_plan, run: jobs)
    _, why = after_cases.read_emulated(None, None)
    assert "`batchline codegen --ops lib/my_ops` executes them" in why


def test_what_can_not_be_pinned_is_known_before_anything_is_compiled(written, capsys):
    own_repository.use(["lib/my_ops"])
    (written / ".batchline").touch()
    assert main(["codegen", "--pin"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "can't write to .batchline/baselines (Not a directory): name" in said


def test_pins_are_of_the_files_of_their_repository(written):
    def prints():
        sources.read.cache_clear()
        sources._decided_by.cache_clear()
        return static_facts.fingerprint("my_op/idea")

    own_repository.use(["lib/my_ops"])
    before = prints()
    (written / "lib" / "my_ops" / "my_op" / "other.py").write_text("OTHER = 2\n")
    assert prints() == before
    (written / "lib" / "tiles.py").write_text("T = 2\n")
    assert prints() != before


def test_the_base_is_of_their_repository_and_must_have_their_ops(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, {"README": "no op yet"})
    commit(folder, {"my_ops/my_op/__init__.py": "FIRST = 1\n"})
    monkeypatch.chdir(folder)
    own_repository.use(["my_ops"])
    (folder / "my_ops" / "my_op" / "__init__.py").write_text("SECOND = 1\n")
    with base_tree.checked_out("main", own_ops.repository()) as base:
        (there,) = own_ops.folders_in(base.folder)
        assert (there / "my_op" / "__init__.py").read_text() == "FIRST = 1\n"
    with pytest.raises(UsageError, match="has no ops in my_ops/ to compare with"):
        with base_tree.checked_out("main~1", own_ops.repository()):
            pass


def test_what_is_measured_is_no_change_of_the_sources(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    settings = '[tool.batchline]\nops = "my_ops"\nreports = "measured"\n'
    commit(folder, {"my_ops/my_op/__init__.py": "", "pyproject.toml": settings})
    monkeypatch.chdir(folder)
    own_repository.use(None)
    head = git(folder, "rev-parse", "HEAD").strip()
    (folder / "measured" / "runs").mkdir(parents=True)
    (folder / "measured" / "runs" / "run.json").touch()
    assert environment_of.revision() == {"commit": head, "dirty": False}
    (folder / "my_ops" / "my_op" / "new.py").touch()
    assert environment_of.revision() == {"commit": head, "dirty": True}


def test_where_no_op_loads_there_is_nothing_to_choose_from():
    for expression in ("", "my_op"):
        with pytest.raises(UsageError, match="no cases of profile smoke: `batchline"):
            selection.selected([], expression, "of profile smoke")
