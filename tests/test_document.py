"""A report as data: what stands where, and how each renderer lays it out."""

import pytest

from batchline.bench.report.document import (
    FILES,
    Bullets,
    Definitions,
    Details,
    Document,
    Figure,
    Lines,
    Mark,
    Marked,
    Only,
    Place,
    Section,
    Text,
    join,
    plain,
    select,
    table,
    tables,
)
from batchline.bench.report.render import github, markdown, terminal

TABLE = table(["x", ""], [["a|b", ("c\n\nd ", Marked("1"))]])


def test_a_part_stands_only_where_it_is_kept():
    parts = (
        Text("everywhere"),
        Only(FILES, (Text("in files"), Only(Place.PAGE, (Text("on the page"),)))),
        Section("", "empty on a terminal", (Only(Place.README, (TABLE,)),)),
    )
    assert select(parts, Place.TERMINAL) == (Text("everywhere"),)
    assert select(parts, Place.PAGE)[1:] == (Text("in files"), Text("on the page"))
    assert select(parts, Place.README)[-1] == Section(
        "", "empty on a terminal", (TABLE,)
    )
    assert tables(select(parts, Place.TERMINAL)) == []
    assert tables(parts) == tables(select(parts, Place.README)) == [TABLE]


def test_cells_are_joined_and_keep_their_marks():
    cell = join(" · ", [Marked("a", Mark.BAD), "b", ("c", Marked("d"))])
    assert cell == (Marked("a", Mark.BAD), " · ", "b", " · ", "c", Marked("d"))
    assert plain(cell) == "a · b · cd"


def test_each_renderer_marks_a_cell_in_its_own_way():
    assert r"a\|b" in markdown.render_table(TABLE)
    assert "c d **1**" in markdown.render_table(TABLE)
    assert "a|b" in terminal.render_table(TABLE)
    assert "c d 1*" in terminal.render_table(TABLE)
    assert "c d 1 &#42;" in github.render_table(TABLE)


@pytest.mark.parametrize(
    "part, words",
    [
        (Text("`code` and <b>"), "`code` and &#60;b>"),
        (Bullets(("one", "two")), "- one\n- two"),
        (Lines(("one", "two")), "one\ntwo"),
        (Definitions((("who", ("does", "what")),)), "- **who**: does what"),
        (
            Details("more", (Text("inside"),)),
            "<details><summary>more</summary>\n\ninside\n\n</details>",
        ),
        (Figure("a plot", "drawn"), "![a plot](drawn.png)\n\n[as SVG](drawn.svg)"),
        (Figure("a plot", "not-drawn"), ""),
        (
            Section("", "outer", (Section("", "inner", (Text("text"),)),)),
            "## outer\n\n### inner\n\ntext",
        ),
    ],
)
def test_every_part_in_markdown(part, words):
    assert "\n\n".join(markdown.render_parts([part], {"drawn"})) == words


def test_a_terminal_has_titles_above_their_parts_and_sets_lines_in():
    document = Document(
        "left out",
        (Definitions((("who", ("does", "what")),)),),
        (Section("", "title", (Lines(("one", "   - two")), Text("text"))),),
        (Text("end"),),
    )
    assert terminal.render(document) == (
        "who: does what\n\ntitle\none\n   - two\n\ntext\n\nend"
    )


def test_a_step_s_summary_is_open_above_and_folded_below():
    text = github.render(
        Document(
            "a *title*",
            (Section("", "broken", (Text("why"),)),),
            (Section("", "rest", (TABLE,)),),
        )
    )
    above, folded = text.split("<details>")
    assert above == "**a &#42;title&#42;**\n\n### broken\n\nwhy\n\n"
    assert folded.startswith("<summary>rest</summary>\n\n| x")
