"""`bench dispatch`: tables from a run's evidence, calls confirmed in fresh processes, slower choices taken out."""
import json
from dataclasses import replace

import pytest

import kernels
from bench import dispatch as command
from bench import records
from bench.declared import Catalogue
from bench.errors import UsageError
from bench.measure import environment
from bench.measure.task import Outcome
from bench.records import FAILED, MEASURED, OURS, Record
from bench.report import dispatch as report
from bench.report.tables import PLAIN
from bench.verdicts.dispatch import Called, measured
from kernels import device_files
from kernels.device import device_name
from kernels.op import Op
from tests.plans import planned

CANDIDATES = {"bmm": {"torch_bmm", "fast", "slow"}}
BASELINES = {"bmm": "torch_bmm"}


def record(variant, batch, median_s, spread=0.001, **facts):
    samples = [median_s * (1 + spread * (index - 10) / 10) for index in range(21)]
    return Record("bmm", variant, "tiny_16", "float32", batch, MEASURED, samples_s=tuple(samples),
                  facts={"clock": "host", **facts})


@pytest.mark.parametrize("rows, faster", [
    ([record("fast", 1, 1e-5)], {"fast": 2.0}),
    ([record("fast", 1, 1.6e-5), record("slow", 1, 1.8e-5)], {"fast": 1.25, "slow": 1.111}),  # the best first
    ([record("fast", 1, 1.94e-5)], {}),                   # 3% is told apart, and not worth leaving the library for
    ([record("fast", 1, 1.6e-5, spread=0.9)], {}),        # a quarter, and undecided
    ([record("unknown", 1, 1e-5)], {}),                   # not among those to choose from
    ([record("fast", 1, 1e-5, gives=1)], {}),             # gives only a part of the op
    ([record("fast", 2, 1e-5)], {}),                      # no evidence at this batch
])
def test_what_a_run_says(rows, faster):
    (found,) = measured([record("torch_bmm", 1, 2e-5), *rows], BASELINES, CANDIDATES)
    assert (found.op, found.scenario, found.dtype, found.batch) == ("bmm", "tiny_16", "float32", 1)
    assert list(found.faster.items()) == list(faster.items())


def test_without_the_baselines_time_nothing_is_said():
    assert not list(measured([record("fast", 1, 1e-5)], BASELINES, CANDIDATES))


def called(call_s, baseline_s=1e-5, spread=0.001, look_up_s=1e-6, **changed):
    """A call beside its baseline, and beside the baseline behind a look-up."""
    wobble = [1 + spread * (index - 10) / 10 for index in range(21)]
    samples = [[median_s * factor for factor in wobble] for median_s in (call_s, baseline_s, baseline_s + look_up_s)]
    one = Called("bmm", "tiny_16", "float32", 3, "torch_bmm", "numba_cpu_tiny", "measured", *samples)
    return replace(one, **changed)


@pytest.mark.parametrize("one, slower", [
    (called(1.09e-5), False),               # the look-up
    (called(1.115e-5), False),              # and not told apart from it
    (called(1.2e-5), True),
    (called(1.2e-5, spread=0.9), False),
    (called(0.5e-5), False),
    (called(1.2e-5, look_up_s=2e-6), False),
])
def test_slower_is_beyond_the_look_up_and_what_is_told_apart(one, slower):
    assert one.is_slower is slower


class FakeIsolation:
    """A worker of which the calls take what `seconds` says: (variant of the table's choice, or baseline) → seconds."""

    made = 0
    seconds = {}
    failing = ()

    def __init__(self, device, deadline_s):
        FakeIsolation.made += 1

    def measure(self, task):
        choice = choice_of(task.scenario, task.dtype, task.batch)
        times = {"dispatched": self.seconds.get((task.batch, choice), 1e-5), "torch_bmm": 1e-5}
        return {label: Outcome(FAILED, "no") if task.batch in self.failing else
                Outcome(MEASURED, samples_s=(12e-6 if label in task.configs else times[name],) * 21,
                        facts={"config": {"variant": choice}, "config_source": "measured"})
                for label, name in task.entries}

    def close(self):
        pass


def choice_of(scenario, dtype, batch):
    bmm = kernels.ops["bmm"]
    path = device_files.file_for(bmm.folder, "dispatch", "cpu")
    entries = device_files.stored(path).get("winners", ())
    sizes = list(bmm.describe(*bmm.make_inputs(scenario, batch, dtype, "meta"))[1])
    return next((next(iter(entry["faster"]), "torch_bmm") for entry in entries if entry["sizes"] == sizes), "torch_bmm")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Tables in a folder of the test's own, and workers that only say what they would have measured."""
    the_plan = planned("smoke", "cpu")
    ops = {name: replace(op, folder=tmp_path / "op") for name, op in the_plan.ops.items()}
    monkeypatch.setattr(command, "plan", lambda profile, device: replace(the_plan, ops=ops))
    monkeypatch.setattr(command.catalogue, "read", lambda asked: Catalogue(ops, ()))
    monkeypatch.setattr(Op, "folder", tmp_path / "op")
    monkeypatch.setattr(command, "Isolation", FakeIsolation)
    monkeypatch.setattr(FakeIsolation, "made", 0)
    monkeypatch.setattr(FakeIsolation, "seconds", {})
    monkeypatch.setattr(FakeIsolation, "failing", ())
    device_files.stored.cache_clear()
    yield tmp_path
    device_files.stored.cache_clear()


def a_run(folder, *rows, **machine):
    """A stored run of this machine with these records."""
    document = {
        "machine_info": {OURS: environment.machine("cpu") | machine}, "benchmarks": [
            {"param": row.id, "extra_info": dict(row.facts), "stats": {"data": list(row.samples_s), "iterations": 1}}
            for row in rows],
        OURS: {"started": "2026-01-02T03:04:05", "profile": "smoke", "baselines": BASELINES,
               "cases": [{"id": row.id, "status": MEASURED, "reason": ""} for row in rows]}}
    folder.mkdir()
    records.save(folder, document)
    return folder


def table():
    return json.loads(device_files.file_for(kernels.ops["bmm"].folder, "dispatch", "cpu").read_text())


def test_a_runs_winners_become_the_table_and_are_called(here, capsys):
    rows = [record("torch_bmm", 3, 2e-5), record("numba_cpu_tiny", 3, 1e-5), record("torch_bmm", 16, 2e-5)]
    FakeIsolation.seconds = {(3, "numba_cpu_tiny"): 0.5e-5}
    assert command.dispatch(a_run(here / "run", *rows), "smoke", "cpu", "tiny_16") == command.CLEAN
    found = table()
    assert found["device"] == device_name("cpu") and found["measured"] == "2026-01-02" and found["profile"] == "smoke"
    assert [(row["problem"], row["traits"], row["sizes"], row["faster"]) for row in found["winners"]] == [
        ("tiny_16/float32/B3", "float32/nn", [3, 16, 16, 16], {"numba_cpu_tiny": 2.0}),
        ("tiny_16/float32/B16", "float32/nn", [16, 16, 16, 16], {})]
    out = capsys.readouterr().out
    assert "None of 3 calls is slower" in out and "2.00x" in out and FakeIsolation.made == 1


def test_a_choice_that_fresh_processes_refute_is_taken_out(here, capsys):
    rows = [record("torch_bmm", 3, 2e-5), record("numba_cpu_tiny", 3, 1e-5), record("numba_cpu_tiled", 3, 1.5e-5)]
    FakeIsolation.seconds = {(3, "numba_cpu_tiny"): 2e-5, (3, "numba_cpu_tiled"): 3e-5}
    assert command.dispatch(a_run(here / "run", *rows), "smoke", "cpu", "tiny_16") == command.CLEAN
    assert table()["winners"][0]["faster"] == {}
    told = capsys.readouterr()
    assert "None of 3 calls is slower" in told.out and told.err.count("1 choices are slower") == 2
    assert FakeIsolation.made == 1 + 2 + (1 + 2) + 1


def test_a_run_of_a_part_leaves_the_rest_of_the_table(here):
    path = device_files.file_for(kernels.ops["bmm"].folder, "dispatch", "cpu")
    path.parent.mkdir(parents=True)
    old = [{"problem": f"p/float32/B{batch}", "traits": "float32/nn", "sizes": [batch, 16, 16, 16],
            "faster": {"old": 2.0}} for batch in (3, 5)]
    for versions, kept in (({"torch": "1.0"}, []), (environment.machine("cpu")["versions"], [5])):
        path.write_text(json.dumps({"versions": versions, "winners": old}))
        device_files.stored.cache_clear()
        rows = [record("torch_bmm", 3, 2e-5), record("numba_cpu_tiny", 3, 1e-5)]
        command.dispatch(a_run(here / f"run{len(kept)}", *rows), "smoke", "cpu", "tiny_16")
        assert [row["sizes"][0] for row in table()["winners"]] == [*kept, 3]


def test_without_a_run_the_tables_are_called_as_they_are(here, capsys):
    assert command.dispatch(None, "smoke", "cpu", "tiny_16") == command.CLEAN
    FakeIsolation.seconds = {(3, "torch_bmm"): 2e-5}
    assert command.dispatch(None, "smoke", "cpu", "tiny_16") == command.REFUTED
    assert ("1 of 3 calls are slower than the baseline by more than the look-up: bmm/tiny_16/float32/B3: 20.0 µs by "
            "torch_bmm (measured), the baseline 10.0 µs, and 2.00 µs for the look-up"
            ) in " ".join(capsys.readouterr().out.split())
    assert not list(here.iterdir())


def test_what_could_not_be_timed_is_said(here, capsys):
    FakeIsolation.failing = (1, 3, 16)
    assert command.dispatch(None, "smoke", "cpu", "tiny_16") == command.NOT_MEASURED
    told = capsys.readouterr()
    assert "bmm/dispatched/tiny_16/float32/B3: failed: no" in told.err and "No call was timed" in told.out


def test_a_call_that_fails_beside_others_is_no_clean_end(here, capsys):
    FakeIsolation.failing = (3,)
    assert command.dispatch(None, "smoke", "cpu", "tiny_16") == command.REFUTED
    assert "None of 2 calls is slower" in capsys.readouterr().out


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("gone")])
def test_tables_that_were_not_called_to_the_end_are_put_back(here, monkeypatch, error):
    path = device_files.file_for(kernels.ops["bmm"].folder, "dispatch", "cpu")
    run = a_run(here / "run", record("torch_bmm", 3, 2e-5), record("numba_cpu_tiny", 3, 1e-5))

    def measure(self, task):
        assert table()["winners"][0]["faster"] == {"numba_cpu_tiny": 2.0}
        raise error

    monkeypatch.setattr(FakeIsolation, "measure", measure)
    for before in (None, b'{"versions": {}, "winners": []}'):
        if before:
            path.write_bytes(before)
            device_files.stored.cache_clear()
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                command.dispatch(run, "smoke", "cpu", "tiny_16")
        else:
            assert command.dispatch(run, "smoke", "cpu", "tiny_16") == command.NOT_MEASURED
        assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("machine, clock, words", [
    ({"device_name": "Some GPU"}, "host", "has another device (Some GPU, and this is "),
    ({}, "host_cold", "has another clock (host_cold, and this is host)"),
    ({"versions": {"torch": "1.0"}}, "host", "no evidence for what is installed now: measured with torch 1.0"),
])
def test_a_run_that_is_no_evidence_here_is_refused(here, machine, clock, words):
    run = a_run(here / "run", record("torch_bmm", 3, 2e-5, clock=clock), **machine)
    with pytest.raises(UsageError, match=".*"+words.replace("(", r"\(").replace(")", r"\)")):
        command.dispatch(run, "smoke", "cpu", "")
    assert FakeIsolation.made == 0


def test_an_unknown_profile_is_refused():
    with pytest.raises(UsageError, match="unknown profile 'fast'"):
        command.dispatch(None, "fast", "cpu", "")


def test_the_report_has_a_row_an_op():
    text = report.table([called(0.5e-5), called(1e-5, variant="torch_bmm")], PLAIN).splitlines()[-1]
    assert " ".join(text.split()) == "bmm 2 1 2.00x 2.00x 1.00 µs 1.00 µs 10% of a call"
