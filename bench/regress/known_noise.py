"""How much each case's latency changes on identical code on this machine, as `make
selftest` found it and keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from batchline import places
from batchline.bench.store import files
from batchline.kernels.device_names import slug

FORMAT = 1
FOLDER = places.BASELINES
_AGAIN = "`batchline selftest` measures it anew"
_PARTS = ("machine", "profile", "sessions", "noise")


def path(machine: Mapping) -> Path:
    """Where the noise of the machine (bench.measure.machine.environment.machine) is kept."""
    return FOLDER / f"noise-{slug(machine['device_name'])}.json"


def load(machine: Mapping) -> dict[str, float]:
    """The 99th percentile of each case's A/A change, as a share, by case id; {} where
    it was not measured here.

    Raises:
        files.SealBroken: if the file is damaged, was edited by hand, or is of another
        format or machine.
    """
    file = path(machine)
    document = files.load_sealed(file, FORMAT, _AGAIN, _PARTS)
    if document is None:
        return {}
    if document["machine"] != identity(machine):
        raise files.SealBroken(
            f"{file.name} is of another machine "
            f"({files.differing(document['machine'], identity(machine))}): {_AGAIN}"
        )
    return document["noise"]


def save(
    machine: Mapping, profile: str, sessions: int, noise: Mapping[str, float]
) -> Path:
    """Keep the noise that so many A/A sessions found."""
    document = {
        "machine": identity(machine),
        "profile": profile,
        "sessions": sessions,
        "noise": dict(noise),
    }
    sealed_document = {
        "format": FORMAT,
        "digest": files.digest(*(document[name] for name in _PARTS)),
        **document,
    }
    file = path(machine)
    file.parent.mkdir(parents=True, exist_ok=True)
    return files.write_whole(file, json.dumps(sealed_document, indent=1) + "\n")


def identity(machine: Mapping) -> dict:
    """What the noise depends on of a machine's description."""
    return {name: machine[name] for name in ("device_name", "cpu", "cpu_cores")}
