"""The page of a run without a browser: its structure, that it fetches nothing, that
names are text, how it is kept.
"""

import base64
import gzip
import re
import sys
from dataclasses import replace

import pytest

from batchline.bench.report import RunReport, page_plots
from batchline.bench.report.render import html as page
from batchline.bench.statuses import FAILED
from batchline.bench.store import run_json
from batchline.bench.store.records import Record
from batchline.bench.texts import one_line
from tests.documents import page_of
from tests.pages import (
    HOSTILE,
    Tree,
    a_large_run,
    a_run,
    everything,
    hostile,
    with_records,
    with_scenario,
)
from tests.test_records import document

pytest.importorskip("jinja2")
pytest.importorskip(
    "plotly", reason="plotly.js comes with plotly, which is not installed"
)

MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def full():
    return Tree(page_of(everything()))


def test_the_page_has_its_sections_in_order(full):
    assert [heading.partition(":")[0] for heading in full.text("h2")] == [
        "Which wins where",
        "The answer",
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


def test_a_screen_reader_finds_its_way(full):
    assert full.all("html")[0]["attributes"]["lang"] == "en" and full.text("title")
    assert [len(full.all(tag)) for tag in ("h1", "main", "header", "nav")] == [
        1,
        1,
        1,
        1,
    ]
    levels = [int(element["tag"][1]) for element in full.all("h1", "h2", "h3", "h4")]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    ids = [
        element["attributes"]["id"]
        for element in full.elements
        if "id" in element["attributes"]
    ]
    assert len(ids) == len(set(ids))
    pointed_at = [
        link["attributes"]["href"].removeprefix("#") for link in full.all("a")
    ]
    named_by = [
        section["attributes"]["aria-labelledby"] for section in full.all("section")
    ]
    assert set(pointed_at + named_by) <= set(ids) and all(
        name.endswith("-title") for name in named_by
    )
    assert all(
        header["attributes"]["scope"] in ("row", "col") and header["text"]
        for header in full.all("th")
    )
    for plot in (
        one for one in full.all("div") if one["attributes"].get("class") == "plot"
    ):
        assert plot["attributes"]["role"] == "img" and plot["attributes"]["aria-label"]
        assert plot["attributes"]["tabindex"] == "0"


def test_what_broke_stands_apart_from_what_was_skipped(full):
    cells = full.text("td")
    assert cells.index("failed: ValueError: no") < cells.index(
        "not timed here: needs CUDA"
    )
    assert (
        len(
            [
                cell
                for cell in cells
                if cell in ("failed: ValueError: no", "not timed here: needs CUDA")
            ]
        )
        == 2
    )


def test_a_wrong_figure_is_not_marked_as_the_best():
    row = {
        "op": "bmm",
        "variant": "torch_bmm",
        "dtype": "float32",
        "whose": "ours",
        "condition": "hard",
        "mean": 0.5,
        "n": 0.0,
        "d": 0.0,
        "noise_scale": None,
        "failed": "",
        "not_run": "",
    }
    tree = Tree(page_of(a_run(audit=[row])))
    assert "ḡ wrong by 50% ⚠" in tree.text("td") and tree.text("th").count("") == 0


def test_every_plot_has_a_table_in_its_section(full):
    html = [
        element["tag"] if element["tag"] in ("figure", "table") else "|"
        for element in full.elements
        if element["tag"] in ("section", "figure", "table")
    ]
    for section in "".join(name[0] for name in html).split("|"):
        assert "f" not in section or section.rindex("f") < section.rindex("t")


def test_nothing_is_fetched(full):
    assert "default-src 'none'" in full.all("meta")[-1]["attributes"]["content"]
    for element in full.elements:
        assert element["attributes"].get("src") is None
        assert element["attributes"].get("href", "#").startswith(("#", "data:"))
    style = full.text("style")[0]
    assert "url(" not in style and "@import" not in style


def test_plotly_is_embedded_whole(full):
    from plotly.offline import get_plotlyjs

    packed = base64.b64decode(full.by_id("library")["text"])
    assert gzip.decompress(packed).decode() == get_plotlyjs()
    assert packed[4:8] == bytes(
        4
    )  # the time of packing: the page would be another each time


def test_every_plot_has_its_data(full):
    figures = [figure["attributes"] for figure in full.all("figure")]
    assert {one["data-plot"] for one in figures if "data-plot" in one} == set(
        full.data["plots"]
    )
    assert [one["data-quantity"] for one in figures if "data-quantity" in one] == list(
        page_plots.QUANTITIES
    )
    shown = {
        one["attributes"]["data-problem"]
        for one in full.all("div")
        if "data-problem" in one["attributes"]
    }
    assert shown == set(full.data["ops"]["bmm"]["problems"])


def test_a_name_and_a_failure_are_text_whatever_they_are():
    tree, plain = Tree(page_of(hostile())), Tree(page_of(a_run()))
    for tag in ("script", "style", "iframe", "img", "b"):
        assert len(tree.all(tag)) == len(plain.all(tag))
    as_text = one_line(HOSTILE)
    cells = [one_line(element["text"]) for element in tree.all("td", "th")]
    assert as_text in cells and f"failed: {as_text}" in cells
    (problem,) = (
        one
        for name, one in tree.data["ops"]["bmm"]["problems"].items()
        if "alert" in name
    )
    (curve,) = problem["curves"]
    assert curve["name"] == as_text and curve["text"][0].startswith(
        f"{as_text}, B = 4\n"
    )
    figures = [figure["attributes"].get("data-plot") for figure in tree.all("figure")]
    assert set(tree.data["plots"]) <= set(figures) and any(
        "alert" in name for name in tree.data["plots"]
    )


def test_what_steers_a_terminal_is_replaced():
    failed = Record("bmm", "a", "tiny_16", "float32", 8, FAILED, "\x1b[2J")
    assert "\x1b" not in page_of(with_records(a_run(), failed))


def test_a_run_of_which_nothing_was_timed_has_a_page():
    run = a_run()
    tree = Tree(page_of(replace(run, records=run.records[1:])))
    assert (
        "Nothing was timed." in tree.text("dd")
        and not tree.all("figure")
        and tree.data["ops"] == {}
    )


def test_a_partial_run_says_so():
    assert "Partial." in Tree(page_of(a_run(partial=True))).text("strong")


def test_a_run_of_before_has_a_page():
    old = document()
    for name in ("noise", "sweep", "audit", "sizes"):
        old["batchline"].pop(name, None)
    old = run_json.parse(old)
    assert "Gradient noise" not in Tree(page_of(old)).text("h2")


def test_a_large_run_stays_under_the_limit():
    size = len(page_of(a_large_run()).encode())
    assert 2_000_000 < size <= MOST_BYTES


def test_write_makes_one_file_and_the_same_bytes_each_time(tmp_path):
    path = page.write(RunReport(a_run()), tmp_path)
    first = path.read_bytes()
    assert (
        path == tmp_path / "index.html"
        and page.write(RunReport(a_run()), tmp_path).read_bytes() == first
    )
    assert [one.name for one in tmp_path.iterdir()] == ["index.html"]


@pytest.mark.parametrize("library", ["jinja2", "plotly"])
def test_without_a_library_there_is_no_page_and_a_reason(
    tmp_path, monkeypatch, library
):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"{library}.offline", raising=False)
    assert (
        page.write(RunReport(a_run()), tmp_path) is None
        and page.why_no_page() == f"{library} is not installed"
    )
    assert not list(tmp_path.iterdir())


def test_a_page_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    before = page.write(RunReport(a_run()), tmp_path).read_bytes()
    monkeypatch.setattr(page, "render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.write(RunReport(a_run()), tmp_path)
    assert (tmp_path / "index.html").read_bytes() == before


def test_only_code_and_stress_are_markup():
    found = page._environment().filters["inline"]("**a** `b<i>` <b>c</b> & d")
    assert (
        found
        == "<strong>a</strong> <code>b&lt;i&gt;</code> &lt;b&gt;c&lt;/b&gt; &amp; d"
    )


def test_the_templates_hold_no_end_of_a_script():
    assert not re.search(
        "</(script|style)", page._environment().globals["own"]("page.js"), re.IGNORECASE
    )


def test_a_cell_of_the_map_leads_to_its_row_of_figures(full):
    cells = {
        link["attributes"]["aria-label"]: link["attributes"]["href"]
        for link in full.all("a")
        if "aria-label" in link["attributes"]
    }
    assert cells["B = 16: torch_bmm, PyTorch's fastest"] == "#bmm/tiny_16/float32/B16"
    rows = [one["attributes"].get("id") for one in full.all("tr")]
    assert "bmm/tiny_16/float32/B16" in rows and "bmm/tiny_32/float16/B8" in rows
    assert full.by_id("bmm/tiny_32/float16")["tag"] == "div"


def test_the_map_says_in_words_what_its_colours_say(full):
    (table,) = (
        one for one in full.all("table") if one["attributes"].get("class") == "map"
    )
    assert [text.split() for text in table["text"].split("bmm")[1:]] == [
        ["tiny_16", "float32", "1", "P", "4", "P", "16", "P", "256", "P"],
        ["tiny_32", "float32", "4", "P", "8", "P"],
        ["tiny_32", "float16", "4", "P", "8", "P"],
    ]
    (changed,) = (
        one["attributes"]["title"]
        for one in full.all("a")
        if "takes over" in one["attributes"].get("title", "")
    )
    assert changed.startswith(
        "fast, PyTorch's fastest; takes over from torch_bmm at B*"
    )


def test_a_problem_without_figures_has_a_row_and_no_link():
    run = with_records(
        a_run(), Record("bmm", "a", "tiny_8", "float32", 4, FAILED, "ValueError: no")
    )
    tree = Tree(page_of(with_scenario(run, "tiny_8", "")))
    assert not [
        one for one in tree.all("a") if "tiny_8" in one["attributes"].get("href", "")
    ]
    (cell,) = (one for one in tree.all("span") if one["text"] == "failed")
    assert cell["attributes"]["title"] == "failed: ValueError: no; broken: a (failed)"


def test_the_strip_has_what_is_bad_in_red(full):
    bad = [
        one["text"]
        for one in full.all("div")
        if one["attributes"].get("class") == "bad"
    ]
    assert [text.strip() for text in bad] == ["failuresbmm/broken (failed)"]


def test_no_anchor_has_a_character_that_an_address_may_not_have():
    ids = [
        one["attributes"]["id"]
        for one in Tree(page_of(hostile())).elements
        if "id" in one["attributes"]
    ]
    assert [name for name in ids if "alert" in name]
    assert all(re.fullmatch(r"[\w./%~-]+", name) for name in ids)
