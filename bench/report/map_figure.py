"""The picture of who wins where, beside a report's README.md: the map as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from batchline.bench import units
from batchline.bench.report.figures import COLORS, new_figure, save
from batchline.bench.texts import shortened
from batchline.bench.verdicts.winners import DEEPEST, Cell, Row, WinnerMap

NAME = "map"
_GREY = "#80868b"
_COLORS = {  # of the families, by backend; the baseline's is grey
    "torch": _GREY,
    "triton": COLORS[0],
    "numba_cuda": COLORS[1],
    "numba_cpu": COLORS[2],
    "other": COLORS[3],
}
_PALEST, _DEEPEST = 0.2, 0.72  # how much of its colour a cell has
_MOST_IN_PANEL = 24  # rows; more are parted into two panels side by side
_MOST_PARTED = 10  # batches; with more of them two panels are too wide
_ROW_IN, _COLUMN_IN = 0.215, 0.52  # inches
_NAME_IN, _LONGEST_NAME = 2.0, 30  # what stands left of a panel, and its characters
_ABOVE_IN, _BELOW_IN, _BESIDE_IN = 0.75, 0.45, 0.15
_BAD = "#b3261e"


def draw_map(of: WinnerMap, title: str, path: Path) -> None:
    """Draw the map as `path`.png and `path`.svg."""
    panels = _panels(of)
    lines = max(map(_lines, panels))
    panel_in = len(of.batches) * _COLUMN_IN
    width = max(len(panels) * (_NAME_IN + panel_in) + _BESIDE_IN, 7.5)
    height = lines * _ROW_IN + _ABOVE_IN + _BELOW_IN
    figure = new_figure((width, height))
    for number, rows in enumerate(panels):
        left_in = number * (_NAME_IN + panel_in) + _NAME_IN
        axes = figure.add_axes(
            (
                left_in / width,
                _BELOW_IN / height,
                panel_in / width,
                lines * _ROW_IN / height,
            )
        )
        _draw_panel(axes, rows, of.batches, lines)
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / height)
    _draw_legend(figure, of)
    save(figure, path)


def _panels(of: WinnerMap) -> list[Sequence[Row]]:
    """The rows in one panel, or in two of about as many lines, parted between ops."""
    rows = of.rows
    between_ops = [
        place for place in range(1, len(rows)) if rows[place].op != rows[place - 1].op
    ]
    if len(rows) <= _MOST_IN_PANEL or len(of.batches) > _MOST_PARTED or not between_ops:
        return [rows]
    splits = [[rows[:place], rows[place:]] for place in between_ops]
    return min(splits, key=lambda both: max(map(_lines, both)))


def _lines(rows: Sequence[Row]) -> int:
    """How many lines a panel takes: its rows, and its ops' names above them."""
    return len(rows) + len({row.op for row in rows})


def _draw_panel(axes, rows: Sequence[Row], batches: Sequence[int], lines: int) -> None:
    axes.set_xlim(0, len(batches))
    axes.set_ylim(lines, 0)
    axes.set_frame_on(False)
    axes.set_xticks([place + 0.5 for place in range(len(batches))], batches)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("batch", fontsize=8, color="0.35", labelpad=4)
    axes.tick_params(length=0, labelsize=8, pad=1)
    axes.set_yticks([])
    line = 0
    for op, group in groupby(rows, lambda row: row.op):
        _label(axes, line, op, weight="bold")
        for line, row in enumerate(group, line + 1):
            _label(axes, line, f"{row.scenario} {row.dtype}")
            for cell in row.cells:
                _draw_cell(axes, (batches.index(cell.batch), line), cell)
        line += 1


def _label(axes, line: int, text: str, **look) -> None:
    axes.text(
        -0.12,
        line + 0.5,
        shortened(text, _LONGEST_NAME),
        ha="right",
        va="center",
        fontsize=8,
        **look,
    ).set_parse_math(False)


def _draw_cell(axes, at: tuple[int, int], cell: Cell) -> None:
    from matplotlib.patches import Rectangle

    (x, y), winner = at, cell.winner
    box = {"xy": (x + 0.03, y + 0.05), "width": 0.94, "height": 0.9, "linewidth": 0}
    middle = {"ha": "center", "va": "center", "fontsize": 7.5}
    if not winner:
        word, colour = (cell.status, _BAD) if cell.broken else ("–", "0.5")
        axes.text(x + 0.5, y + 0.5, word, color=colour, **middle)
        return
    axes.add_patch(
        Rectangle(**box, facecolor=_tint(winner.family.backend, winner.depth))
    )
    if not winner.is_decided:
        axes.add_patch(
            Rectangle(**box, facecolor="none", edgecolor="white", hatch="/////")
        )
    if winner.instead_of:
        axes.plot([x, x], [y + 0.02, y + 0.98], color="black", linewidth=2)
    if cell.broken:
        axes.add_patch(
            Rectangle(**box | {"linewidth": 1.3}, fill=False, edgecolor=_BAD)
        )
    axes.text(x + 0.5, y + 0.52, _word(cell), **middle)


def _word(cell: Cell) -> str:
    """ "2.68x"; of PyTorch's own the family's letter."""
    winner = cell.winner
    if winner.speed_up is None or winner.family.backend == "torch":
        return winner.family.letter
    return f"{winner.family.letter} {units.ratio(winner.speed_up)}"


def _tint(backend: str, depth: int) -> tuple[float, ...]:
    """The family's colour on white paper."""
    from matplotlib.colors import to_rgb

    share = _PALEST + (_DEEPEST - _PALEST) * depth / DEEPEST
    return tuple(1 - share * (1 - part) for part in to_rgb(_COLORS[backend]))


def _draw_legend(figure, of: WinnerMap) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=_tint(family.backend, 2), label=f"{family.letter}: {family.name}"
        )
        for family in of.families
    ]
    handles += [
        Patch(
            facecolor="0.85",
            edgecolor="white",
            hatch="/////",
            linewidth=0,
            label="undecided: another family may be as fast",
        ),
        Line2D([], [], color="black", linewidth=2, label="the winner changes"),
    ]
    if any(cell.broken for row in of.rows for cell in row.cells):
        handles.append(Patch(fill=False, edgecolor=_BAD, label="something broke"))
    figure.legend(
        handles=handles, loc="lower center", ncols=6, frameon=False, fontsize=8.5
    )
