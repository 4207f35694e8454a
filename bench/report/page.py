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

from batchline.bench.store.files import write_whole
from batchline.bench.store.records import Run
from batchline.bench.report import page_data, page_sections, readme
from batchline.bench.report.answer import answer
from batchline.bench.report.escaping import printable

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


def write(run: Run, folder: Path, previous: Run | None = None) -> Path | None:
    """Write `folder`/index.html; returns its path, or None where `why_no_page` has a
    reason. It appears whole or not.

    Args:
        previous: the run before on the same machine in the same profile, for what is
        new; another one is left out.
    """
    if why_no_page():
        return None
    path = Path(folder) / FILE_NAME
    return write_whole(path, html(run, previous))


def html(run: Run, previous: Run | None = None) -> str:
    """The page.

    Raises:
        ImportError: if jinja2 or plotly is missing.
    """
    plots, about = page_sections.Plots(), run.about
    ops, sections = page_sections.ops(run, plots), page_sections.sections(run, plots)
    return (
        _environment()
        .get_template("index.html.jinja")
        .render(
            title=f"Batchline: {about['profile']} run on {run.machine['device_name']}, {about['started'][:10]}",
            summary=readme.summary(run),
            about=about,
            answer=answer(run, previous),
            choice=page_sections.choice(run),
            ops=ops,
            sections=sections,
            cells=page_sections.CELLS,
            quantities=page_data.QUANTITIES,
            data={"ops": plots.ops, "plots": plots.others},
            library=_library(),
        )
    )


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
    environment.globals["own"] = lambda name: markupsafe.Markup(
        (_TEMPLATES / name).read_text(encoding="utf-8")
    )
    return environment


@functools.cache
def _library() -> str:
    """plotly.js, by gzip and base64; the same bytes each time."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
