"""Whose `kernels` a process measures: those of a tree that it is told of, whatever its
`bench` is.
"""

from __future__ import annotations

import sys

import batchline


def use_kernels_of(tree: str) -> None:
    """Let `batchline.kernels` be the tree's from now on; `batchline.bench` is imported
    by now, and stays this one.

    The stand-in for a GPU has imported this one's kernels by then, to take their
    launches over.
    """
    batchline.__path__.insert(0, tree)
    for name in [
        name for name in sys.modules if f"{name}.".startswith("batchline.kernels.")
    ]:
        del sys.modules[name]
    vars(batchline).pop("kernels", None)
