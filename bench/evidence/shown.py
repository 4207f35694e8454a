"""What a part has left in its folder of unfinished files, as a section of the README;
what is kept moves up from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from batchline.bench import report, texts, units
from batchline.bench.cases import CLOCKS as CLOCKS_OF
from batchline.bench.report.render.markdown import draw
from batchline.bench.store import journal, run_json
from batchline.bench.store.files import read_json

CLOCKS, SANITIZER, REPORT, DISPATCH_LOG, TABLES = (
    "clocks.json",
    "sanitizer.json",
    "report.md",
    "dispatch.txt",
    "tables",
)
_CEILINGS = {
    "copy_bytes_per_s": "device memory, copied",
    "read_bytes_per_s": "device memory, read",
    "cache_bytes_per_s": "the last level of cache",
}
_MOST_LINES = 200


@dataclass(frozen=True)
class Shown:
    """A part's section in markdown, what else is kept of it in evidence.json, and the
    files that are kept, each by the name that it gets.
    """

    text: str
    data: object = None
    files: Mapping[str, Path] | None = None


def show_clocks(asked) -> Shown:
    path = asked.work / CLOCKS
    document = read_json(path)
    return Shown(
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


def show_sanitizer(asked) -> Shown:
    path = asked.work / SANITIZER
    document = read_json(path)
    if "why_not" in document:
        return Shown(f"Not run: {document['why_not']}.", files={SANITIZER: path})
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
    return Shown(
        f"{len(rows)} checks: {counts}. Each on one small probe, in a process of its own.\n\n{table}",
        files={SANITIZER: path},
    )


def _result(row: Mapping) -> str:
    return f"{row['errors']} errors" if row["result"] == "errors" else row["result"]


def show_cases(asked) -> Shown:
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
    return Shown(
        summary,
        files={
            REPORT: folder / REPORT,
            run_json.FILE_NAME: folder / run_json.FILE_NAME,
        },
    )


def show_noise(asked) -> Shown:
    (folder,) = (asked.work / "noise").iterdir()
    path, study = run_json.study_path_in(folder), run_json.load_study(folder)
    text = report.training_on_terminal(study.noise, study.sweep, study.machine)
    return Shown(
        "\n\n".join(["```", text, "```"]), files={run_json.STUDY_FILE_NAME: path}
    )


def show_dispatch(asked) -> Shown:
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
        f"The tables of {', '.join(tables)} are in evidence.json; `make dispatch RUN=` on this machine puts them "
        "where calls look them up."
        if tables
        else "No table follows from it."
    )
    shortened = lines[-_MOST_LINES:]
    return Shown(
        "\n".join(["```", *map(texts.clean, shortened), "```", "", kept]),
        data=tables or None,
    )
