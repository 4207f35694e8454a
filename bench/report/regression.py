"""A comparison of two revisions, as Markdown for a pull request and as lines for the
terminal: the answer first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from batchline.bench.store.regressions import EQUIVALENT, IDENTICAL, Judged, Regression
from batchline.bench.report import escaping
from batchline.bench.report import regression_words as words
from batchline.bench.report.fitting import COLUMNS
from batchline.bench.report.tables import unique

_UNCHANGED = (EQUIVALENT, IDENTICAL)
_HEADERS = (
    "case",
    "what",
    "verdict",
    "base → head",
    "change (90% interval)",
    "floor",
    "pairs",
    "note",
)


def markdown(regression: Regression) -> str:
    """The answer, the verdict a kernel over its batch sizes, and a row a case; what did
    not change is folded.
    """
    return "\n\n".join(_sections(regression)) + "\n"


def _sections(regression: Regression) -> Iterator[str]:
    yield f"**{escaping.markdown(words.answer(regression))}**"
    if regression.kernels:
        yield "### Over the batch sizes"
        yield escaping.GITHUB.render(
            ("kernel", "what", "verdict", "where"),
            (
                (kernel.id, kernel.quantity, kernel.verdict, kernel.words)
                for kernel in words.kernels_worst_first(regression)
            ),
        )
    changed, unchanged = _parted(regression)
    if changed:
        yield f"### {_case_heading(regression)}"
        yield escaping.GITHUB.render(_HEADERS, map(_row, changed))
    if unchanged:
        yield f"<details><summary>{_unchanged_heading(unchanged)}</summary>"
        yield escaping.GITHUB.render(_HEADERS, map(_row, unchanged))
        yield "</details>"
    if clocks := words.clocks(regression.states):
        yield escaping.markdown(clocks)


def _row(case: Judged) -> Sequence[str]:
    return (
        case.id,
        case.quantity,
        case.verdict,
        words.values(case),
        words.change(case),
        words.floor(case),
        str(case.pairs or ""),
        words.note(case),
    )


def terminal(regression: Regression) -> str:
    """The same in lines of at most COLUMNS characters and no colours; what did not
    change is its batch sizes only.
    """
    changed, unchanged = _parted(regression)
    blocks = [_wrapped(words.answer(regression))]
    if regression.kernels:
        blocks.append(
            "\n".join(
                [
                    "Over the batch sizes",
                    *(
                        _wrapped(
                            f"{kernel.verdict} {kernel.id} {kernel.quantity}: {kernel.words}",
                            "  ",
                        )
                        for kernel in words.kernels_worst_first(regression)
                    ),
                ]
            )
        )
    if changed:
        blocks.append(
            "\n".join(
                [
                    _case_heading(regression),
                    *(
                        _wrapped(f"{case.verdict} {case.id} {case.quantity}", "  ")
                        + "\n"
                        + _wrapped(words.line(case), "    ")
                        for case in changed
                    ),
                ]
            )
        )
    if unchanged:
        blocks.append(
            "\n".join(
                [
                    _unchanged_heading(unchanged),
                    *(
                        _wrapped(
                            f"{verdict} {kernel} {quantity}: {', '.join(batches)}", "  "
                        )
                        for (verdict, kernel, quantity), batches in _by_kernel(
                            unchanged
                        ).items()
                    ),
                ]
            )
        )
    return "\n\n".join(blocks)


def _parted(regression: Regression) -> tuple[list[Judged], list[Judged]]:
    cases = words.worst_first(regression)
    return (
        [case for case in cases if case.verdict not in _UNCHANGED],
        [case for case in cases if case.verdict in _UNCHANGED],
    )


def _case_heading(regression: Regression) -> str:
    return (
        "Case by case"
        if regression.void is None
        else "Case by case; the session is void, and none of it counts"
    )


def _unchanged_heading(unchanged: Sequence[Judged]) -> str:
    return f"Unchanged: {len(unchanged)} verdicts on {len(unique(case.id for case in unchanged))} cases"


def _by_kernel(cases: Iterable[Judged]) -> dict[tuple[str, str, str], list[str]]:
    found: dict[tuple[str, str, str], list[str]] = {}
    for case in cases:
        kernel, _, batch = case.id.rpartition("/")
        found.setdefault((case.verdict, kernel, case.quantity), []).append(batch)
    return found


def _wrapped(text: str, indent: str = "") -> str:
    return escaping.wrapped(text, COLUMNS, indent)
