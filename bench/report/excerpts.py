"""Excerpts of stored runs for the documents: what `batchline readme` puts between a
document's marks.

Each kind of excerpt is one function of EXCERPTS, which reads what a command has stored
and lays it out as that command does.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from batchline.bench.noise import claims
from batchline.bench.noise.claims.verdict import ONLY_WHERE
from batchline.bench.report import figures, map_figure
from batchline.bench.report.document import table, tables
from batchline.bench.report.findings import Findings, TrainingFindings
from batchline.bench.report.of_commands import selftest_table, summarize_selftest
from batchline.bench.report.render.markdown import draw, render_parts, render_table
from batchline.bench.report.sections import choices, ladder, ops, training
from batchline.bench.store import run_json, selftests
from batchline.bench.store.records import Run

SCREENSHOT = "page.png"
_KEYWORD = b"batchline-run"  # of the PNG's text chunk that says which run it shows
_PNG = b"\x89PNG\r\n\x1a\n"


def _machine(folder: Path, link: str, what: str) -> str:
    """Who measured it: the machine, the software, the revision."""
    run = run_json.load(folder)
    machine, versions = run.machine, run.machine["versions"]
    revision = machine["revision"]
    changed = ", with changes that are not committed" if revision["dirty"] else ""
    return (
        f"Measured on {machine['cpu_cores']} cores of {machine['device_name']}, "
        f"{run.started[:10]}, profile {run.plan.profile}, in "
        f"{run.seconds:.0f} s: torch {versions['torch']}, numba "
        f"{versions['numba']}, revision {revision['commit'][:12]}{changed}."
    )


def _problem(folder: Path, link: str, what: str) -> str:
    run = run_json.load(folder)
    parts = ops.comparison(_group(run, what), run.ceilings)
    if not parts:
        raise ValueError(f"nothing of {what} was timed in {folder}")
    return "\n\n".join(render_parts(parts))


def _group(run: Run, what: str) -> list:
    group = run.groups().get(tuple(what.split("/")))
    if group is None:
        raise ValueError(f"the run has no {what!r} (op/scenario/dtype)")
    return group


def _ladder(folder: Path, link: str, what: str) -> str:
    """`what`: "op: rung, rung…", in the order of the ladder."""
    op, _, names = what.partition(": ")
    rungs = names.split(", ")
    run = run_json.load(folder)
    whole = ladder.rungs(run, Findings(run), op, compiled=False)
    rows = [row for row in whole.rows if row[0].lstrip("· ") in rungs]
    if len(rows) != len(rungs):
        raise ValueError(f"the ladder of {op} in {folder} has not all of {names}")
    return render_table(table(whole.columns, rows))


def _choices(folder: Path, link: str, what: str) -> str:
    """The rows of one op and dtype ("op/dtype") of the table of choices, without these
    two.
    """
    op, _, dtype = what.partition("/")
    run = run_json.load(folder)
    section = choices.choices(run, Findings(run))
    rows = [
        [row[1].partition(" · ")[0], *row[2:]]
        for whole in tables(section.parts if section else ())
        for row in whole.rows
        if row[0] == op and row[1].endswith(f" · {dtype}")
    ]
    if not rows:
        raise ValueError(f"no choice among the variants of {what} in {folder}")
    return draw(["scenario", "use", "meet at B*"], rows)


def _plot(folder: Path, link: str, what: str) -> str:
    op, scenario, dtype = what.split("/")
    name = _picture(folder, figures.name_of(op, scenario, dtype))
    return (
        f"![latency, speed-up and memory of {op} over the batch, {scenario}, {dtype}]"
        f"({link}/{name})"
    )


def _map(folder: Path, link: str, what: str) -> str:
    """The picture of who wins where."""
    name = _picture(folder, map_figure.NAME)
    return (
        "![who wins at which batch size, and its speed-up over PyTorch's fastest]"
        f"({link}/{name})"
    )


def _time_to_target_plot(folder: Path, link: str, what: str) -> str:
    name = _picture(folder, "time-to-target")
    return (
        "![predicted and measured time to a training loss over the batch]"
        f"({link}/{name})"
    )


def _picture(folder: Path, name: str) -> str:
    """The file of a picture, whichever format is stored."""
    for path in (folder / f"{name}.png", folder / f"{name}.svg"):
        if path.exists():
            return path.name
    raise ValueError(
        f"{folder} has no {name}.png: `batchline report {folder}` draws it"
    )


def _screenshot(folder: Path, link: str, what: str) -> str:
    path = folder / SCREENSHOT
    if not path.exists() or run_of(path) != digest_of(folder):
        raise ValueError(
            f"{path} is missing or of another run: `batchline readme` takes it where there is a Chromium"
        )
    return f"![the page of the run]({link}/{SCREENSHOT})"


def _selftest(folder: Path, link: str, what: str) -> str:
    """The whole table, or with `what` = "summary" the sentences under it alone."""
    stored = selftests.load(folder)
    if what == "summary":
        return f"> {summarize_selftest(stored)}"
    return f"{render_table(selftest_table(stored))}\n\n> {summarize_selftest(stored)}"


def _noise_and_sweep(folder: Path) -> tuple[Mapping, Mapping | None]:
    """The gradient noise and the training sweep, of a study or of a run."""
    if run_json.study_path_in(folder).exists():
        study = run_json.load_study(folder)
        return study.noise, study.sweep
    run = run_json.load(folder)
    if not run.noise:
        raise ValueError(f"{folder} has no gradient noise in it")
    return run.noise, run.sweep


def _claims(folder: Path, link: str, what: str) -> str:
    """The verdicts on the article's claims; with `what` = "verdicts" each in a word or
    two.
    """
    noise, sweep = _noise_and_sweep(folder)
    verdicts = claims.judge(sweep, noise)
    if what != "verdicts":
        return (
            f"{render_table(training.tabulate_claims(verdicts))}\n\n"
            f"{training.provenance(sweep)}"
        )
    rows = [
        [
            one.claim,
            "holds in part" if one.verdict == ONLY_WHERE else one.verdict.lower(),
        ]
        for one in verdicts
    ]
    return draw(["claim", "verdict"], rows)


def _time_to_target(folder: Path, link: str, what: str) -> str:
    """How far the predicted times to a loss are from those of training, by the noise
    that was measured at the points of training that `what` names ("45, 450"): the
    updates before them.
    """
    noise, sweep = _noise_and_sweep(folder)
    result = TrainingFindings(noise, sweep).time_to_target
    if isinstance(result, str):
        raise ValueError(f"{folder}: {result}")
    said = []
    for updates in what.split(", "):
        start = f"With the noise scale measured after {updates} updates"
        of_point = [one for one in result.sentences if one.startswith(start)]
        if not of_point:
            raise ValueError(f"the noise of {folder} was not measured at {updates}")
        said += of_point
    return " ".join(said)


def _fences(folder: Path, link: str, what: str) -> str:
    """What it cost to look after the variants, as a share of the run."""
    run = run_json.load(folder)
    facts = [record.facts for record in run.records if "task_s" in record.facts]
    if not facts:
        raise ValueError(f"the run in {folder} does not say what its fences took")
    fences_s = sum(fact["fences_s"] for fact in facts)
    cases_s = sum(fact["task_s"] for fact in facts)
    run_s = run.seconds
    return (
        f"New values, checks of what was timed and fences took {fences_s / run_s:.1%} "
        f"of the run's {run_s:.0f} s, and {fences_s / cases_s:.1%} of the time for its "
        f"cases ({run.machine['device_name']})."
    )


def _output(folder: Path, link: str, what: str) -> str:
    """What a command has printed, as it is stored in the folder's file `what`."""
    path = folder / what
    if not what or not path.exists():
        raise ValueError(f"{folder} has no file {what!r}")
    lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    return "\n".join(["```text", *map(str.rstrip, lines), "```"])


EXCERPTS: Mapping[str, Callable[[Path, str, str], str]] = {
    # The Markdown of each kind, from the folder in which a run, study or self-test is
    # stored, the folder as the document's links say it, and which part of it is asked
    # for ("" is all). ValueError for a part or a folder that is not there.
    "machine": _machine,
    "problem": _problem,
    "ladder": _ladder,
    "choices": _choices,
    "map": _map,
    "plot": _plot,
    "screenshot": _screenshot,
    "selftest": _selftest,
    "claims": _claims,
    "time_to_target": _time_to_target,
    "time_to_target_plot": _time_to_target_plot,
    "fences": _fences,
    "output": _output,
}


def digest_of(folder: Path) -> str:
    """A hash of a stored run."""
    return hashlib.sha256((folder / run_json.FILE_NAME).read_bytes()).hexdigest()[:16]


def run_of(screenshot: Path) -> str | None:
    """The hash of the run that a screenshot is of, as `stamped` put it in; None without
    one.
    """
    content = screenshot.read_bytes()
    at = content.find(b"tEXt" + _KEYWORD + b"\0")
    return (
        content[at + 4 + len(_KEYWORD) + 1 :][:16].decode("ascii", errors="replace")
        if at >= 0
        else None
    )


def stamped(png: bytes, digest: str) -> bytes:
    """The PNG with a text chunk that says which run it shows (PNG specification, third
    edition, 11.3.3.2).

    Raises:
        ValueError: if it is no PNG.
    """
    if not png.startswith(_PNG):
        raise ValueError("a screenshot is a PNG, and this is none")
    header_end = len(_PNG) + 25  # the IHDR chunk
    data = b"tEXt" + _KEYWORD + b"\0" + digest.encode()
    chunk = (
        struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    )
    return png[:header_end] + chunk + png[header_end:]
