"""The clocks beside NVBench, then the ceilings: `python -m
batchline.bench.measure.clocks_and_ceilings FILE DEVICE`.

In a process of its own, for NVBench runs once in a process. FILE has {"machine",
"clocks": bench.measure.clock_check's, "ceilings": bench.measure.ceilings',
"why_no_ceilings"}; it is there with the clocks before the ceilings are measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from batchline.bench.cases import PROFILES
from batchline.bench.store.files import write_whole
from batchline.bench.measure import busy, ceilings, clock_check, environment
from batchline.bench.measure.sampling import Effort

_CEILINGS = Effort(0.005, 0.5)


def main(path: Path, device: str) -> None:
    document = {
        "machine": environment.machine(device),
        "clocks": clock_check.measure(device),
        "ceilings": None,
        "why_no_ceilings": "its time was over",
    }
    write_whole(path, json.dumps(document, indent=1))
    dtypes = PROFILES["evidence"].dtypes[device]
    effort = _CEILINGS
    measured, why_not = ceilings.try_to_measure(
        device, dtypes, effort, busy.guard_of(device)
    )
    write_whole(
        path,
        json.dumps(
            document | {"ceilings": measured, "why_no_ceilings": why_not}, indent=1
        ),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
