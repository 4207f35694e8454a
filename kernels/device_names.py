"""Names of devices, without a compiler or torch."""

from __future__ import annotations

import re


def slug(name: str) -> str:
    """A device's name as part of a file's name: "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
