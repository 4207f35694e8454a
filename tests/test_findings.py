"""The verdicts on a run, each computed once, whatever asks for it."""

import pytest

from batchline.bench.report import RunReport, findings
from batchline.bench.report.document import Place
from batchline.bench.report.findings import Findings
from batchline.bench.report.render import html
from batchline.bench.verdicts import choosing, crossovers, laws
from tests.documents import in_markdown
from tests.noise_evidence import noise, point, workload
from tests.pages import a_run, everything

JUDGES = (
    (crossovers, "choices"),
    (crossovers, "crossovers"),
    (crossovers, "token_crossings"),
    (laws, "latency_laws"),
    (laws, "memory_growths"),
    (choosing, "invariance_by_variant"),
    (findings.claims, "judge"),
    (findings.time_to_target, "compare"),
)


@pytest.mark.parametrize(
    "module, function", JUDGES, ids=[function for _, function in JUDGES]
)
def test_a_report_for_every_place_judges_once(monkeypatch, module, function):
    judge, calls = getattr(module, function), []

    def counted(*arguments):
        calls.append(function)
        return judge(*arguments)

    monkeypatch.setattr(module, function, counted)
    report = RunReport(everything())
    for place in (Place.README, Place.PAGE, Place.TERMINAL, Place.CI):
        assert report.document(place).sections
    assert calls == [function]


def test_advice_for_a_moment_is_given_once(monkeypatch):
    advise, moments = findings.advisor.advice, []

    def counted(workload, moment, *rest):
        moments.append(moment.updates)
        return advise(workload, moment, *rest)

    monkeypatch.setattr(findings.advisor, "advice", counted)
    report = RunReport(everything())
    for place in (Place.README, Place.PAGE, Place.TERMINAL):
        report.document(place)
    assert len(moments) == len(set(moments)) > 1


def test_a_run_without_noise_has_no_findings_of_training():
    assert Findings(a_run(noise=None)).training is None


def test_why_there_is_no_advice_is_said_each_time():
    one_batch = [{"batch": 8, "samples_s": [1e-3] * 9, "peak_bytes": 1000}]
    run = a_run(
        noise=noise(digits=workload([point(0, 0, 10.0)], steps=one_batch)), sweep=None
    )
    report = RunReport(run)
    for _ in range(2):
        with pytest.raises(ValueError):
            report.findings.training.middle_advice("digits")
    assert "No advice: " in in_markdown(*report.document(Place.README).sections)
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    assert "No advice: " in html.render(run, report.document(Place.PAGE))
