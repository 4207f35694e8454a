"""The findings on a run: every verdict of it, each computed once."""

from dataclasses import replace
from functools import cached_property

import pytest

from batchline.bench.errors import Missing
from batchline.bench.verdicts import across_runs, crossovers, laws
from batchline.bench.verdicts.judge import Findings, judge
from batchline.bench.verdicts.laws import LatencyLaw
from tests import pages
from tests.runs import changed

VERDICTS = [
    name for name, one in vars(Findings).items() if isinstance(one, cached_property)
]


@pytest.fixture
def run():
    return pages.everything()


def test_every_verdict_on_a_run_with_everything(run):
    findings = judge(run, run)
    empty = {name for name in VERDICTS if not getattr(findings, name)}
    assert empty == {"unranked", "token_crossings", "launch_waves"}  # it has none
    assert [record.id for record in findings.timed.values()] == list(findings.timed)
    assert findings.bounds.keys() == findings.timed.keys()
    assert findings.memory_growths.keys() <= {key[:4] for key in findings.latency_laws}
    choices = [choice for group in findings.choices.values() for choice in group]
    assert choices == crossovers.choices(run.records, run.baselines)


def test_a_verdict_is_computed_once(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        crossovers, "choices", lambda *inputs: asked.append(inputs) or []
    )
    findings = judge(run)
    assert findings.choices is findings.choices and findings.choice_changes == []
    assert len(asked) == 1


def test_a_law_is_there_or_says_why_not(run):
    findings = judge(run)
    assert findings.latency_laws == laws.latency_laws(
        run.records, laws.launch_waves(run)
    )
    for law in findings.latency_laws.values():
        assert isinstance(law, LatencyLaw) or law.reason


def test_without_ceilings_nothing_is_bound_and_why_is_said(run):
    why = "the machine was busy"
    findings = judge(replace(run, ceilings=None, why_no_ceilings=why))
    assert findings.ceilings == Missing("the machine was busy")
    assert findings.bounds == {}
    record = next(iter(findings.timed.values()))
    assert findings.bound(record, "host", 1e-6) == Missing("the machine was busy")


def test_a_run_is_compared_with_one_of_its_own_machine_and_profile(run):
    assert judge(run, run).comparison.moved == []
    other = changed(run, profile="another")
    assert "profile" in judge(run, other).comparison.reason
    assert judge(run).comparison == Missing("there is no run before it")


def test_a_damaged_run_before_it_does_not_stop_the_report(run, monkeypatch):
    def damaged(*runs):
        raise KeyError("profile")

    monkeypatch.setattr(across_runs, "are_comparable", damaged)
    assert judge(run, run).comparison.reason.startswith("it can't be compared")


def test_missing_is_never_true_and_reads_as_its_reason():
    assert not Missing("no GPU") and f"{Missing('no GPU')}" == "no GPU"
