"""What ops and variants declare of themselves, as plain data: all that is known of them
where nothing runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from batchline.kernels.backends import DISPATCH
from batchline.kernels import op as contract
from batchline.kernels.op import Scenario, why_not_here

CONTRACT = Path(contract.__file__)  # of the ops of other repositories
Refusal = tuple[str, str]  # a status of bench.statuses, and a line that says why


@dataclass(frozen=True)
class Declared:
    """A variant, as kernels.op.Variant has it. `folder` is its op's; `tunable`: whether
    it has several configurations.

    `broken` is how it ended when it was asked what it declares, and why; None where
    nothing is wrong with it.
    """

    op: str
    name: str
    folder: Path
    backend: str = "torch"
    dtypes: tuple[str, ...] | None = None
    needs: str | None = None
    architectures: tuple[int, ...] | None = None
    builds_on: str | None = None
    example: tuple[str, int] | None = None
    tunable: bool = False
    own_tolerance: bool = False
    slow_start: bool = False
    detail: bool = False
    gives: int | None = None
    idea: str = "(could not be read)"
    is_baseline: bool = False
    broken: Refusal | None = None

    @property
    def id(self) -> str:
        return f"{self.op}/{self.name}"

    @property
    def file(self) -> Path:
        """Where it is: an op's own call is in the contract's file, every other variant
        in one of its name.
        """
        if self.backend == DISPATCH:
            beside = self.folder.parent / "op.py"
            return beside if beside.is_file() else CONTRACT
        package = self.folder / self.name / "__init__.py"
        return package if package.exists() else self.folder / f"{self.name}.py"

    @property
    def below(self) -> str | None:
        """The id of the rung below."""
        return f"{self.op}/{self.builds_on}" if self.builds_on else None

    @property
    def runs_on(self) -> str:
        """The devices that it can run on at all."""
        return self.needs or "cpu, cuda"

    def why_not_here(self, device: str, dtype: str | None = None) -> str | None:
        """Why it can't run on `device` ("cpu" or "cuda"; in `dtype`) in this
        environment, or None.
        """
        return why_not_here(self.backend, self.needs, device, dtype)


@dataclass(frozen=True)
class Problem:
    """One problem of an op: its work by the op's definition, and what the op describes
    it by (kernels.op.Op).
    """

    op: str
    scenario: str
    dtype: str
    batch: int
    flops: float
    least_bytes: float
    traits: str
    sizes: tuple[int, ...]

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.op, self.scenario, self.dtype, self.batch


@dataclass(frozen=True)
class DeclaredAudit:
    """An op's numerics audit: the names of its errors, and for each of its negative
    controls the dtypes that it takes (None is all).
    """

    errors: tuple[str, ...]
    controls: Mapping[str, tuple[str, ...] | None]


@dataclass(frozen=True)
class DeclaredOp:
    """An op, its variants by name (the baseline first), and the problems that were
    asked for.

    `audit` is None where the op declares no conditions.

    `left_out` are those that are over the limits that were asked for. `refusals` and
    `configs` have an entry for each of `problems`, by variant: why the variant does not
    take it, or None; its configurations, the rule's first.
    """

    name: str
    folder: Path
    signature: str
    baseline: str
    scenarios: Mapping[str, Scenario]
    audit: DeclaredAudit | None
    problems: tuple[Problem, ...]
    left_out: tuple[Problem, ...]
    variants: Mapping[str, Declared] = field(default_factory=dict)
    refusals: Mapping[str, Sequence[Refusal | None]] = field(default_factory=dict)
    configs: Mapping[str, Sequence[Sequence[Mapping]]] = field(default_factory=dict)


@dataclass(frozen=True)
class BrokenFile:
    """What should have been an op or a variant and has no rows: its file, how it ended,
    and why.
    """

    file: str
    status: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.status}: {self.reason}"


@dataclass(frozen=True)
class Catalogue:
    """The ops by name, and what is none."""

    ops: Mapping[str, DeclaredOp]
    broken: tuple[BrokenFile, ...]

    @property
    def variants(self) -> list[Declared]:
        """Every variant of every op."""
        return [variant for op in self.ops.values() for variant in op.variants.values()]

    @property
    def unread(self) -> list[str]:
        """A line for each file that is no op or no variant, and for each variant that
        is broken.
        """
        return [
            *map(str, self.broken),
            *(
                f"{variant.id}: {': '.join(variant.broken)}"
                for variant in self.variants
                if variant.broken
            ),
        ]
