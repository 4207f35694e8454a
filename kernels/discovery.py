"""What lies in the folders of `kernels`, by name, without importing it; and mappings
that import it when asked.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

Loaded = TypeVar("Loaded")


def op_packages(folders: Sequence[str]) -> list[str]:
    """The names of the packages in these folders that should be ops."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(folders)
        if module.ispkg and not module.name.startswith("_")
    )


def variant_files(folders: Sequence[str]) -> list[str]:
    """The names of the variants whose files lie in an op's folders; what can't be part
    of a case id is none.
    """
    modules = (module.name for module in pkgutil.iter_modules(folders))
    return [name for name in modules if not name.startswith("_") and is_name(name)]


def is_name(name: str) -> bool:
    """Whether a variant, scenario or op can be called so: names are parts of case ids,
    of files and of expressions.
    """
    return name.isascii() and name.isidentifier()


class LoadedWhenAsked(Mapping[str, Loaded]):
    """`load(name)` by name, once for each name that is asked for; `names` gives those
    that there are.

    There is no lock, for Python's import has one for each module: a second one around
    it could wait for the first in one thread and be waited for in another.
    """

    def __init__(
        self, names: Callable[[], Sequence[str]], load: Callable[[str], Loaded]
    ):
        self._names, self._load = names, load
        self._loaded: dict[str, Loaded] = {}

    def __getitem__(self, name: str) -> Loaded:
        if name not in self._loaded:
            if name not in self:
                raise KeyError(name)
            self._loaded.setdefault(
                name, self._load(name)
            )  # of two threads that load it both get the first's
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __contains__(self, name: object) -> bool:
        return name in self._names()
