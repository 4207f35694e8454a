"""The README's figures are the committed run's, and nothing that it names is missing."""
import json
import re
from pathlib import Path

import pytest

from bench import a_a, records

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
METHODOLOGY = (REPOSITORY / "reports" / "METHODOLOGY.md").read_text(encoding="utf-8")
EVIDENCE = REPOSITORY / re.search(r"\((reports/evidence/[^/)]+)/README\.md\)", README).group(1)


def test_the_table_is_the_stored_runs():
    table = re.search(r"^\| batch.*?(?=\n\n)", README, re.MULTILINE | re.DOTALL).group(0)
    assert len(table.splitlines()) > 4
    assert table in (EVIDENCE / "README.md").read_text(encoding="utf-8")


def test_the_ladder_is_the_stored_runs():
    table = README.partition("| rung | idea ")[2].partition("\n\n")[0]
    rungs = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    stored = [[cell.strip() for cell in line.split("|")[1:5]]
              for line in (EVIDENCE / "README.md").read_text(encoding="utf-8").splitlines()]
    assert len(rungs) == 4 and all(rung in stored for rung in rungs)


def test_the_a_a_figure_is_the_stored_one():
    figure = re.search(r"^> (A/A by .*?)\n\n", METHODOLOGY, re.MULTILINE | re.DOTALL).group(1).replace("\n> ", " ")
    document = json.loads((EVIDENCE / a_a.FILE_NAME).read_text(encoding="utf-8"))
    assert document["machine"]["revision"]["dirty"] is False
    pairs = [a_a.Pair(**pair) for pair in document["pairs"]]
    assert a_a.summary(pairs, document["machine"]["device_name"], document["clock"]).endswith(figure)


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
    settings = re.findall(r"^([A-Z]+) +\?=", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert len(settings) == 8
    assert not [name for name in settings if f"`{name}`" not in README]


def test_the_tables_of_the_statistics_are_the_stored_runs():
    section = README.partition("## One read, nothing materialised")[2].partition("\n## ")[0]
    folder = REPOSITORY / re.search(r"\((reports/evidence/[^/)]+)/README\.md\)", section).group(1)
    report = (folder / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^\| batch.*?(?=\n\n)", section, re.MULTILINE | re.DOTALL).group(0) in report
    stored = [[cell.strip() for cell in line.split("|")[1:5]] for line in report.splitlines()]
    table = section.partition("| way |")[2].partition("\n\n")[0]
    ways = [[cell.strip() for cell in line.split("|")[1:5]] for line in table.splitlines()[2:]]
    assert len(ways) == 4 and all(way in stored for way in ways)
    assert records.load(folder).machine["revision"]["dirty"] is False
