"""A bench.report.document as text for one place each: a file, a page, a terminal, a
pull request, a CI's test results.
"""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate


def draw_grid(headers: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    """Cells in columns, in one of tabulate's styles, each cell as it is."""
    return tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True)
