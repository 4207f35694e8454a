"""`batchline export`: stored runs as tables, or as another tool's files."""

from __future__ import annotations

import argparse
from pathlib import Path

from batchline.bench.console import complain
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import require_writable
from batchline.bench.store import rows, run_json, tables
from batchline.bench.store.files import blamed_on
from batchline.bench.texts import did_you_mean

HELP = "stored runs as CSV, Parquet or SQLite, or as another tool's files"
SAMPLE = """
816 cases by 2.0 clocks, 108,901 samples, of 1 run
runs.csv
runs-samples.csv
"""
EXITS = {
    ExitCode.CLEAN: "the files that were written are above",
    ExitCode.USAGE: "no run, no such format, or a file can't be written",
    ExitCode.NOT_MEASURED: "no case of the runs was timed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder"
    )
    parser.add_argument(
        "--to",
        required=True,
        type=Path,
        metavar="FILE",
        help=".csv (samples go to a second file), .parquet (likewise; wants pandas and "
        "pyarrow) or .db, a SQLite database with the tables cases and samples; with "
        "--for asv a folder",
    )
    parser.add_argument(
        "--for",
        dest="tool",
        metavar="TOOL",
        help=f"in the format of {', '.join(tables.FOR_TOOLS)}: of each case the clock "
        "that variants are ranked by",
    )
    parser.add_argument(
        "--with-host",
        action="store_true",
        help="also the machine's name on its network, and paths in reasons as they are",
    )


def run(options: argparse.Namespace) -> int:
    write = _writer(options.to, options.tool)
    cases, samples = [], []
    for folder in options.runs:
        stored = run_json.load(folder)
        with blamed_on(run_json.path_in(folder)):
            name = folder.resolve().name
            cases += rows.case_rows(stored, name, options.with_host)
            samples += rows.sample_rows(stored, name)
    timed = [row for row in cases if row["clock"]]
    if not timed:
        complain("no case of these runs was timed")
        return ExitCode.NOT_MEASURED
    require_writable(options.to.parent, "--to")
    try:
        if options.tool == "asv":
            require_writable(options.to, "--to")
        written = write(options.to, cases, samples)
    except OSError as error:
        raise UsageError(f"can't write {options.to} ({error.strerror})") from error
    count = len({(row["run"], row["case"]) for row in timed})
    runs = "1 run" if len(options.runs) == 1 else f"{len(options.runs)} runs"
    print(
        f"{count} cases by {len(timed) / count:.1f} clocks, {len(samples):,} samples, of {runs}"
    )
    print("\n".join(map(str, written)))
    return ExitCode.CLEAN


def _writer(path: Path, tool: str | None) -> tables.Writer:
    known = tables.BY_SUFFIX if tool is None else tables.FOR_TOOLS
    asked = path.suffix.lower() if tool is None else tool
    if asked in known:
        return known[asked]
    if tool is None:
        raise UsageError(
            f"--to {path}: its ending says the format, one of {', '.join(known)} "
            "(or name a tool with --for)"
        )
    raise UsageError(
        f"--for {tool}: no such format{did_you_mean(tool, known)}: {', '.join(known)}"
    )
