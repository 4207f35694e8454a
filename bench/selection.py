"""Which cases are meant: pytest chooses among their ids, by the expression of its own
-k, whoever asks.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence

import pytest

from batchline import places
from batchline.bench.errors import UsageError
from batchline.bench.texts import did_you_mean

REPOSITORY = places.CODE
_ARGUMENTS = (
    str(REPOSITORY / "bench" / "bench_kernels.py"),
    "--rootdir",
    str(REPOSITORY),
    "-c",
    os.devnull,
    "-p",
    "no:terminal",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:unraisableexception",  # which collects garbage for half of the time
    "-W",
    "ignore",
    "--capture=no",
    "-o",
    "disable_test_id_escaping_and_forfeit_all_rights_to_community_support=true",
)


def selected(case_ids: Sequence[str], selection: str, whose: str) -> list[str]:
    """Those of the case ids that match `selection`; `whose` they are, for an error's
    line.

    Raises:
        UsageError: if `selection` is not a pytest -k expression, or matches nothing.
    """
    require_cases(case_ids, whose)
    if not selection:
        return list(case_ids)
    chooser = _Chooser(case_ids)
    code = run_pytest(["-k", selection, "--collect-only"], chooser)
    if code == pytest.ExitCode.INTERRUPTED:  # Ctrl-C, of which pytest only tells
        raise KeyboardInterrupt
    require_selected(code, selection, case_ids, whose)
    return chooser.chosen


def run_pytest(arguments: Sequence[str], *plugins: object) -> int:
    """pytest's exit code of the benchmark function, run with these arguments and with
    no plugins but these.
    """
    with no_plugins_but_ours():
        return pytest.main([*_ARGUMENTS, *arguments], plugins=[_OwnName(), *plugins])


class _OwnName:
    """Has pytest import the benchmark function by its own name: by its path, it would
    be one of a package `bench`, which another project may have.
    """

    def pytest_collect_directory(self, path, parent):
        return pytest.Dir.from_parent(parent, path=path)  # a Package is imported

    def pytest_pycollect_makemodule(self, module_path, parent):
        return _Module.from_parent(parent, path=module_path)


class _Module(pytest.Module):

    def _getobj(self):
        return importlib.import_module("batchline.bench.bench_kernels")


class _Chooser:
    """Lets pytest choose among case ids, and keeps what it chose."""

    def __init__(self, case_ids: Sequence[str]):
        self._case_ids = list(case_ids)
        self.chosen: list[str] = []

    def pytest_generate_tests(self, metafunc):
        if "case_id" in metafunc.fixturenames:
            metafunc.parametrize("case_id", self._case_ids, ids=self._case_ids)

    def pytest_collection_finish(self, session):
        self.chosen = [item.callspec.params["case_id"] for item in session.items]


def require_cases(case_ids: Sequence[str], whose: str) -> None:
    """Raise UsageError if there is no case to choose from: pytest would choose one that
    has no id.
    """
    if not case_ids:
        raise UsageError(f"there are no cases {whose}: `batchline check` says why")


def require_selected(
    code: int, selection: str, case_ids: Sequence[str], whose: str
) -> None:
    """Raise UsageError if pytest's exit code says that the expression is none, or chose
    none of these cases.
    """
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise UsageError(
            f"-k {selection!r} matches none of the {len(case_ids)} cases {whose}"
            f"{did_you_mean(selection, case_ids)}: `batchline list` shows the ids"
        )
    if code == pytest.ExitCode.USAGE_ERROR:
        raise UsageError(
            f"-k {selection!r} is not an expression that pytest -k understands"
        )


@contextlib.contextmanager
def no_plugins_but_ours() -> Iterator[None]:
    """Whatever pytest plugins the environment has (reordering, parallelising, timing
    out) stay out of the run.

    So does what one says of the session that this one is in: pytest-benchmark measures
    nothing under pytest-xdist.
    """
    outside = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith("PYTEST_")
    }
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
        os.environ.update(outside)
