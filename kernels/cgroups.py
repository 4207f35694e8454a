"""What the control groups of this process leave it: CPU time, memory, and how often
they have stopped it.

A container is one: its quota and its memory limit are not the machine's. Linux only,
cgroup v2 and v1 (cgroups(7)). A limit holds for all that is below it, so the tightest
on the way up counts. Elsewhere nothing is limited.

`root` is the root of the file system to read: "/" but in tests.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_NO_LIMIT_BYTES = (
    2**62
)  # v1 writes its largest multiple of a page where there is no limit
_V2 = ""  # its controller's name in /proc/self/cgroup: one hierarchy has them all


@dataclass(frozen=True)
class _Names:
    """The files and the lines of memory.stat of one version of the memory controller."""

    limits: tuple[str, ...]
    used: str
    reclaimable: tuple[str, ...]


_MEMORY_V2 = _Names(
    ("memory.max", "memory.high"),
    "memory.current",
    ("inactive_file", "active_file", "slab_reclaimable"),
)
_MEMORY_V1 = _Names(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """How many cores' time this process may use, as 0.6 or 2.0; None where it may use
    all.
    """
    return min(
        (quota for quota in map(_quota_of, _folders("cpu", root)) if quota is not None),
        default=None,
    )


def whole_cores(root: Path = _ROOT) -> int | None:
    """The threads that can run all the time within the quota, at least 1; None without
    a quota.
    """
    quota = cpu_quota(root)
    return None if quota is None else max(1, math.floor(quota))


def stop_counters(root: Path = _ROOT) -> tuple[Path, ...]:
    """The files that count for `times_stopped`: one for each group with a quota. Found
    once, and read often.
    """
    return tuple(
        folder / "cpu.stat"
        for folder in _folders("cpu", root)
        if _quota_of(folder) is not None
    )


def times_stopped(counters: Sequence[Path]) -> int:
    """In how many periods so far a group of this process had used up its quota and was
    stopped until the next.
    """
    return sum(_values(counter).get("nr_throttled", 0) for counter in counters)


def memory_limit(root: Path = _ROOT) -> int | None:
    """The bytes that this process and its group may hold; None where that is not
    limited.
    """
    limits = [
        limit
        for folder, names in _memory_folders(root)
        if (limit := _limit_of(folder, names)) is not None
    ]
    return min(limits, default=None)


def memory_room(root: Path = _ROOT) -> int | None:
    """The bytes that can still be allocated: what the limit leaves, and the page cache
    that gives way.

    None where memory is not limited. memory.high counts as a limit: beyond it each
    allocation waits for reclaim.
    """
    rooms = []
    for folder, names in _memory_folders(root):
        limit, used = _limit_of(folder, names), _number(folder / names.used)
        if limit is not None and used is not None:
            stat = _values(folder / "memory.stat")
            reclaimable = sum(stat.get(name, 0) for name in names.reclaimable)
            rooms.append(max(0, limit - max(0, used - reclaimable)))
    return min(rooms, default=None)


def _memory_folders(root: Path) -> Iterator[tuple[Path, _Names]]:
    for folder in _folders("memory", root):
        yield folder, _MEMORY_V1 if (folder / _MEMORY_V1.used).exists() else _MEMORY_V2


def _limit_of(folder: Path, names: _Names) -> int | None:
    limits = [
        limit for name in names.limits if (limit := _number(folder / name)) is not None
    ]
    return min((limit for limit in limits if limit < _NO_LIMIT_BYTES), default=None)


def _quota_of(folder: Path) -> float | None:
    """cpu.max of v2 is "60000 100000" or "max 100000", in µs; v1 has a file for each,
    and -1 for no quota.
    """
    quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")
    if not quota:
        quota, period = (
            _text(folder / "cpu.cfs_quota_us") or "",
            _text(folder / "cpu.cfs_period_us") or "",
        )
    with contextlib.suppress(ValueError):
        if int(quota) > 0 and int(period) > 0:
            return int(quota) / int(period)
    return None


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """This process's group in the hierarchies that have the controller, and each group
    above, up to the mount.
    """
    groups = dict(_groups(root))
    for name, mounted, mount in _mounts(root):
        if name in (controller, _V2) and name in groups:
            relative = _below(groups[name], mounted)
            for inside in (relative, *relative.parents):
                yield mount / inside


def _groups(root: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """Controller → this process's group, from lines such as "4:cpu,cpuacct:/docker/ab"
    and "0::/user.slice".
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, PurePosixPath(path)


def _mounts(root: Path) -> Iterator[tuple[str, PurePosixPath, Path]]:
    """(controller, the group that is mounted, where) of each mounted hierarchy, from
    proc_pid_mountinfo(5).
    """
    for line in (_text(root / "proc/self/mountinfo") or "").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        mounted, mount = (field.replace("\\040", " ") for field in fields.split()[3:5])
        if kind in ("cgroup", "cgroup2"):
            for controller in [_V2] if kind == "cgroup2" else options.split(","):
                yield controller, PurePosixPath(mounted), root / mount.lstrip("/")


def _below(group: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """The group's path from the mount; "." where the mount shows this group alone, as a
    container's does.
    """
    if ".." not in group.parts and group.is_relative_to(mounted):
        return group.relative_to(mounted)
    return PurePosixPath(".")


def _values(path: Path) -> dict[str, int]:
    """The numbers of a file of lines such as "nr_throttled 7"."""
    pairs = (line.split() for line in (_text(path) or "").splitlines())
    return {
        pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()
    }


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
