"""What was measured, stored: runs, studies, comparisons and self-tests as typed records
that own their files, with the number of their format.

`load` reads what `batchline run`, `batchline noise` or `batchline claims` has left in a
folder.
"""

from __future__ import annotations

from pathlib import Path

from batchline.bench.store import run_json
from batchline.bench.store.records import Run, Study


def load(folder: Path | str) -> Run | Study:
    """The run or the study that is stored in a folder.

    Raises:
        UsageError (a ValueError): if there is neither, or it can't be read.
    """
    folder = Path(folder)
    if (
        run_json.study_path_in(folder).exists()
        and not run_json.path_in(folder).exists()
    ):
        return run_json.load_study(folder)
    return run_json.load(folder)
