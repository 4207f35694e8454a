"""The page of a run: index.html, one file that opens from disk without a network.

Its plots are drawn by plotly.js, which is embedded whole; deflated, as with its 4.8 MB
the page would be too large to send. jinja2 escapes all that is not the page's own.
"""

from __future__ import annotations

import base64
import functools
import gzip
import re
from pathlib import Path

from batchline.bench import units
from batchline.bench.report import page_plots
from batchline.bench.report.document import (
    Definitions,
    Document,
    Figure,
    Mark,
    Marked,
    OpSection,
    Place,
    Section,
    anchor,
    plain,
    walk,
)
from batchline.bench.report.of_run import RunReport, summary
from batchline.bench.store.files import write_whole
from batchline.bench.store.records import Run
from batchline.bench.texts import printable
from batchline.bench.verdicts.winners import describe

FILE_NAME = "index.html"
_TEMPLATES = Path(__file__).with_name("page")


def why_no_page() -> str | None:
    """Why the page can't be made here, or None."""
    try:
        import jinja2  # noqa: F401
        import plotly.offline  # noqa: F401
    except ImportError as error:
        return f"{(error.name or 'a library').partition('.')[0]} is not installed"
    return None


def write(report: RunReport, folder: Path) -> Path | None:
    """Write `folder`/index.html; returns its path, or None where `why_no_page` has a
    reason. It appears whole or not.
    """
    if why_no_page():
        return None
    path = Path(folder) / FILE_NAME
    return write_whole(path, render(report.run, report.document(Place.PAGE)))


def render(run: Run, document: Document) -> str:
    """The page.

    Raises:
        ImportError: if jinja2 or plotly is missing.
    """
    (answer,) = (part for part in document.lead if isinstance(part, Definitions))
    (look,) = (part for part in document.lead if isinstance(part, Section))
    ops = [part for part in document.sections if isinstance(part, OpSection)]
    plots = {
        part.key: part.plot
        for part in walk(document.sections)
        if isinstance(part, Figure) and part.key
    }
    curves = {
        op.title: {"variants": op.variants, "problems": op.curves}
        for op in ops
        if op.curves
    }
    return (
        _environment()
        .get_template("index.html.jinja")
        .render(
            title=document.title,
            summary=summary(run),
            run=run,
            look=look,
            answer=answer.items,
            sections=document.sections,
            quantities=page_plots.QUANTITIES,
            data={"ops": curves, "plots": plots},
            library=_library(),
        )
    )


def render_plain(document: Document) -> str:
    """A page of a document without plots, and without a script.

    Raises:
        ImportError: if jinja2 is missing.
    """
    template = _environment().get_template("plain.html.jinja")
    return template.render(
        title=document.title, lead=document.lead, sections=document.sections
    )


_MARKS = {Mark.BEST: "{} ★", Mark.BAD: "{} ⚠", Mark.STRONG: "{}"}


def _mark(span: Marked) -> str:
    return _MARKS[span.mark].format(span.text)


def _environment():
    import jinja2
    import markupsafe

    def inline(text: str):
        """The text with its `code` and **stress** as elements; all else is escaped
        first.
        """
        safe = str(markupsafe.escape(printable(text)))
        safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
        return markupsafe.Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "separators": (",", ":"),
    }
    environment.filters["inline"] = inline
    environment.filters["plain"] = lambda cell: plain(cell, _mark)
    environment.filters["kind"] = lambda part: type(part).__name__
    environment.filters["describe"] = describe
    environment.filters["ratio"] = units.ratio
    environment.globals["anchor"] = anchor
    environment.globals["own"] = lambda name: markupsafe.Markup(
        (_TEMPLATES / name).read_text(encoding="utf-8")
    )
    return environment


@functools.cache
def _library() -> str:
    """plotly.js, by gzip and base64; the same bytes each time."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
