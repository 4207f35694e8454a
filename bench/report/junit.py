"""A comparison, or an ordinary run, as JUnit XML, which CI systems read: a test case
for each case.

The structure is that of Jenkins' junit-10.xsd (jenkinsci/xunit-plugin).
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

from batchline.bench.records import (
    MEASURED,
    NOT_HERE,
    UNSUPPORTED,
    WRONG,
    Run,
    is_machines_fault,
)
from batchline.bench.regressions import (
    INCONCLUSIVE,
    INVALID,
    LATENCY,
    MISSING,
    NEW,
    REGRESSED,
    UNCONFIRMED,
    Regression,
)
from batchline.bench.report import regression_words as words
from batchline.bench.report import run_in_ci, tables
from batchline.bench.report.escaping import one_line
from batchline.bench.report.readme import summary
from batchline.bench.verdicts.conclusion import NOTHING, VOID, conclude

FILE_NAME = "junit.xml"
_REGRESS, _RUN = "batchline.regress", "batchline.run"
_TAGS = {MEASURED: None, WRONG: "failure", UNSUPPORTED: "skipped", NOT_HERE: "skipped"}


def junit(regression: Regression) -> str:
    """The XML document, with a test case for each case and quantity, and for each
    verdict over the batch sizes.

    REGRESSED is a failure, INVALID and UNCONFIRMED are errors; in a void session all
    are. INCONCLUSIVE, NEW and MISSING are skipped, with the reason: they neither show a
    regression nor rule one out, and a pass would say the latter. IDENTICAL passes, as
    the same code can't have become slower. `time` is a call's median at head in
    seconds, 0 for what is no latency. Where nothing was judged there is one more test
    case, the session, that is an error: a file with no test case, or all of them
    skipped, would pass.
    """
    suite = _suite(_REGRESS, regression.about, words.provenance(regression.about))
    for kernel in regression.kernels:
        test = _test(suite, f"{kernel.id}/all batch sizes {kernel.quantity}")
        _judge(test, kernel.verdict, kernel.words, regression.void)
    for case in regression.cases:
        test = _test(
            suite,
            f"{case.id} {case.quantity}",
            case.head if case.quantity == LATENCY else None,
        )
        _judge(test, case.verdict, words.line(case), regression.void)
    if conclude(regression) in (VOID, NOTHING):
        _session_error(suite, words.answer(regression))
    return _document(suite)


def junit_of_run(run: Run) -> str:
    """The XML document of a run: it has a failure or an error exactly where `batchline run`
    does not exit with 0.

    A wrong result is a failure, and an impossible statistic of the numerics audit too;
    what failed, hung, crashed, ran out of memory, has a time that can't be believed, or
    was not reached, is an error. What the variant declares not to support, can't run
    here, or met a busy or throttled machine, is skipped, with the reason. `time` is a
    call's median in seconds. Where nothing was measured, or the run was stopped, there
    is one more test case, the session, that is an error.
    """
    suite = _suite(_RUN, run.about, summary(run))
    for record in run.records:
        test = _test(
            suite, record.id, record.median_s if record.status == MEASURED else None
        )
        tag = (
            "skipped"
            if is_machines_fault(record.status, record.reason)
            else _TAGS.get(record.status, "error")
        )
        _outcome(test, tag, record.status, f"{record.status}: {record.reason}")
    for one in tables.broken_files(run):
        _outcome(
            _test(suite, one["file"]),
            "error",
            one["status"],
            f"{one['status']}: {one['reason']}",
        )
    for row in run_in_ci.impossible(run):
        test = _test(
            suite,
            f"{row['op']}/{row['variant']}/{row['condition']}/{row['dtype']} numerics",
        )
        _outcome(test, "failure", "impossible statistics", row["failed"])
    if incomplete := run_in_ci.why_incomplete(run):
        _session_error(suite, f"{incomplete}: {summary(run)}")
    return _document(suite)


def _suite(name: str, about: Mapping, what: str) -> ElementTree.Element:
    suite = ElementTree.Element(
        "testsuite",
        name=name,
        timestamp=one_line(str(about["started"])),
        time=f"{about['seconds']:.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(properties, "property", name="what", value=one_line(what))
    return suite


def _test(
    suite: ElementTree.Element, name: str, time_s: float | None = None
) -> ElementTree.Element:
    """`name` is a case id and what may follow it: op and variant are the class."""
    op, variant, problem = (one_line(name).split("/", 2) + ["", ""])[:3]
    return ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"{op}.{variant}",
        name=problem,
        time=f"{time_s or 0.0:.9f}",
    )


def _session_error(suite: ElementTree.Element, message: str) -> None:
    test = ElementTree.SubElement(
        suite, "testcase", classname=suite.get("name"), name="session", time="0"
    )
    _outcome(test, "error", "session", message)


def _judge(
    test: ElementTree.Element, verdict: str, message: str, void: str | None
) -> None:
    if void is not None:
        _outcome(test, "error", "VOID", f"the session is void: {void}")
        return
    tag = {REGRESSED: "failure", INVALID: "error", UNCONFIRMED: "error"}.get(verdict)
    _outcome(
        test,
        "skipped" if verdict in (INCONCLUSIVE, NEW, MISSING) else tag,
        verdict,
        f"{verdict}: {message}",
    )


def _outcome(
    test: ElementTree.Element, tag: str | None, kind: str, message: str
) -> None:
    """Nothing for a pass, which has no tag."""
    if tag:
        ElementTree.SubElement(
            test, tag, type=one_line(kind), message=one_line(message)
        ).text = one_line(message)


def _document(suite: ElementTree.Element) -> str:
    for attribute, tag in (
        ("tests", "testcase"),
        ("failures", "failure"),
        ("errors", "error"),
        ("skipped", "skipped"),
    ):
        suite.set(attribute, str(sum(1 for _ in suite.iter(tag))))
    # The schema has no `skipped` and no `timestamp` here.
    suites = ElementTree.Element(
        "testsuites",
        {
            attribute: suite.attrib[attribute]
            for attribute in ("name", "time", "tests", "failures", "errors")
        },
    )
    suites.append(suite)
    ElementTree.indent(suites)
    # Said here, as ElementTree would name the locale's encoding for a str.
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suites, encoding="unicode")}\n'
