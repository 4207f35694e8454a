"""A/A: the figure, and a run of it."""

import json
from dataclasses import replace

import pytest

from batchline.bench import cases
from batchline.bench.commands import aa
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.report.of_commands import summarize_a_a
from batchline.bench.statuses import FAILED, MEASURED
from batchline.bench.store import selftests
from batchline.bench.store.selftests import Pair
from tests.plans import planned

pytestmark = pytest.mark.commands


def _pair(name, first_s, second_s):
    return Pair(name, MEASURED, "", first_s, second_s, 0.004, 100)


def test_the_figure_counts_cases_over_60_us_that_differ_by_less_than_2_percent():
    pairs = [
        _pair("a", 1e-4, 1.019e-4),
        _pair("b", 1e-3, 0.979e-3),
        _pair("c", 1e-2, 1.0e-2),
        _pair("d", 1e-4, 1e-4),
        _pair("short", 5e-5, 9e-5),
        Pair("broken", FAILED, "ValueError: no"),
    ]
    answer, table = summarize_a_a(pairs, "Some CPU", "host").split("\n\n")
    assert " ".join(answer.split()) == (
        "A/A by host on Some CPU: 3 of 4 cases over 60.0 µs (75.0%) differ by less than 2% in the "
        "median; half of them by less than 0.95%; 1 not measured"
    )
    assert (
        table.splitlines()[2].split()[:2] == ["b", "1.00"]
        and "-2.10%" in table.splitlines()[2]
    )  # the largest difference first


def test_nothing_over_60_us_is_said():
    assert "nothing to judge" in summarize_a_a(
        [_pair("short", 1e-6, 1e-6)], "Some CPU", "host"
    )


def test_a_short_a_a_of_two_problems(tmp_path, monkeypatch, capsys):
    def two(profile, device):
        made = planned(profile, device)
        chosen = tuple(
            case
            for case in made.cases
            if case.op in ("bmm", "grad_reduce")
            and case.scenario in ("tiny_16", "layer_norm")
            and case.batch == 16
        )
        return replace(made, cases=chosen)

    measured = []
    measure = Isolation.measure

    def measure_and_keep(self, task):
        measured.append(measure(self, task))
        return measured[-1]

    monkeypatch.setattr(cases, "plan", two)
    monkeypatch.setattr(Isolation, "measure", measure_and_keep)
    assert aa.measure_baselines("smoke", "cpu", 0.05, folder=tmp_path / "new") == 0
    assert len(measured) == 2
    for (
        outcomes
    ) in (
        measured
    ):  # the two of a case together, so in turns, each with samples of its own
        one, other = outcomes.values()
        assert list(one.samples_s) != list(other.samples_s)
    document = json.loads((tmp_path / "new" / "a-a.json").read_text())
    assert [pair["case"] for pair in document["pairs"]] == [
        "bmm/torch_bmm/tiny_16/float32/B16",
        "grad_reduce/torch_mean/layer_norm/float32/B16",
    ]
    for pair in document["pairs"]:
        assert pair["status"] == MEASURED and pair["samples"] >= 6
        assert (
            pair["first_s"] > 0 and pair["second_s"] > 0
        )  # equal now and then: a clock ticks
    printed = capsys.readouterr()
    assert all(pair["case"] in printed.err for pair in document["pairs"])
    assert "A/A" in printed.out


@pytest.mark.slow
def test_ctrl_c_keeps_the_pairs_that_are_done(tmp_path, monkeypatch, capsys):
    def one_and_stop(*_):
        yield _pair("done", 1e-4, 1.01e-4)
        raise KeyboardInterrupt

    monkeypatch.setattr(aa, "_pairs", one_and_stop)
    assert aa.measure_baselines("smoke", "cpu", 0.05, folder=tmp_path) == 130
    document = json.loads((tmp_path / selftests.A_A_FILE_NAME).read_text())
    assert [pair["case"] for pair in document["pairs"]] == ["done"] and document[
        "partial"
    ]
    printed = capsys.readouterr()
    assert (
        "1 of 1 cases over 60.0 µs" in printed.out
        and "stopped after 1 cases, which are kept" in printed.err
    )


@pytest.mark.slow
def test_ctrl_c_before_the_first_pair_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(aa, "_pairs", lambda *_: (_stopped() for _ in range(1)))
    assert aa.measure_baselines("smoke", "cpu", 0.05, folder=tmp_path) == 130
    assert not list(tmp_path.iterdir())


def _stopped():
    raise KeyboardInterrupt
