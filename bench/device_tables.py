"""Writes what kernels.device_files reads: what was measured on a device, one entry
per line, beside the kernels.

Beside the kernels lies only what was measured: what the stand-in for a GPU makes up
goes into a run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from batchline.bench.declared import DeclaredOp
from batchline.bench.errors import UsageError
from batchline.bench.store.files import write_whole
from batchline.bench.store.history import why_made_up
from batchline.kernels.device_files import file_for, stored


def path_of(op: DeclaredOp, kind: str, device: str, folder: Path | None = None) -> Path:
    """Where an op's table of that kind is: beside its kernels, or in `folder`, whose
    tables no call looks up.
    """
    beside = file_for(op.folder, kind, device)
    return folder / f"{op.name}-{beside.name}" if folder else beside


def provenance(machine: Mapping) -> dict:
    """The part of a table's header that says whose times it has
    (bench.measure.machine.environment.machine).
    """
    made_up = why_made_up(machine)
    return {
        **({"stand_in": made_up} if made_up else {}),
        "device": machine["device_name"],
        "versions": machine["versions"],
        "revision": machine["revision"],
    }


def write(path: Path, header: Mapping, winners: str) -> None:
    """Write a table: `header` a line each in its order, then the winners as JSON that
    is already laid out.

    The file appears whole or not at all.

    Raises:
        UsageError: if it can't be written.
    """
    lines = [
        f" {json.dumps(name)}: {json.dumps(value)}," for name, value in header.items()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(["{", *lines, f' "winners": {winners}', "}"]) + "\n"
        write_whole(path, text)
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror})") from error
    stored.cache_clear()
