"""`batchline dispatch`: tables from a run's evidence, calls confirmed in fresh processes,
slower choices taken out.
"""

import json
from dataclasses import replace

import pytest

from batchline import kernels
from batchline.bench import dispatch as command
from batchline.bench.errors import UsageError
from batchline.bench.measure import environment
from batchline.bench.report import dispatch as report
from batchline.bench.report.tables import PLAIN
from batchline.bench.verdicts.dispatch import Called, measured
from batchline.kernels import device_files
from batchline.kernels.device import device_name
from tests.fake_calls import BASELINES, FakeIsolation, a_run, alone, record, table

CANDIDATES = {"bmm": {"torch_bmm", "fast", "slow"}}


@pytest.mark.parametrize(
    "rows, faster",
    [
        ([record("fast", 1, 1e-5)], {"fast": 2.0}),
        (
            [record("fast", 1, 1.6e-5), record("slow", 1, 1.8e-5)],
            {"fast": 1.25, "slow": 1.111},
        ),  # the best first
        (
            [record("fast", 1, 1.94e-5)],
            {},
        ),  # 3% is told apart, and not worth leaving the library for
        ([record("fast", 1, 1.6e-5, spread=0.9)], {}),  # a quarter, and undecided
        ([record("unknown", 1, 1e-5)], {}),  # not among those to choose from
        ([record("fast", 1, 1e-5, gives=1)], {}),  # gives only a part of the op
        ([record("fast", 2, 1e-5)], {}),  # no evidence at this batch
    ],
)
def test_what_a_run_says(rows, faster):
    (found,) = measured([record("torch_bmm", 1, 2e-5), *rows], BASELINES, CANDIDATES)
    assert (found.op, found.scenario, found.dtype, found.batch) == (
        "bmm",
        "tiny_16",
        "float32",
        1,
    )
    assert list(found.faster.items()) == list(faster.items())


@pytest.mark.parametrize(
    "baseline, gain",
    [
        (record("torch_bmm", 1, 12e-3), 4444.444),  # beyond what was ever seen
        (
            replace(record("torch_bmm", 1, 8e-5), samples_s=(3e-6,) + (8e-5,) * 20),
            29.63,
        ),
    ],
)  # its own fastest is no slower
def test_a_gain_that_a_stall_of_the_baseline_gives_is_not_believed(baseline, gain):
    (found,) = measured([baseline, record("fast", 1, 2.7e-6)], BASELINES, CANDIDATES)
    assert found.faster == {} and found.not_believed == {"fast": pytest.approx(gain)}


def test_a_large_gain_that_every_sample_bears_out_is_believed():
    (found,) = measured(
        [record("torch_bmm", 1, 9.5e-5), record("fast", 1, 2.7e-6)],
        BASELINES,
        CANDIDATES,
    )
    assert found.faster == {"fast": 35.185} and not found.not_believed


def test_without_the_baselines_time_nothing_is_said():
    assert not list(measured([record("fast", 1, 1e-5)], BASELINES, CANDIDATES))


def called(call_s, baseline_s=1e-5, spread=0.001, look_up_s=1e-6, **changed):
    """A call beside its baseline, and beside the baseline behind a look-up."""
    wobble = [1 + spread * (index - 10) / 10 for index in range(21)]
    samples = [
        [median_s * factor for factor in wobble]
        for median_s in (call_s, baseline_s, baseline_s + look_up_s)
    ]
    one = Called(
        "bmm",
        "tiny_16",
        "float32",
        3,
        "torch_bmm",
        "numba_cpu_tiny",
        "measured",
        *samples,
    )
    return replace(one, **changed)


@pytest.mark.parametrize(
    "one, slower",
    [
        (called(1.09e-5), False),  # the look-up
        (called(1.115e-5), False),  # and not told apart from it
        (called(1.2e-5), True),
        (called(1.2e-5, spread=0.9), False),
        (called(0.5e-5), False),
        (called(1.2e-5, look_up_s=2e-6), False),
    ],
)
def test_slower_is_beyond_the_look_up_and_what_is_told_apart(one, slower):
    assert one.is_slower is slower


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from alone(tmp_path, monkeypatch)


def test_a_runs_winners_become_the_table_and_are_called(here, capsys):
    rows = [
        record("torch_bmm", 3, 2e-5),
        record("numba_cpu_tiny", 3, 1e-5),
        record("torch_bmm", 16, 2e-5),
    ]
    FakeIsolation.seconds = {(3, "numba_cpu_tiny"): 0.6e-5}
    assert (
        command.dispatch(a_run(here / "run", *rows), "smoke", "cpu", "tiny_16")
        == command.CLEAN
    )
    found = table()
    assert (
        found["device"] == device_name("cpu")
        and found["measured"] == "2026-01-02"
        and found["profile"] == "smoke"
    )
    assert [
        (row["problem"], row["traits"], row["sizes"], row["faster"])
        for row in found["winners"]
    ] == [
        ("tiny_16/float32/B3", "float32/nn", [3, 16, 16, 16], {"numba_cpu_tiny": 2.0}),
        ("tiny_16/float32/B16", "float32/nn", [16, 16, 16, 16], {}),
    ]
    out = capsys.readouterr().out
    assert (
        "None of 3 calls is slower" in out
        and "1.67x" in out
        and FakeIsolation.made == 1
    )


def test_a_choice_that_fresh_processes_refute_is_taken_out(here, capsys):
    rows = [
        record("torch_bmm", 3, 2e-5),
        record("numba_cpu_tiny", 3, 1e-5),
        record("numba_cpu_tiled", 3, 1.5e-5),
    ]
    FakeIsolation.seconds = {(3, "numba_cpu_tiny"): 2e-5, (3, "numba_cpu_tiled"): 3e-5}
    assert (
        command.dispatch(a_run(here / "run", *rows), "smoke", "cpu", "tiny_16")
        == command.CLEAN
    )
    assert table()["winners"][0]["faster"] == {}
    told = capsys.readouterr()
    assert "None of 3 calls is slower" in told.out
    assert told.err.count("1 choices are slower than the baseline, or far from") == 2
    assert FakeIsolation.made == 1 + 2 + (1 + 2) + 1


def test_a_run_of_a_part_leaves_the_rest_of_the_table(here):
    path = device_files.file_for(kernels.ops["bmm"].folder, "dispatch", "cpu")
    path.parent.mkdir(parents=True)
    old = [
        {
            "problem": f"p/float32/B{batch}",
            "traits": "float32/nn",
            "sizes": [batch, 16, 16, 16],
            "faster": {"old": 2.0},
        }
        for batch in (3, 5)
    ]
    for versions, kept in (
        ({"torch": "1.0"}, []),
        (environment.machine("cpu")["versions"], [5]),
    ):
        path.write_text(json.dumps({"versions": versions, "winners": old}))
        device_files.stored.cache_clear()
        rows = [record("torch_bmm", 3, 2e-5), record("numba_cpu_tiny", 3, 1e-5)]
        command.dispatch(
            a_run(here / f"run{len(kept)}", *rows), "smoke", "cpu", "tiny_16"
        )
        assert [row["sizes"][0] for row in table()["winners"]] == [*kept, 3]


def test_a_table_goes_where_it_is_told_to_and_calls_keep_theirs(here, tmp_path):
    rows = [record("torch_bmm", 3, 2e-5), record("numba_cpu_tiny", 3, 1e-5)]
    command.dispatch(
        a_run(here / "run", *rows), "smoke", "cpu", "tiny_16", tmp_path / "tables"
    )
    made = json.loads((tmp_path / "tables" / "bmm.json").read_text())
    assert [row["sizes"][0] for row in made["winners"]] == [3]
    assert not device_files.file_for(
        kernels.ops["bmm"].folder, "dispatch", "cpu"
    ).exists()


def test_a_run_is_called_with_its_own_profile_whatever_is_named(here):
    rows = [record("torch_bmm", 3, 2e-5)]
    assert (
        command.dispatch(a_run(here / "run", *rows), "quick", "cpu", "tiny_16")
        == command.CLEAN
    )
    assert command.dispatch(None, "quick", "cpu", "tiny_16") == command.CLEAN
    assert FakeIsolation.planned_by == ["smoke", "quick"]


def test_without_a_run_the_tables_are_called_as_they_are(here, capsys):
    assert command.dispatch(None, "smoke", "cpu", "tiny_16") == command.CLEAN
    FakeIsolation.seconds = {(3, "torch_bmm"): 2e-5}
    assert command.dispatch(None, "smoke", "cpu", "tiny_16") == command.REFUTED
    assert (
        "1 of 3 calls are slower than the baseline by more than the look-up: bmm/tiny_16/float32/B3: 20.0 µs by "
        "torch_bmm (measured), the baseline 10.0 µs, and 2.00 µs for the look-up"
    ) in " ".join(capsys.readouterr().out.split())
    assert not list(here.iterdir())


def test_what_could_not_be_timed_is_said(here, capsys):
    FakeIsolation.failing = (1, 3, 16)
    assert command.dispatch(None, "smoke", "cpu", "tiny_16") == command.NOT_MEASURED
    told = capsys.readouterr()
    assert (
        "bmm/dispatched/tiny_16/float32/B3: failed: no" in told.err
        and "No call was timed" in told.out
    )


def test_a_call_that_fails_beside_others_is_no_clean_end(here, capsys):
    FakeIsolation.failing = (3,)
    assert command.dispatch(None, "smoke", "cpu", "tiny_16") == command.REFUTED
    assert "None of 2 calls is slower" in capsys.readouterr().out


@pytest.mark.parametrize(
    "machine, clock, words",
    [
        (
            {"device_name": "Some GPU"},
            "host",
            "has another device (Some GPU, and this is ",
        ),
        ({}, "host_cold", "has another clock (host_cold, and this is host)"),
        (
            {"versions": {"torch": "1.0"}},
            "host",
            "no evidence for what is installed now: measured with torch 1.0",
        ),
    ],
)
def test_a_run_that_is_no_evidence_here_is_refused(here, machine, clock, words):
    run = a_run(here / "run", record("torch_bmm", 3, 2e-5, clock=clock), **machine)
    with pytest.raises(
        UsageError, match=".*" + words.replace("(", r"\(").replace(")", r"\)")
    ):
        command.dispatch(run, "smoke", "cpu", "")
    assert FakeIsolation.made == 0


def test_an_unknown_profile_is_refused():
    with pytest.raises(UsageError, match="unknown profile 'fast'"):
        command.dispatch(None, "fast", "cpu", "")


def test_the_report_has_a_row_an_op():
    text = report.table(
        [called(0.5e-5), called(1e-5, variant="torch_bmm")], PLAIN
    ).splitlines()[-1]
    assert " ".join(text.split()) == "bmm 2 1 2.00x 2.00x 1.00 µs 1.00 µs 10% of a call"
