"""What a part of an evidence has left in its folder of unfinished files, as a section of
the README; what is kept moves up from there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.bench import report, texts, units
from batchline.bench.cases import CLOCKS as CLOCKS_OF
from batchline.bench.report.render.markdown import draw
from batchline.bench.store import journal, run_json
from batchline.bench.store.files import read_json
from batchline.bench.texts import clean_line

CLOCKS = "clocks.json"
TESTS = "gpu-tests.txt"
SANITIZER = "sanitizer.json"
REPORT = "report.md"
DISPATCH_LOG = "dispatch.txt"
TABLES = "tables"
_CEILINGS = {
    "copy_bytes_per_s": "device memory, copied",
    "read_bytes_per_s": "device memory, read",
    "cache_bytes_per_s": "the last level of cache",
}
_MOST_LINES = 200
# How pytest prints a test that has ended, in several processes and in one, and one that
# has begun.
_SHARED = re.compile(r"\[gw\d+\] (?:\[ *\d+%\] )?([A-Z]+) (\S+::.+?)\s*$")
_ALONE = re.compile(r"(\S+::.+?) ([A-Z]+)(?: .*)?\[ *\d+%\]\s*$")
_BEGUN = re.compile(r"(\S+::\S.*?)\s*$")
_BAD = ("FAILED", "ERROR")
_MOST_NAMED = 50


@dataclass(frozen=True)
class PartSection:
    """A part's section in markdown, what else is kept of it in evidence.json, and the
    files that are kept, each by the name that it gets.
    """

    text: str
    data: object = None
    files: Mapping[str, Path] | None = None


def show_clocks(asked) -> PartSection:
    path = asked.work / CLOCKS
    document = read_json(path)
    return PartSection(
        "\n\n".join(
            [clocks_table(document["clocks"], asked.device), _ceilings(document)]
        ),
        files={CLOCKS: path},
    )


def clocks_table(clocks: Mapping, device: str) -> str:
    """A row for each launch: what every clock reads, with NVBench's figures where there
    is a GPU.
    """
    own = list(
        dict.fromkeys(
            [*CLOCKS_OF[device], *(name for row in clocks.values() for name in row)]
        )
    )
    own = [name for name in own if name != "nvbench"]
    rows = []
    for launch, times in clocks.items():
        row = [
            launch,
            *(
                _time(times[name].get("median_s"), times[name].get("error"))
                for name in own
            ),
        ]
        if device == "cuda":
            beside = times.get("nvbench", {})
            row += [
                _time(beside.get("cold_s"), beside.get("error")),
                _time(beside.get("hot_s"), ""),
            ]
        rows.append(row)
    headers = [
        "launch",
        *own,
        *(["NVBench cold", "NVBench hot"] if device == "cuda" else []),
    ]
    note = (
        ""
        if device == "cuda"
        else "\n\nNVBench times GPUs only, so it has no column here."
    )
    return draw(headers, rows) + note


def _ceilings(document: Mapping) -> str:
    if not document["ceilings"]:
        return f"No ceilings: {document['why_no_ceilings']}."
    ceilings = document["ceilings"]
    rows = [
        [what, f"{units.size(ceilings[name])}/s"] for name, what in _CEILINGS.items()
    ]
    rows += [
        [f"products in {dtype}", f"{rate / 1e12:.3g} TFLOP/s"]
        for dtype, rate in ceilings["matmul_flops_per_s"].items()
    ]
    rows += [
        [f"an empty launch by {clock}", units.duration(seconds)]
        for clock, seconds in ceilings["launch_s"].items()
    ]
    return draw(["ceiling", "measured"], rows)


def _time(seconds: float | None, otherwise: str | None) -> str:
    return (
        units.duration(seconds) if seconds is not None else otherwise or "not measured"
    )


@dataclass(frozen=True)
class TestOutcomes:
    """What became of each test, by its name; of those that have begun and not ended,
    their names. `reasons`: a line for each that failed, as far as it says why.
    """

    outcomes: dict[str, str]
    unended: tuple[str, ...]
    reasons: dict[str, str]


def read_tests(lines: Sequence[str]) -> TestOutcomes:
    """What lines of pytest -vv say."""
    outcomes, begun, reasons = {}, {}, {}
    for line in lines:
        if match := _SHARED.match(line):
            outcomes[match[2]] = match[1]
        elif match := _ALONE.match(line):
            outcomes[match[1]] = match[2]
        elif line.startswith("  ") and (known := _of_known(line.strip(), outcomes)):
            reasons.setdefault(*known)
        elif line.startswith("tests/") and (match := _BEGUN.match(line)):
            begun[match[1]] = True
    return TestOutcomes(
        outcomes, tuple(name for name in begun if name not in outcomes), reasons
    )


def _of_known(line: str, outcomes: dict[str, str]) -> tuple[str, str] | None:
    """The name of the last test and the reason behind it, where the line is
    tests.failures_at_once's.
    """
    last = next(reversed(outcomes), None)
    if last and outcomes[last] in _BAD and line.startswith(f"{last}: "):
        return last, line.removeprefix(f"{last}: ")
    return None


def show_tests(asked) -> PartSection:
    path = asked.work / TESTS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    tests = read_tests(lines)
    if not tests.outcomes and not tests.unended:
        raise ValueError(
            clean_line(lines[-1]) if lines else "pytest has printed nothing"
        )
    counts = Counter(tests.outcomes.values())
    said = (
        ", ".join(
            f"{count} {outcome.lower()}" for outcome, count in counts.most_common()
        )
        or "none has ended"
    )
    failed = [name for name, outcome in tests.outcomes.items() if outcome in _BAD]
    rows = [
        f"- `{clean_line(name)}`: {tests.reasons.get(name, 'see the file')}"
        for name in failed[:_MOST_NAMED]
    ]
    if len(failed) > _MOST_NAMED:
        rows.append(f"- and {len(failed) - _MOST_NAMED} more")
    rows += [
        f"- `{clean_line(name)}`: had begun and not ended"
        for name in tests.unended[:_MOST_NAMED]
    ]
    text = (
        f"{said} (every test by name, the riskiest first: [{TESTS}]({TESTS})).\n\n"
        + "\n".join(rows)
    )
    return PartSection(text.rstrip(), files={TESTS: path})


def show_sanitizer(asked) -> PartSection:
    path = asked.work / SANITIZER
    document = read_json(path)
    if "why_not" in document:
        return PartSection(f"Not run: {document['why_not']}.", files={SANITIZER: path})
    rows = sorted(document["rows"], key=lambda row: row["result"] == "clean")
    results = [row["result"] for row in rows]
    counts = ", ".join(
        f"{results.count(result)} {result}" for result in dict.fromkeys(results)
    )
    table = draw(
        ["variant", "check", "result", "first line"],
        (
            [row["variant"], row["check"], _result(row), texts.clean_line(row["line"])]
            for row in rows
        ),
    )
    return PartSection(
        f"{len(rows)} checks: {counts}. Each on one small probe, in a process of its own.\n\n{table}",
        files={SANITIZER: path},
    )


def _result(row: Mapping) -> str:
    return f"{row['errors']} errors" if row["result"] == "errors" else row["result"]


def show_cases(asked) -> PartSection:
    """Of the run its file and its report; its plots, which `make report` draws from
    that, are too many to come back from a machine that is lent.
    """
    (folder,) = (asked.work / "runs").iterdir()
    run = journal.recover(folder)
    text = report.whole_readme(
        report.RunReport(run), "`make report` draws them from the run.json here"
    )
    (folder / REPORT).write_text(text, encoding="utf-8")
    summary = (
        f"{report.summary(run)}: [{REPORT}]({REPORT}), every sample in "
        f"`{run_json.FILE_NAME}`."
    )
    return PartSection(
        summary,
        files={
            REPORT: folder / REPORT,
            run_json.FILE_NAME: folder / run_json.FILE_NAME,
        },
    )


def show_noise(asked) -> PartSection:
    (folder,) = (asked.work / "noise").iterdir()
    path, study = run_json.study_path_in(folder), run_json.load_study(folder)
    text = report.training_on_terminal(study.noise, study.sweep, study.machine)
    return PartSection(
        "\n\n".join(["```", text, "```"]), files={run_json.STUDY_FILE_NAME: path}
    )


def show_dispatch(asked) -> PartSection:
    lines = (
        (asked.work / DISPATCH_LOG)
        .read_text(encoding="utf-8", errors="replace")
        .splitlines()
    )
    tables = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((asked.work / TABLES).glob("*.json"))
    }
    kept = (
        f"The tables of {', '.join(tables)} are in evidence.json; `batchline dispatch --run RUN` on this machine "
        "puts them where calls look them up."
        if tables
        else "No table follows from it."
    )
    shortened = lines[-_MOST_LINES:]
    return PartSection(
        "\n".join(["```", *map(texts.clean, shortened), "```", "", kept]),
        data=tables or None,
    )
