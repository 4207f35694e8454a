"""The README's figures are the committed run's, and nothing that it names is missing."""

import json
import re
from pathlib import Path

import pytest

from batchline.bench import records, selftests
from batchline.bench.commands import aa, readme
from batchline.bench.exit_codes import ExitCode

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
METHODOLOGY = (REPOSITORY / "reports" / "METHODOLOGY.md").read_text(encoding="utf-8")
EVIDENCE = REPOSITORY / re.search(
    r"\((reports/evidence/[^/)]+)/README\.md\)", README
).group(1)


def test_the_a_a_figure_is_the_stored_one():
    folder = (
        REPOSITORY
        / "reports"
        / re.search(r"\((evidence/[^/)]+)/a-a\.json\)", METHODOLOGY).group(1)
    )
    figure = (
        re.search(r"^> (A/A by .*?)\n\n", METHODOLOGY, re.MULTILINE | re.DOTALL)
        .group(1)
        .replace("\n> ", " ")
    )
    document = json.loads((folder / aa.FILE_NAME).read_text(encoding="utf-8"))
    assert document["machine"]["revision"]["dirty"] is False
    pairs = [aa.Pair(**pair) for pair in document["pairs"]]
    summary = aa.summary(pairs, document["machine"]["device_name"], document["clock"])
    assert " ".join(summary.split()).startswith(figure)


def test_the_figures_of_an_ops_own_call_are_the_stored_ones():
    section = " ".join(
        METHODOLOGY.partition("## An op's own call")[2].partition("\n## ")[0].split()
    )
    text = (
        REPOSITORY
        / "reports"
        / re.search(r"\((evidence/[^/)]+/dispatch\.txt)\)", section).group(1)
    ).read_text()
    assert (
        "None of 197 calls is slower than the baseline by more than the look-up."
        in text
    )
    assert "none of 197 calls is" in section
    rows = [
        line.split()
        for line in text.splitlines()
        if line.startswith(("bmm", "grad_stats", "wgrad"))
    ]
    for op, problems, others, gain, *_ in rows:
        assert re.search(
            rf"{op} (is )?{gain}( as fast)? \({others} of {problems}", section
        ), op
    assert "takes 1.98 µs beside" in section and "takes 5.23 µs more" in section
    assert re.search(r"^bmm .* 1\.98 µs +5\.23 µs", text, re.MULTILINE)


def test_the_machine_is_named():
    machine = records.load(EVIDENCE).machine
    assert machine["device_name"] in README
    assert machine["revision"]["dirty"] is False


@pytest.mark.parametrize("document", ["README.md", "reports/METHODOLOGY.md"])
def test_links_lead_somewhere(document):
    path = REPOSITORY / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_every_setting_of_the_makefile_is_in_the_readme():
    settings = re.findall(
        r"^([A-Z_]+) +\?=", (REPOSITORY / "Makefile").read_text(), re.MULTILINE
    )
    assert len(settings) == 11
    assert not [name for name in settings if f"`{name}`" not in README]


def test_the_tables_of_the_statistics_are_the_stored_runs():
    section = README.partition("## One read, nothing materialised")[2].partition(
        "\n## "
    )[0]
    folder = REPOSITORY / re.search(
        r"\((reports/evidence/[^/)]+)/README\.md\)", section
    ).group(1)
    report = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        re.search(r"^\| batch.*?(?=\n\n)", section, re.MULTILINE | re.DOTALL).group(0)
        in report
    )
    stored = [
        [cell.strip() for cell in line.split("|")[1:5]] for line in report.splitlines()
    ]
    table = section.partition("| way |")[2].partition("\n\n")[0]
    ways = [
        [cell.strip() for cell in line.split("|")[1:5]]
        for line in table.splitlines()[2:]
    ]
    assert len(ways) == 4 and all(way in stored for way in ways)
    assert records.load(folder).machine["revision"]["dirty"] is False


def test_the_verdicts_and_the_cost_of_metering_are_the_stored_ones():
    section = README.partition("## What batch size?")[2].partition("\n## ")[0]
    folder = REPOSITORY / re.search(
        r"\((reports/evidence/[^/)]+)/README\.md\)", section
    ).group(1)
    report = (folder / "README.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ")
        for line in section.splitlines()
        if line.startswith("| ")
    ][1:]
    assert len(rows) == 4
    for claim, verdict, measured in rows:
        (stored,) = (
            line for line in report.splitlines() if line.startswith(f"| {claim} ")
        )
        assert verdict.split("**")[1].upper() == re.search(
            r"\*\*([A-Z ]+[A-Z])\b", stored
        ).group(1), claim
        assert all(part.rstrip(")") in stored for part in measured.split("; ")), claim
    for figure in (
        "73.9 (67 to 78.4)",
        "which took 1.33x the time",
        "the worst disagreement is 3.28x",
        "1.52x: at B = 1437 the model says 102 ms (62 updates), training took 155 ms (92)",
    ):
        assert figure in report
    stored = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert (
        stored["machine"]["revision"]["dirty"] is False
        and f"{stored['sweep']['seconds']:.0f} s" in section
    )
    costs = {
        tuple(line.split()[:2]) + (line[21:39].strip(),): line
        for line in (folder / "noise-cost.txt")
        .read_text(encoding="utf-8")
        .splitlines()[2:]
    }
    for key, percent in (
        (("characters", "64", "NoiseMeter"), 28),
        (("characters", "64", "Opacus ghost norms"), 107),
        (("characters", "64", "BackPACK batch_l2"), 61),
        (("digits", "128", "NoiseMeter"), 125),
        (("digits", "128", "Opacus ghost norms"), 200),
        (("digits", "128", "BackPACK batch_l2"), 158),
        (("digits", "128", "NoiseMeter, read"), 349),
    ):
        assert (
            round(float(re.search(r"\+([0-9.]+)%", costs[key]).group(1))) == percent
        ), key
        assert f"{percent}%" in section


def test_the_figures_are_those_of_the_stored_runs(capsys):
    assert readme.readme(check=True) == ExitCode.CLEAN, capsys.readouterr().out


def test_the_self_test_is_of_a_clean_checkout_and_whole():
    for document in (README, METHODOLOGY):
        (folder,) = re.findall(r"<!-- shown: selftest ([^ ;]+)", document)
        found = selftests.load(REPOSITORY / folder)
        assert found.about["machine"]["revision"]["dirty"] is False
        assert found.sessions == 20 and not found.about["ended"]
