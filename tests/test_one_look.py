"""What a report begins with: the strip, the numbers and the map, in every place."""

import re
from dataclasses import replace

import pytest

from batchline.bench.report import RunReport
from batchline.bench.report.document import Facts, Map, Place, select, walk
from batchline.bench.report.findings import Findings
from batchline.bench.report.render import github, terminal, winner_map
from batchline.bench.report.sections.one_look import one_look
from batchline.bench.statuses import FAILED, INVALID, THE_MACHINE_WAS
from batchline.bench.store.records import BrokenFile, Ceilings, Record
from tests.documents import in_markdown, on_terminal
from tests.pages import a_large_run, a_run, everything, hostile, timed, with_records

COLOURS = re.compile("\x1b\\[[0-9;]*m")
ROW = "  tiny_16 float32  P    ?|C2.00▓ C8.00! !             -"


def look(run):
    return one_look(run, Findings(run))


def facts(run):
    """The strip's and the numbers' values by their names."""
    parts = [part for part in walk([look(run)]) if isinstance(part, Facts)]
    return {fact.name: fact for part in parts for fact in part.items}


def ours(batch, median_s, **about):
    return timed("ours", batch, median_s, **{"backend": "numba_cpu", **about})


def a_crossing():
    """A row with a tie, a change, something broken beside a winner, nothing but what
    broke, a gap, and what was not timed.
    """
    run = a_run()
    there = [one for one in run.records if one.variant == "torch_bmm"]
    absent = next(one for one in run.records if one not in there)
    return replace(
        run,
        records=(
            timed("torch_bmm", 1, 1e-6),
            ours(1, 1.001e-6),
            timed("torch_bmm", 2, 2e-6),
            ours(2, 1e-6),
            timed("torch_bmm", 8, 8e-6),
            ours(8, 1e-6),
            Record("bmm", "broken", "tiny_16", "float32", 8, FAILED, "no"),
            Record("bmm", "torch_bmm", "tiny_16", "float32", 16, FAILED, "no"),
            replace(absent, batch=64),
            timed("torch_bmm", 32, 1e-6, "tiny_32"),
        ),
    )


def test_the_strip_says_where_of_what_and_how_well():
    strip = facts(a_run())
    assert {name: fact.value for name, fact in list(strip.items())[:6]} == {
        "machine": "Some CPU",
        "revision": "abc",
        "run": "smoke, 2026-01-02",
        "the machine was": "quiet",
        "medians known to": "±3.0% in 100% of the cases",
        "failures": "none",
    }
    assert not any(fact.is_bad for fact in strip.values())


BUSY = Record(
    "bmm", "a", "tiny_16", "float32", 8, INVALID, f"{THE_MACHINE_WAS}busy: others"
)
CEILINGS = Ceilings(1e9, 1e9, 1e9, 1, {}, {}, {}, {}, quiet=False)


@pytest.mark.parametrize(
    "run, name, value",
    [
        (a_run(partial=True), "ended", "stopped before its end"),
        (
            with_records(a_run(), BUSY),
            "the machine was",
            "busy or throttled in 1 of 3 cases",
        ),
        (
            replace(a_run(), ceilings=CEILINGS),
            "the machine was",
            "busy while its ceilings were measured",
        ),
        (
            replace(a_run(), records=a_run().records[1:]),
            "medians known to",
            "nothing was timed",
        ),
        (
            with_records(
                a_run(),
                *(
                    Record("bmm", name, "tiny_16", "float32", 4, FAILED, "no")
                    for name in "abcde"
                ),
            ),
            "failures",
            "bmm/a (failed), bmm/b (failed), bmm/c (failed) and 2 more",
        ),
        (
            replace(a_run(), broken_files=(BrokenFile("bmm/x.py", FAILED, "no"),)),
            "failures",
            "bmm/x.py (failed)",
        ),
    ],
    ids=["partial", "busy", "busy ceilings", "nothing", "failures", "a file"],
)
def test_what_speaks_against_the_run_is_bad(run, name, value):
    fact = facts(run)[name]
    assert (fact.value, fact.is_bad) == (value, True)
    painted = terminal.render_parts([Facts((fact,))], in_colour=True)
    assert painted.startswith("\x1b[31m") and COLOURS.sub("", painted).startswith(name)


def test_the_numbers_are_of_the_map_the_ceilings_and_the_noise():
    run = everything()
    numbers = facts(run)
    assert numbers["problems won"].value == "0 of 3"
    assert numbers["B*, the batch to train at"].value == "digits 63"
    assert facts(a_run())["B*, the batch to train at"].value == "not known"
    won = facts(a_crossing())
    assert won["problems won"].value == "1 of 2"
    share = won["of the ceiling reached, worst and best"]
    assert share.value == "not known"  # the run has no ceilings


def test_nothing_timed_is_a_line_and_no_map():
    run = replace(a_run(), records=a_run().records[1:])
    assert not [part for part in walk([look(run)]) if isinstance(part, Map)]
    assert "Nothing was timed." in on_terminal(look(run))


@pytest.mark.parametrize("place", Place, ids=lambda place: place.name)
def test_every_place_begins_with_it(place):
    first = RunReport(everything()).document(place).lead[0]
    assert first.title == "Which wins where"
    assert [part for part in walk([first]) if isinstance(part, Map)]


def test_letters_and_signs_say_it_on_a_terminal_without_colours():
    text = on_terminal(look(a_crossing()))
    assert "\x1b" not in text and ROW in text.splitlines()
    assert "(P PyTorch, C Numba CPU)" in text and "? undecided" in text


def test_colours_repeat_it_and_change_no_letter():
    parts = select([look(a_crossing())], Place.TERMINAL)
    plain = terminal.render_parts(parts)
    painted = terminal.render_parts(parts, in_colour=True)
    assert painted.count("\x1b[38;5;16;48;5;") == 4  # a cell with a winner
    unpainted = COLOURS.sub("", painted).splitlines()
    assert [line.rstrip() for line in unpainted] == plain.splitlines()


@pytest.mark.parametrize("columns", [40, 60, 100, 200])
@pytest.mark.parametrize("make", [a_large_run, hostile], ids=["large", "hostile"])
def test_the_blocks_fit_and_lose_no_batch(make, columns):
    of = Findings(make()).winners
    lines = winner_map.draw(of, columns).splitlines()
    assert max(map(len, lines)) <= max(columns, 48)
    headers = [line for line in lines if line.strip().startswith("B=")]
    assert [
        int(batch) for line in headers for batch in re.findall(r"B=(\d+)", line)
    ] == (of.batches)


def test_a_file_has_the_picture_and_the_table_below_it():
    text = in_markdown(look(a_crossing()))
    assert "| bmm/tiny_16/float32 | P? " in text and r"\|C2.00" in text
    assert "<details><summary>The map as a table</summary>" in text


def test_github_has_the_map_with_nothing_of_others_as_markup():
    parts = select([look(hostile())], Place.CI)
    text = "\n\n".join(github.render_parts(parts))
    assert "<script" not in text and "<b>" not in text
    assert "failures: **bmm/torch_bmm (failed)**" in text
    assert "| bmm/tiny_16/float32 " in text
