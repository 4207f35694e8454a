"""Whose `kernels` a process measures: those of a tree that it is told of, whatever its `bench` is."""
from __future__ import annotations

import sys


def use_kernels_of(tree: str) -> None:
    """Let `import kernels` be the tree's from now on; `bench` is imported by now, and stays this one.

    The stand-in for a GPU has imported this one's kernels by then, to take their launches over.
    """
    sys.path.insert(0, tree)
    for name in [name for name in sys.modules if name.partition(".")[0] == "kernels"]:
        del sys.modules[name]
