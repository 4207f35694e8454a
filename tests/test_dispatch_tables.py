"""No table of an op's calls that was not verified, and none of an op that was not
named, whatever ends the command.
"""

import os
from dataclasses import replace

import pytest

from batchline import kernels
from batchline.bench import cases
from batchline.bench.commands import dispatch as command
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure.worker.task import Outcome
from batchline.bench.statuses import FAILED, HUNG, INVALID, NOT_HERE
from batchline.kernels import device_files
from batchline.kernels.op import Op
from tests.fake_calls import BASELINES, FakeIsolation, a_run, alone, record, table


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from alone(tmp_path, monkeypatch)


OLD = b'{"versions": {}, "winners": []}'


@pytest.fixture
def stored_before(here):
    """A table of each op, and what it was: bytes and when it was written."""
    paths = [
        device_files.file_for(here / name, "dispatch", "cpu") for name in kernels.ops
    ]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(OLD)
        os.utime(path, (1, 1))
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.fixture
def ops_apart(here, monkeypatch):
    the_plan = cases.plan("smoke", "cpu")
    ops = {name: replace(op, folder=here / name) for name, op in the_plan.ops.items()}
    monkeypatch.setattr(
        cases, "plan", lambda profile, device: replace(the_plan, ops=ops)
    )
    monkeypatch.setattr(Op, "folder", property(lambda op: here / op.name))


def as_before(stored_before):
    return [
        path
        for path, was in stored_before.items()
        if (path.read_bytes(), path.stat().st_mtime_ns) == was
    ]


ROWS = record("torch_bmm", 3, 2e-5), record("numba_cpu_tiny", 3, 1e-5)


def end_badly(how):
    """What a worker, a user or the machine may do while the calls are timed; and how
    the command ends.
    """

    def measure(self, task):
        if isinstance(how, BaseException):
            raise how
        return {label: Outcome(how, "why") for label in task.labels}

    return measure


@pytest.mark.parametrize(
    "how, code",
    [
        (KeyboardInterrupt(), None),
        (SystemExit(), None),
        (RuntimeError("gone"), ExitCode.NOT_MEASURED),
        (FAILED, ExitCode.NOT_MEASURED),
        (INVALID, ExitCode.NOT_MEASURED),
        (HUNG, ExitCode.NOT_MEASURED),
        (NOT_HERE, ExitCode.NOT_MEASURED),
    ],
)
def test_a_table_that_was_not_verified_is_never_there(
    here, monkeypatch, ops_apart, stored_before, how, code
):
    monkeypatch.setattr(FakeIsolation, "measure", end_badly(how))
    run = a_run(here / "run", *ROWS)
    if code is None:
        with pytest.raises(type(how)):
            command.dispatch(run, "smoke", "cpu", "tiny_16")
    else:
        assert command.dispatch(run, "smoke", "cpu", "tiny_16") == code
    assert as_before(stored_before) == list(stored_before)


def test_nothing_is_written_while_the_calls_are_timed(
    here, monkeypatch, ops_apart, stored_before
):
    """So that not even a kill leaves anything."""
    measure = FakeIsolation.measure

    def watched(self, task):
        assert as_before(stored_before) == list(stored_before)
        return measure(self, task)

    FakeIsolation.seconds = {(3, "numba_cpu_tiny"): 0.6e-5}
    monkeypatch.setattr(FakeIsolation, "measure", watched)
    assert (
        command.dispatch(a_run(here / "run", *ROWS), "smoke", "cpu", "tiny_16")
        == ExitCode.CLEAN
    )


def test_one_call_that_is_not_verified_keeps_its_ops_old_table(
    here, ops_apart, stored_before, capsys
):
    FakeIsolation.failing, FakeIsolation.seconds = (16,), {
        (3, "numba_cpu_tiny"): 0.6e-5
    }
    assert (
        command.dispatch(a_run(here / "run", *ROWS), "smoke", "cpu", "tiny_16")
        == ExitCode.FAULT
    )
    assert as_before(stored_before) == list(stored_before)
    assert (
        "the table of bmm is as it was, for the new one could not be verified: bmm/tiny_16/float32/B16"
    ) in capsys.readouterr().err


def test_a_problem_that_is_too_long_for_the_profile_and_has_no_choice_keeps_no_table_back(
    here, monkeypatch
):
    FakeIsolation.failing, FakeIsolation.seconds = (16,), {
        (3, "numba_cpu_tiny"): 0.6e-5
    }
    monkeypatch.setattr(FakeIsolation, "status", NOT_HERE)
    assert (
        command.dispatch(a_run(here / "run", *ROWS), "smoke", "cpu", "tiny_16")
        == ExitCode.CLEAN
    )
    assert table()["winners"][0]["faster"] == {"numba_cpu_tiny": 2.0}


def test_only_the_ops_that_k_names_are_touched(here, ops_apart, stored_before):
    FakeIsolation.seconds = {(3, "numba_cpu_tiny"): 0.6e-5}
    reduction = replace(
        record("torch_mean", 3, 2e-5), op="grad_reduce", scenario="odd_100003"
    )
    faster = replace(
        record("numba_cpu_parallel", 3, 1e-5), op="grad_reduce", scenario="odd_100003"
    )
    run = a_run(
        here / "run",
        *ROWS,
        reduction,
        faster,
        baselines=BASELINES | {"grad_reduce": "torch_mean"}
    )
    assert command.dispatch(run, "smoke", "cpu", "bmm and tiny_16") == ExitCode.CLEAN
    assert all(name.startswith("bmm/tiny_16/") for name in FakeIsolation.asked)
    changed = set(stored_before) - set(as_before(stored_before))
    assert changed == {device_files.file_for(here / "bmm", "dispatch", "cpu")}


def test_problems_that_are_not_called_are_in_no_table(here, capsys):
    FakeIsolation.seconds = {(3, "numba_cpu_tiny"): 0.6e-5}
    elsewhere = [replace(row, scenario="square_128") for row in ROWS]
    assert (
        command.dispatch(
            a_run(here / "run", *ROWS, *elsewhere), "smoke", "cpu", "tiny_16"
        )
        == ExitCode.CLEAN
    )
    assert [row["problem"] for row in table()["winners"]] == ["tiny_16/float32/B3"]
    assert (
        "1 problems of the run are not among those that its profile and K name"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "gain_s, faster", [(1e-5, {"numba_cpu_tiny": 2.0}), (2e-8, {})]
)
def test_a_gain_that_the_call_does_not_see_is_taken_out(here, gain_s, faster):
    """ "1000x" of a baseline that something held up in the run."""
    FakeIsolation.seconds = {(3, "numba_cpu_tiny"): 0.8e-5}
    run = a_run(here / "run", ROWS[0], record("numba_cpu_tiny", 3, gain_s))
    assert command.dispatch(run, "smoke", "cpu", "tiny_16") == ExitCode.CLEAN
    assert table()["winners"][0]["faster"] == faster


@pytest.mark.parametrize(
    "selection, words",
    [
        ("nothing_at_all", "matches none of the"),
        ("bmm and (", "is not an expression"),
        ("grad_reduce", "has timed no baseline of the problems"),
    ],
)
def test_a_selection_that_leaves_nothing_is_a_line_and_no_table(
    here, ops_apart, stored_before, selection, words
):
    with pytest.raises(UsageError, match=words):
        command.dispatch(a_run(here / "run", *ROWS), "smoke", "cpu", selection)
    assert FakeIsolation.made == 0 and as_before(stored_before) == list(stored_before)
