"""The claims as a report shows them: verdicts with their numbers, the evidence, and
whose sweep it was.
"""

import re

import pytest

from batchline.bench.noise import claims
from batchline.bench.report.document import Place, select
from batchline.bench.report.sections import training as shown
from tests.claims_evidence import (
    drawn_cosines,
    noise,
    peaks_of_a_line,
    stored_estimate,
    sweep,
)
from tests.documents import in_markdown, on_terminal

EVIDENCE = sweep(), noise(
    peaks_of_a_line(1000, 4096), drawn_cosines(23.4), stored_estimate(23.4), 2**30
)


@pytest.fixture(scope="module")
def verdicts():
    return claims.judge(*EVIDENCE)


def test_every_claim_has_its_verdict_and_its_numbers_in_the_short_form(verdicts):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in in_markdown(shown.tabulate_claims(verdicts)).splitlines()[2:]
    ]
    assert [row[0] for row in rows] == [verdict.claim for verdict in verdicts]
    for row, verdict in zip(rows, verdicts):
        assert row[1] == f"**{verdict.text}**" and re.search(
            r"\d.*\(\S*\d.* to .*\d.*\)", row[2]
        )
    assert "**" not in on_terminal(shown.tabulate_claims(verdicts))


def test_the_section_holds_every_part_every_row_and_every_source(verdicts):
    text = in_markdown(shown.claims(verdicts, EVIDENCE[0]))
    for verdict in verdicts:
        assert verdict.hypothesis in text and all(
            source in text for source in verdict.sources
        )
        for finding in verdict.findings:
            assert (
                finding.part in text and finding.text in text and finding.effect in text
            )
        for table in verdict.evidence:
            assert table.title in text and all(
                cell in text for row in table.rows for cell in row
            )
    assert text.count("<details>") == text.count("</details>") == 4


def test_the_terminal_has_a_line_a_part(verdicts):
    section = shown.claims(verdicts, EVIDENCE[0])
    (part,) = select(section.parts, Place.TERMINAL)
    lines = part.lines
    assert len(lines) == 4 + sum(len(verdict.findings) for verdict in verdicts) + 1
    assert lines[-1].startswith(
        "The training sweep was measured on Some CPU, 2026-01-02"
    )


def test_a_sweep_of_another_machine_is_said_to_be_that():
    assert "another machine than this run's, Other CPU" in shown.provenance(
        sweep(), {"device_name": "Other CPU"}
    )
    same = shown.provenance(sweep(), {"device_name": "Some CPU"})
    assert (
        "another" not in same
        and "Some CPU, 2026-01-02" in same
        and "5 at those that matter" in same
    )


def test_a_partial_sweep_is_said_to_be_that():
    partial = sweep() | {"partial": True, "not_run": [[4, 0.125, 0]] * 3}
    assert "partial: 3 runs were not begun" in shown.provenance(partial)
    assert "partial" not in shown.provenance(sweep())


def test_without_evidence_the_section_says_which_commands_make_it():
    text = in_markdown(shown.claims(claims.judge(None, None), None))
    assert (
        text.count("NOT DECIDED") >= 8
        and "`batchline claims` runs one" in text
        and "<details>" not in text
    )
