"""`batchline readme`: the figures in the documents, from the stored runs that they name.
Nothing is copied by hand.

What stands between `<!-- shown: KIND FOLDER; WHAT -->` and `<!-- end -->` is
bench.report.shown's.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from batchline.bench import records
from batchline.bench.errors import UsageError
from batchline.bench.report import page, shown

CLEAN, STALE = 0, 1
REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "reports/METHODOLOGY.md")
_MARK = re.compile(
    r"(<!-- shown: (\w+) ([^;>]+?)(?:; ([^>]*?))? -->\n)(.*?)(<!-- end -->)", re.DOTALL
)
_WINDOW = {"width": 1280, "height": 960}


def readme(check: bool, root: Path = REPOSITORY) -> int:
    """Write the documents' figures anew, and take the screenshots that are not of their
    runs; or only `check` them.

    Returns:
        0, or 1 where `check` finds a document that is not up to date.

    Raises:
        UsageError: for a mark whose figure can't be made.
    """
    stale = []
    for name in DOCUMENTS:
        path = root / name
        before = path.read_text(encoding="utf-8")
        if not check:
            _take_screenshots(before, root)
        after = _MARK.sub(lambda mark: _filled(mark, path, root), before)
        if before.count("<!-- shown:") != len(_MARK.findall(before)):
            raise UsageError(
                f"{name} has a mark without its end, or one that can't be read"
            )
        if after != before:
            stale.append(name)
            if not check:
                path.write_text(after, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'not up to date: run `make readme`' if check else 'written'}")
    return STALE if check and stale else CLEAN


def _filled(mark: re.Match, document: Path, root: Path) -> str:
    begin, kind, folder, what, _, end = mark.groups()
    link = Path(os.path.relpath(root / folder, document.parent)).as_posix()
    try:
        return f"{begin}{shown.shown(kind, root / folder, link, what or '')}\n{end}"
    except (ValueError, KeyError) as error:
        raise UsageError(f"{document.name}: {kind} {folder}: {error}") from error


def _take_screenshots(text: str, root: Path) -> None:
    for _, kind, folder, _, _, _ in _MARK.findall(text):
        path = root / folder / shown.SCREENSHOT
        if kind == "screenshot" and not (
            path.exists() and shown.run_of(path) == shown.digest_of(root / folder)
        ):
            path.write_bytes(
                shown.stamped(
                    _screenshot(root / folder), shown.digest_of(root / folder)
                )
            )
            print(f"taken: {path.relative_to(root)}", file=sys.stderr)


def _screenshot(folder: Path) -> bytes:
    """The run's page in light, from the plots of its first op on.

    Raises:
        UsageError: where there is no browser to take it.
    """
    chromium = next(
        filter(
            None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        ),
        None,
    )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None or page.why_no_page():
        raise UsageError(
            "a screenshot takes Chromium, playwright, plotly and jinja2: one of them is missing here"
        )
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        path = page.write(records.load(folder), Path(scratch))
        browser = driver.chromium.launch(executable_path=chromium)
        tab = browser.new_page(viewport=_WINDOW, color_scheme="light")
        tab.goto(path.as_uri())
        tab.locator("[data-op]").first.evaluate("section => section.scrollIntoView()")
        for figure in (
            tab.locator("[data-op]").first.locator("figure").all()
        ):  # a plot is drawn when it comes into view
            figure.locator("svg.main-svg").first.wait_for(state="attached")
        tab.wait_for_timeout(500)  # for the plots' last frame
        taken = tab.screenshot()
        browser.close()
    return taken
