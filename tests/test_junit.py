"""JUnit XML of a comparison and of a run: what is no pass in one is no pass in the
other, and the structure holds.
"""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from batchline.bench.report import of_run
from batchline.bench.report.render.junit import of_a_run, of_regression
from batchline.bench.statuses import (
    BROKEN,
    INVALID,
    MEASURED,
    NOT_HERE,
    NOT_REACHED,
    STATUSES,
    UNSUPPORTED,
    WRONG,
)
from batchline.bench.store.regressions import (
    EQUIVALENT,
    IDENTICAL,
    IMPROVED,
    INCONCLUSIVE,
    MEMORY,
    MISSING,
    NEW,
    REGRESSED,
    UNCONFIRMED,
    VERDICTS,
)
from tests.comparisons import (
    BROKEN_CASES,
    BUSY_CASE,
    HOSTILE,
    IMPOSSIBLE,
    comparison,
    hostile_comparison,
    judged,
    over_batches,
    run,
)

# Of junit-10.xsd (jenkinsci/xunit-plugin): the children and attributes that an element
# may have, those it must have.
ALLOWED = {
    "testsuites": (
        {"testsuite"},
        {"name", "time", "tests", "failures", "errors"},
        set(),
    ),
    "testsuite": (
        {"properties", "testcase", "system-out", "system-err", "testsuite"},
        {
            "name",
            "tests",
            "failures",
            "errors",
            "group",
            "time",
            "skipped",
            "timestamp",
            "hostname",
            "id",
            "package",
            "file",
            "log",
            "url",
        },
        {"name", "tests", "failures", "errors"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, {"name", "value"}),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"},
        {"name", "time", "classname", "group"},
        {"name"},
    ),
    **dict.fromkeys(
        ("skipped", "error", "failure"), (set(), {"type", "message"}, set())
    ),
}
TAGS = {
    REGRESSED: "failure",
    "INVALID": "error",
    UNCONFIRMED: "error",
    INCONCLUSIVE: "skipped",
    NEW: "skipped",
    MISSING: "skipped",
    IMPROVED: None,
    EQUIVALENT: None,
    IDENTICAL: None,
}


def suite_of(text):
    """The one suite, once the structure and the counts have been held against the
    schema.
    """
    suites = ElementTree.fromstring(text.encode("utf-8"))
    for element in suites.iter():
        children, attributes, required = ALLOWED[element.tag]
        assert {child.tag for child in element} <= children and required <= set(
            element.attrib
        ) <= attributes
        assert re.fullmatch(r"\d+(\.\d+)?", element.get("time", "0"))
    (suite,) = suites
    for attribute, tag in (
        ("tests", "testcase"),
        ("failures", "failure"),
        ("errors", "error"),
        ("skipped", "skipped"),
    ):
        assert int(suite.get(attribute)) == len(list(suite.iter(tag)))
        assert attribute == "skipped" or suites.get(attribute) == suite.get(attribute)
    return suite


def outcomes(text):
    """(class, name) of each test case → (the tag of what it is but a pass, its
    message), or None.
    """
    return {
        (test.get("classname"), test.get("name")): next(
            ((child.tag, child.get("message")) for child in test), None
        )
        for test in suite_of(text).iter("testcase")
    }


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_regression_is_a_failure_what_is_invalid_an_error_and_what_is_not_known_skipped(
    verdict,
):
    found = outcomes(of_regression(comparison(judged(verdict), judged(EQUIVALENT, 2))))
    outcome = found["bmm.tiled", "tiny_16/float16/B1 latency"]
    assert (outcome and outcome[0]) == TAGS[verdict]
    assert outcome is None or outcome[1].startswith(f"{verdict}: ")
    assert len(found) == 2 and found["bmm.tiled", "tiny_16/float16/B2 latency"] is None


def test_times_are_the_heads_and_only_of_latencies():
    suite = suite_of(
        of_regression(
            comparison(
                judged(REGRESSED), judged(REGRESSED, 2, MEMORY), judged(IDENTICAL, 4)
            )
        )
    )
    assert [test.get("time") for test in suite.iter("testcase")] == [
        "0.000022000",
        "0.000000000",
        "0.000000000",
    ]
    assert (
        suite.get("time") == "83.200"
        and suite.get("timestamp") == "2026-01-02T03:04:05+00:00"
    )


def test_a_verdict_over_the_batch_sizes_is_a_test_case():
    found = outcomes(
        of_regression(comparison(judged(INCONCLUSIVE), kernels=[over_batches()]))
    )
    assert found["bmm.tiled", "tiny_16/float16/all batch sizes latency"] == (
        "failure",
        "REGRESSED: slower for B ≤ 16 (+7.2%), equal above",
    )


def test_in_a_void_session_nothing_passes():
    void = comparison(
        judged(EQUIVALENT), judged(REGRESSED, 2), kernels=[over_batches()], void="noise"
    )
    found = outcomes(of_regression(void))
    assert len(found) == 4 and {outcome[0] for outcome in found.values()} == {"error"}
    assert (
        found["bmm.tiled", "tiny_16/float16/B1 latency"][1]
        == "the session is void: noise"
    )


@pytest.mark.parametrize(
    "cases",
    [
        (),
        (judged(MISSING),),
        (judged("INVALID"), judged(MISSING, 2)),
        (judged(INCONCLUSIVE), judged(IDENTICAL, 2)),
    ],
)
def test_where_nothing_was_judged_the_session_is_an_error(cases):
    tag, message = outcomes(of_regression(comparison(*cases)))[
        "batchline.regress", "session"
    ]
    assert tag == "error" and message.startswith(("COULD NOT MEASURE", "UNDECIDED"))


@pytest.mark.parametrize("status", STATUSES)
def test_a_cases_status_is_its_outcome(status):
    if status != MEASURED:
        found = outcomes(of_a_run(run(("other", 4, status, "why")))).pop(
            ("bmm.other", "tiny_16/float32/B4")
        )
        tag = {WRONG: "failure", UNSUPPORTED: "skipped", NOT_HERE: "skipped"}.get(
            status, "error"
        )
        assert found == (tag, f"{status}: why")
    assert outcomes(of_a_run(run()))["bmm.torch_bmm", "tiny_16/float32/B4"] is None


def test_a_machine_that_was_busy_is_no_error():
    found = outcomes(of_a_run(run(BUSY_CASE)))["bmm.fast", "tiny_16/float32/B4"]
    assert found == ("skipped", f"invalid: {BUSY_CASE[-1]}")


@pytest.mark.parametrize(
    "measured",
    [
        run(),
        run(BUSY_CASE),
        run(partial=True),
        run(audit=[IMPOSSIBLE]),
        run(audit=[IMPOSSIBLE | {"whose": "control"}]),
        run(audit=[IMPOSSIBLE | {"impossible": False}]),
        *(
            run(("other", 4, status, "why"))
            for status in (*BROKEN, NOT_REACHED, UNSUPPORTED, NOT_HERE)
        ),
    ],
)
def test_xml_and_annotations_agree_on_whether_a_run_is_clean(measured):
    suite = suite_of(of_a_run(measured))
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0") or list(
        of_run.problems(measured)
    )
    assert not list(of_run.problems(measured)) or (
        suite.get("failures"),
        suite.get("errors"),
    ) != (
        "0",
        "0",
    )


def test_a_run_without_a_time_does_not_pass():
    measured = run()
    nothing = replace(measured, records=measured.records[1:])
    for empty in (nothing, replace(measured, records=())):
        assert outcomes(of_a_run(empty))["batchline.run", "session"][0] == "error"


def test_a_runs_times_and_its_impossible_statistics():
    suite = suite_of(of_a_run(run(*BROKEN_CASES, audit=[IMPOSSIBLE])))
    assert suite.find("testcase").get("time") == "0.000002500"
    assert {
        name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")
    } == {"tests": "9", "failures": "2", "errors": "4", "skipped": "2"}
    assert suite.findall("testcase")[-1].get("name") == "large_mean/bfloat16 numerics"


def test_text_of_others_is_text_in_xml():
    hostile_run = run(
        ("other", 4, INVALID, HOSTILE),
        audit=[IMPOSSIBLE | {"failed": HOSTILE, "variant": HOSTILE}],
    )
    for text in (of_regression(hostile_comparison()), of_a_run(hostile_run)):
        assert "<script>" not in text and not re.search(
            "[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202e]", text
        )
        messages = [element.get("message") for element in suite_of(text).iter("error")]
        assert messages and all(
            "<script>alert(\"1\")</script> 'q' & |" in message for message in messages
        )
        assert not [
            value
            for element in suite_of(text).iter()
            for value in element.attrib.values()
            if "\n" in value
        ]
