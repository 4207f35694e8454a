"""What was measured on a device, in files beside the kernels:
kernels/<op>/<kind>/<device>.json, one for each kind.

A launch only looks up: the problem's own entry, or those near it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from batchline.kernels.device import device_name
from batchline.kernels.device_names import slug

_NEAR = 2.0  # in doublings, summed over the sizes: within a factor of four in all
_COMMANDS = {
    "tuning": "batchline tune",
    "dispatch": "batchline dispatch",
}  # the kinds, and what writes each


def file_for(folder: Path, kind: str, device: str) -> Path:
    """The file with the `kind` of an op in `folder` on this machine's "cpu" or "cuda"."""
    return folder / kind / f"{slug(device_name(device))}.json"


@functools.cache
def stored(path: Path) -> Mapping:
    """What such a file holds: its device, when and how it was measured, and the
    "winners"; {} if there is none.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document if document["winners"] is not None else {}
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        kind = path.parent.name
        raise ValueError(
            f"{path} is not a {kind} file ({error}): remove it, and `{_COMMANDS[kind]}` writes it anew"
        ) from error


def nearby(
    entries: Iterable[Mapping], traits: str, sizes: Sequence[int]
) -> list[tuple[float, Mapping]]:
    """(distance, entry) of those of equal "traits" whose "sizes" are within a factor of
    four, the nearest first.

    The distance is in doublings, summed over the sizes; a size of 0 is near nothing but
    itself.
    """
    measured = [
        (_distance(entry["sizes"], sizes), entry)
        for entry in entries
        if entry["traits"] == traits
    ]
    near = (pair for pair in measured if pair[0] <= _NEAR)
    return sorted(near, key=lambda pair: pair[0])


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    if len(one) != len(other):
        return math.inf
    return sum(
        0.0 if a == b else abs(math.log2(a / b)) if a and b else math.inf
        for a, b in zip(one, other)
    )
