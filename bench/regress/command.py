"""`batchline regress`: is the working tree slower, larger or less accurate than a base? By
pairs of fresh processes.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
import time
from pathlib import Path

from batchline.bench import regressions
from batchline.bench.cases import CLOCKS, PROFILES
from batchline.bench.errors import UsageError
from batchline.bench.folders import new_folder, remove_if_empty
from batchline.bench.measure import environment
from batchline.bench.regress import base_tree, known_noise, staged
from batchline.bench.regress.comparison import Comparison, NotComparable
from batchline.bench.regress.pairs import Pairs
from batchline.bench.regressions import Regression
from batchline.bench.report import ci, junit, regression_words
from batchline.bench.report import regression as report
from batchline.bench.verdicts import conclusion

CLEAN, CONFIRMED, NOT_MEASURED, INTERRUPTED = 0, 1, 3, 130
DEFAULT_FOLDER = Path("reports", "runs")
REPORT_NAME = "README.md"


def regress(
    base: str,
    profile: str,
    device: str,
    selection: str,
    budget_s: float | None,
    folder: Path = DEFAULT_FOLDER,
) -> int:
    """Compare the working tree with the revision `base` on the profile's cases that
    match `selection` (pytest's -k).

    No pair is begun that would not end within `budget_s`. Returns the exit code.

    Raises:
        UsageError: before anything is measured, if the call, the environment or the
        folder is not usable. ValueError: for an unknown device, or a noise file that
        can't be believed.
    """
    device = environment.resolve_device(device)
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}: use {', '.join(PROFILES)}")
    if budget_s is not None and not budget_s > 0:
        raise UsageError(
            f"BUDGET={budget_s:g} leaves no time: give minutes, or leave it out"
        )
    machine = environment.machine(device)
    noise = known_noise.load(machine)
    started, started_s = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    run_folder = new_folder(folder, f"{machine['device_name']} regress")
    try:
        with base_tree.checked_out(base) as tree, staged.compiled_once():
            comparison = Comparison(
                Pairs(device, PROFILES[profile], (tree.folder, None)),
                selection,
                profile,
                noise,
            )
            comparison.measure(None if budget_s is None else started_s + budget_s)
        found = comparison.regression(
            {
                "base": {"name": base, "commit": tree.commit, "dirty": False},
                "head": {"name": "", **machine["revision"]},
                "profile": profile,
                "selection": selection,
                "device": device,
                "clock": CLOCKS[device][0],
                "started": started.isoformat(timespec="seconds"),
                "seconds": time.monotonic() - started_s,
                "budget_s": budget_s,
                "machine": machine,
            }
        )
        _publish(found, run_folder)
    except NotComparable as why:
        print(f"batchline: {why}", file=sys.stderr)
        ci.announce("error", [("regress", str(why))])
        return NOT_MEASURED
    finally:
        remove_if_empty(run_folder)
    return exit_code(found)


def exit_code(found: Regression) -> int:
    """What a comparison means to a CI: only 0 is a pass."""
    if found.about["ended"] == staged.INTERRUPTED:
        return INTERRUPTED
    return {conclusion.CLEAN: CLEAN, conclusion.SLOWER: CONFIRMED}.get(
        conclusion.conclude(found), NOT_MEASURED
    )


def _publish(found: Regression, folder: Path) -> None:
    """Store it, write its reports, and say it to the terminal and to the CI."""
    text = report.markdown(found)
    try:
        regressions.save(folder, found)
        (folder / REPORT_NAME).write_text(f"# Regressions\n\n{text}", encoding="utf-8")
        (folder / junit.FILE_NAME).write_text(junit.junit(found), encoding="utf-8")
    except OSError as error:
        rescue = Path(tempfile.mkdtemp(prefix="batchline-"))
        regressions.save(rescue, found)
        print(
            f"batchline: can't write to {folder} any more ({error.strerror}): the comparison is in {rescue}",
            file=sys.stderr,
        )
    print(report.terminal(found))
    print(f"report: {folder / REPORT_NAME}")
    ci.step_summary(f"## Regressions\n\n{text}")
    ci.announce("error", regression_words.problems(found))
