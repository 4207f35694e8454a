"""JSON that must be believed: with a format number and a digest, so that no cut and no
edit by hand passes for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


class SealBroken(ValueError):
    """Why a file can't be believed, and what to do, in a line."""


def digest(*parts) -> str:
    """A hash of what JSON can say of the parts."""
    whole = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def load(path: Path, version: int, again: str, parts: tuple[str, ...]) -> dict | None:
    """The document in a file, whose "digest" is over its named `parts`; None where
    there is no file.

    `again`: what makes the file anew, for the errors.

    Raises:
        SealBroken: if it can't be read, is damaged, was edited by hand, or is of
        another format than `version`.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SealBroken(f"can't read {path.name} ({error.strerror})") from error
    except ValueError as error:  # of JSON or of UTF-8
        raise SealBroken(
            f"{path.name} is damaged ({error}): take it from git again, or {again}"
        ) from error
    if not isinstance(document, dict) or document.get("format") != version:
        found = (
            document.get("format", "an older one")
            if isinstance(document, dict)
            else "none"
        )
        raise SealBroken(
            f"{path.name} is of format {found!r}, and this Batchline reads {version}: {again}"
        )
    if document.get("digest") != digest(*(document.get(name) for name in parts)):
        raise SealBroken(
            f"{path.name} is not as it was written (its digest does not match: edited by hand, or cut): "
            f"take it from git again, or {again}"
        )
    return document


def differing(theirs: Mapping, ours: Mapping) -> str:
    """ "a 1, here 2, b …": what of two descriptions is not the same."""
    return ", ".join(
        f"{name} {theirs.get(name)}, here {ours.get(name)}"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    )
