"""`batchline readme`: the figures in the documents, from the stored runs that they name.
Nothing is copied by hand.

What stands between `<!-- shown: KIND FOLDER; WHAT -->` and `<!-- end -->` is an excerpt
of bench.report.excerpts.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from batchline import places
from batchline.bench.errors import ExitCode, UsageError

HELP = "write the documents' figures anew, from the stored runs they name"
SAMPLE = """
README.md: written
"""
EXITS = {
    ExitCode.CLEAN: "every document is up to date",
    ExitCode.FAULT: "with --check: a document is not up to date",
    ExitCode.USAGE: "a figure can't be made",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}
REPOSITORY = places.CODE
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *(
        f"reports/methodology/{name}.md"
        for name in ("README", "measuring", "gate", "noise", "formats", "limits")
    ),
)
_MARK = re.compile(
    r"^(<!-- shown: (\w+) ([^;>]+?)(?:; ([^>]*?))? -->\n)(.*?)(<!-- end -->)",
    re.DOTALL | re.MULTILINE,
)
_BEGINNING = re.compile(r"^<!-- shown:", re.MULTILINE)
_WINDOW = {"width": 1280, "height": 960}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check", action="store_true", help="only say whether they are up to date"
    )


def run(options: argparse.Namespace) -> int:
    return readme(options.check)


def readme(check: bool, root: Path = REPOSITORY) -> int:
    """Write the documents' figures anew, and take the screenshots that are not of their
    runs; or only `check` them.

    Returns:
        The exit code: FAULT where `check` finds a document that is not up to date.

    Raises:
        UsageError: for a mark whose figure can't be made.
    """
    stale = []
    for name in DOCUMENTS:
        path = root / name
        if not path.exists():
            continue
        before = path.read_text(encoding="utf-8")
        if not check:
            _take_screenshots(before, root)
        after = _MARK.sub(lambda mark: _filled(mark, path, root), before)
        if len(_BEGINNING.findall(before)) != len(_MARK.findall(before)):
            raise UsageError(
                f"{name} has a mark without its end, or one that can't be read"
            )
        if after != before:
            stale.append(name)
            if not check:
                path.write_text(after, encoding="utf-8")
    for name in stale:
        print(
            f"{name}: {'not up to date: run `batchline readme`' if check else 'written'}"
        )
    return ExitCode.FAULT if check and stale else ExitCode.CLEAN


def _filled(mark: re.Match, document: Path, root: Path) -> str:
    from batchline.bench.report import excerpts

    kinds = {**excerpts.EXCERPTS, "same_code": _same_code}
    begin, kind, folder, what, _, end = mark.groups()
    if kind not in kinds:
        raise UsageError(f"{document.name}: {kind!r} is none of {', '.join(kinds)}")
    link = Path(os.path.relpath(root / folder, document.parent)).as_posix()
    try:
        return f"{begin}{kinds[kind](root / folder, link, what or '')}\n{end}"
    except (ValueError, KeyError, OSError) as error:
        raise UsageError(f"{document.name}: {kind} {folder}: {error}") from error


def _same_code(folder: Path, link: str, what: str) -> str:
    """The line of `batchline aa` that says how far medians of the same code differ."""
    from batchline.bench.report.of_commands import summarize_a_a
    from batchline.bench.store.files import read_json
    from batchline.bench.store.selftests import A_A_FILE_NAME, Pair

    stored = read_json(folder / A_A_FILE_NAME)
    pairs = [Pair(**pair) for pair in stored["pairs"]]
    summary = summarize_a_a(pairs, stored["machine"]["device_name"], stored["clock"])
    (line,) = (part for part in summary.split("\n\n") if part.startswith("A/A by"))
    return f"> {' '.join(line.split())}"


def _take_screenshots(text: str, root: Path) -> None:
    from batchline.bench.report import excerpts

    for _, kind, folder, _, _, _ in _MARK.findall(text):
        path = root / folder / excerpts.SCREENSHOT
        if kind == "screenshot" and not (
            path.exists() and excerpts.run_of(path) == excerpts.digest_of(root / folder)
        ):
            path.write_bytes(
                excerpts.stamped(
                    _screenshot(root / folder), excerpts.digest_of(root / folder)
                )
            )
            print(f"taken: {path.relative_to(root)}", file=sys.stderr)


def _screenshot(folder: Path) -> bytes:
    """The run's page in light, from the plots of its first op on.

    Raises:
        UsageError: where there is no browser to take it.
    """
    from batchline.bench.report import RunReport
    from batchline.bench.report.render import html
    from batchline.bench.store import run_json

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
    if chromium is None or html.why_no_page():
        raise UsageError(
            "a screenshot takes Chromium, playwright, plotly and jinja2: one of them is missing here"
        )
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        path = html.write(RunReport(run_json.load(folder)), Path(scratch))
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
