"""The picture of who wins where: drawn of any run, and parted so that it can be read."""

from dataclasses import replace

import pytest

from batchline.bench.report import RunReport, draw_map, map_figure
from batchline.bench.report.findings import Findings
from batchline.bench.report.render.markdown import render_parts
from batchline.bench.report.sections.one_look import one_look
from batchline.bench.verdicts.winners import Cell, Row, WinnerMap
from tests.pages import a_run, hostile
from tests.test_one_look import a_crossing

pytest.importorskip("matplotlib")


def rows(op, count, batches=(1, 2)):
    cells = tuple(Cell(batch, "failed", None) for batch in batches)
    return tuple(Row(op, f"s{number}", "float32", cells) for number in range(count))


@pytest.mark.parametrize("make", [a_crossing, hostile], ids=["all signs", "hostile"])
def test_the_picture_is_drawn_and_shown(make, tmp_path):
    run = make()
    drawn = draw_map(RunReport(run), tmp_path)
    assert (tmp_path / "map.png").stat().st_size > 1000
    text = (tmp_path / "map.svg").read_text()
    assert "tiny_16 float32" in text and "Some CPU" in text
    look = "\n".join(
        render_parts([one_look(run, Findings(run)).parts[1].parts[0]], drawn)
    )
    assert look.startswith("![Which wins where, by batch size](map.png)")


def test_there_is_none_of_a_run_of_which_nothing_was_timed(tmp_path):
    run = replace(a_run(), records=a_run().records[1:])
    assert draw_map(RunReport(run), tmp_path) == set()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "of, heights",
    [
        ((*rows("a", 10), *rows("b", 10)), [22]),
        ((*rows("a", 20), *rows("b", 9), *rows("c", 9)), [21, 20]),
        (rows("a", 30), [31]),
        ((*rows("a", 20, range(11)), *rows("b", 9, range(11))), [31]),
    ],
    ids=["few", "many", "one op", "wide"],
)
def test_many_rows_are_parted_between_ops_into_two_panels(of, heights):
    panels = map_figure._panels(WinnerMap(of))
    assert [map_figure._lines(panel) for panel in panels] == heights
    assert [row for panel in panels for row in panel] == list(of)
