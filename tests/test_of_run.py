"""The order of a run's sections, what each place keeps of it, and the files of a large
README.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from batchline.bench.report import RunReport, write_readme
from batchline.bench.report.document import OpSection, Place
from batchline.bench.report.render import markdown
from tests.documents import readme
from tests.pages import a_large_run, everything

EVIDENCE = Path(__file__).resolve().parents[1] / "reports" / "evidence"
TITLES = [
    "Which variant at which batch size",
    "bmm",
    "Latency over the batch",
    "Memory over the batch",
    "Batch invariance",
    "Gradient noise",
    "What batch size?",
    "The four claims",
    "Failures",
    "Not timed, and why",
    "What the compilers made of the GPU variants",
    "The machine",
]
KEPT = {
    Place.README: TITLES,
    Place.PAGE: TITLES,
    Place.TERMINAL: [
        "Which variant at which batch size",
        "bmm",
        "What batch size?",
        "The four claims",
        "Failures",
        "Not timed, and why",
    ],
    Place.CI: ["bmm", "Not timed, and why", "The machine"],
}


@pytest.fixture(scope="module")
def report():
    return RunReport(everything())


@pytest.mark.parametrize("place", KEPT, ids=lambda place: place.name)
def test_every_place_has_the_one_order(report, place):
    sections = report.document(place).sections
    assert [section.title for section in sections] == KEPT[place]


def test_a_report_that_github_shows_is_one_file(report, tmp_path):
    write_readme(report, tmp_path, set(), None)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == readme(report.run)


@pytest.fixture(scope="module")
def large():
    return RunReport(a_large_run())


def _linked(files):
    """The files that the files have links to."""
    return {
        name
        for text in files.values()
        for name in re.findall(r"^\[[^]]*\]\(([^)]*\.md)\)$", text, re.MULTILINE)
    }


def test_a_large_report_is_a_summary_with_a_file_per_op(large, tmp_path):
    assert len(readme(large.run).encode()) > markdown.MOST_BYTES
    write_readme(large, tmp_path, set(), None)
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {"README.md", "bmm.md"} <= set(files)
    assert all(len(text.encode()) <= markdown.MOST_BYTES for text in files.values())
    assert _linked(files) == set(files)
    assert "## Which variant at which batch size" in files["README.md"]
    assert "## bmm\n" in files["README.md"]


def test_an_op_that_is_too_large_for_one_file_gets_several(large):
    files = markdown.files(large.document(Place.README), most_bytes=100_000)
    assert {"bmm.md", "bmm-2.md", "bmm-3.md"} <= set(files)
    assert all(len(text.encode()) <= 100_000 for text in files.values())
    assert _linked(files) == set(files)
    problems = [
        title
        for name, text in files.items()
        if name.startswith("bmm")
        for title in re.findall("^## .*scenario.*", text, re.MULTILINE)
    ]
    assert len(problems) == len(set(problems)) == 20


def test_no_row_of_a_large_report_is_lost_in_its_files(large):
    document = large.document(Place.README)
    files = "\n".join(markdown.files(document).values())
    rows = [line for line in readme(large.run).splitlines() if line.startswith("| ")]
    assert rows and set(rows) <= set(files.splitlines())


def test_a_large_section_of_no_op_gets_a_file_too(report):
    document = report.document(Place.README)
    without_ops = replace(
        document,
        sections=tuple(
            section
            for section in document.sections
            if not isinstance(section, OpSection)
        ),
    )
    size = len(markdown.render(without_ops).encode())
    files = markdown.files(without_ops, most_bytes=size - 1)
    assert len(files) == 2 and all(len(text.encode()) < size for text in files.values())


@pytest.mark.parametrize(
    "path", sorted(EVIDENCE.glob("*/*.md")), ids=lambda path: f"{path.parent.name}"
)
def test_github_shows_every_stored_report(path):
    assert path.stat().st_size <= markdown.MOST_BYTES
