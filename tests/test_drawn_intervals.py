"""Changes drawn as text: each at its place on one scale."""

import math

from batchline.bench.report import regression
from batchline.bench.report.drawn_intervals import Change, draw_intervals
from batchline.bench.store.regressions import EQUIVALENT, INVALID, REGRESSED
from tests.comparisons import HOSTILE, comparison, judged, over_batches

MIDDLE = 20


def drawn(*changes):
    """The scale, and the picture of each change without what stands behind it."""
    scale, *lines = draw_intervals(
        [Change(str(number), *one) for number, one in enumerate(changes)]
    )
    return scale, [line[: 2 * MIDDLE + 1] for line in lines]


def test_no_change_is_no_picture():
    assert draw_intervals([]) == ()


def test_the_largest_end_is_the_scales():
    scale, (slower, faster) = drawn((0.2, 0.1, 0.25), (-0.1, -0.2, 0.0))
    assert scale.split() == ["-20.0%", "0", "+25.0%"] and scale[MIDDLE] == "0"
    assert slower.index("●") == MIDDLE + round(MIDDLE * math.log(1.2) / math.log(1.25))
    assert slower.rindex("─") == 2 * MIDDLE and slower[MIDDLE] == "│"
    # 0.8 and 1.25 are as far from 1 as each other.
    assert faster[0] == "─" and faster.rindex("┼") == MIDDLE


def test_what_is_beyond_twice_as_slow_stands_at_the_edge():
    scale, (line, unknown) = drawn((2.0, 0.5, 9.0), (0.1, -1.0, math.inf))
    assert scale.endswith("+100%") and line[-1] == "▸" and "●" not in line
    assert unknown[0] == "◂" and unknown[-1] == "▸" and unknown.count("●") == 1


def test_noise_does_not_fill_the_scale():
    scale, (line,) = drawn((0.0, -0.001, 0.001))
    assert scale.split()[-1] == "+1.0%"
    assert line.strip() == "─●─" or line.strip("─ ") == "●" and len(line.strip()) <= 5


def test_the_ends_and_the_changes_are_told_as_the_table_tells_them():
    scale, *lines = draw_intervals(
        [Change("a", 0.0152, 0.01, 0.0152), Change("b", -0.0004, -0.001, 0.0)]
    )
    assert scale.split() == ["-1.5%", "0", "+1.5%"]
    assert [line.split()[-2] for line in lines] == ["+1.5%", "+0.0%"]


def test_the_picture_has_the_rows_that_are_not_folded():
    kernels = [over_batches(variant=f"other_{number}") for number in range(3)]
    cases = [judged(REGRESSED, batch) for batch in range(1, 13)]
    text = regression.markdown(comparison(*cases, kernels=kernels))
    _, picture, table = text.partition("<details>")[0].split("```")
    drawn_ids = [line.split()[-1] for line in picture.splitlines()[2:]]
    assert len(drawn_ids) == 7 and all(f"| {one} |" in table for one in drawn_ids)


def test_a_comment_has_a_picture_of_what_changed_and_of_nothing_else():
    made = comparison(judged(REGRESSED, 64), judged(EQUIVALENT, 8), judged(INVALID, 4))
    picture = regression.markdown(made).split("```")[1].splitlines()
    assert picture[0] == "text" and len(picture) == 3
    assert picture[2].split()[-2:] == ["+10.0%", "bmm/tiled/tiny_16/float16/B64"]
    assert "```" not in regression.markdown(comparison(judged(INVALID)))


def test_a_name_can_not_end_the_picture():
    _, line = draw_intervals([Change(f"```\n{HOSTILE}", 0.1, 0.1, 0.1)])
    assert not set("\n`<@") & set(line)
