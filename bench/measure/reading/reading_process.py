"""The process that bench.catalogue asks: it forks those that read the files, and says
what came of each file.

It writes a line of JSON for everything that it says: [kind, data]. The last one,
"done", has how many it answered for.

Whose `kernels` a process measures: those of a tree that it is told of, whatever its
`bench` is.

How the ops' files are imported where they may be hostile: from their sources, with
nothing that watches.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path

import batchline
from batchline import own_ops


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


class _SourceLoader(SourceFileLoader):
    """Compiles the source each time: what a variant writes into __pycache__ would be
    run in its place, today and later.
    """

    def get_code(self, fullname: str):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def from_sources_only(folders: Iterable[str]) -> None:
    """From now on import what lies in these folders from its sources."""
    for folder in folders:
        sys.path_importer_cache[folder] = FileFinder(
            folder, (_SourceLoader, SOURCE_SUFFIXES)
        )


def states(folders: Iterable[str]) -> dict[str, tuple[int, int]]:
    """When each Python file in these folders was last changed (which no program can set
    back), and its size.
    """
    found = {}
    for entry in (entry for folder in folders for entry in os.scandir(folder)):
        if entry.name.endswith(".py") and not entry.name.startswith(
            "."
        ):  # an editor's own
            with contextlib.suppress(FileNotFoundError):
                found[entry.path] = entry.stat().st_ctime_ns, entry.stat().st_size
    return found


def changed(
    before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]]
) -> list[str]:
    """The files that are not as they were, or are no more; a new one is nobody's that
    is measured.
    """
    return sorted(path for path, state in before.items() if now.get(path) != state)


def refuse_audit_hooks() -> None:
    """From now on no audit hook is added: one could not be removed again, and is told
    of every look of the fence.
    """
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple) -> None:
    if event == "sys.addaudithook":
        raise RuntimeError(
            "no audit hook is added here"
        )  # which whoever adds one does not see


_MOST_AT_ONCE = 8
_TOGETHER_S = (
    3.0  # that a step may take where variants are read together: it takes milliseconds
)


def main() -> None:
    """Answer the request that comes on standard input, on what is standard output when
    it starts.

    The first argument is the tree whose `kernels` it is about.
    """
    pipe = os.dup(sys.stdout.fileno())
    os.dup2(
        sys.stderr.fileno(), sys.stdout.fileno()
    )  # nothing but answers goes into the pipe
    with open(pipe, "w", encoding="utf-8") as file:
        try:
            for answer in _answers(sys.argv[1]):
                file.write(f"{json.dumps(answer)}\n")
                file.flush()
        except Exception as error:
            file.write(
                f"{json.dumps(('failed', f'{type(error).__name__}: {error}'))}\n"
            )


def _answers(tree: str) -> Iterator[tuple[str, object]]:
    use_kernels_of(tree)
    import torch

    # The first arithmetic on shapes imports hundreds of torch's modules: here, once for
    # all that is forked.
    torch.empty(2, 1, device="meta").add_(torch.empty(1, device="meta"))

    from batchline import kernels
    from batchline.bench.measure.checking.fence import Fence
    from batchline.bench.measure.machine import process_state
    from batchline.bench.measure.reading.declarations import (
        Request,
        op_job,
        variant_job,
    )
    from batchline.kernels.discovery import op_packages

    _import_compilers()
    from_sources_only(process_state.op_folders().values())
    refuse_audit_hooks()
    fence = Fence()
    line = sys.stdin.readline()
    if not line:  # nobody asks any more
        return
    asked = json.loads(line)
    request, deadline_s = Request(**asked["request"]), asked["deadline_s"]
    folders = own_ops.read_folders(Path(kernels.__path__[0]))
    shared = [init.parent for one in folders for init in one.glob("_*/__init__.py")]
    watched = [*map(str, (*folders, *sorted(shared)))]
    watched += [
        one
        for one in process_state.op_folders().values()
        if Path(one).parent in folders
    ]
    before = states(watched)
    yield "ready", None
    ops = {}
    for folder in folders:
        packages = op_packages([str(folder)])
        yield from _strays(folder, packages)
        ops |= {
            _file(folder, name): (folder, name)
            for name in packages
            if _is_name(name) and request.reads_op(name)
        }
    op_count, variants = 0, {}
    for kind, answer in _each(
        [op_job(name, file, request, fence) for file, (_, name) in ops.items()],
        deadline_s,
    ):
        if kind != "ended":
            yield kind, answer
        elif answer["failure"] or not answer["data"]:
            yield "broken", answer
        else:
            folder, name = ops[answer["file"]]
            op = answer["data"][0] | {"name": name}
            yield "op", op
            op_count += 1
            yield from (
                _misnamed(_file(folder, op["name"], name)) for name in op["misnamed"]
            )
            variants |= {
                _file(folder, op["name"], name): (op, name)
                for name in op["variants"]
                if request.reads_variant(op["name"], name)
            }
    alone = []
    for kind, answer in _each_together(variants, request.configs, fence, deadline_s):
        if kind == "apart":
            alone += answer
        else:
            yield kind, answer
    jobs = [
        variant_job(op["name"], name, file, op["problems"], request.configs, fence)
        for file, (op, name) in variants.items()
        if file in alone
    ]
    for kind, answer in _each(jobs, deadline_s):
        if kind == "ended":
            op, name = variants[answer["file"]]
            yield "variant", answer | {"op": op["name"], "name": name}
        else:
            yield kind, answer
    for path in map(Path, changed(before, states(watched))):
        folder = next(one for one in folders if path.is_relative_to(one))
        yield "changed", {"file": path.relative_to(folder.parent).as_posix()}
    yield "done", {"op": op_count, "variant": len(variants)}


def _import_compilers() -> None:
    """Import those that are installed, once for all that is forked: a variant's file
    imports its own, which takes up to 0.4 s.
    """
    from batchline.kernels import backends

    for backend in backends.NAMES:
        with contextlib.suppress(Exception):  # a broken one is its variants' to tell
            backends.why_absent(backend)


def _each_together(
    variants: Mapping[str, tuple[Mapping, str]],
    configs: bool,
    fence,
    deadline_s: float,
) -> Iterator[tuple[str, object]]:
    """What came of the variants, a few forks for each op; ("apart", files) of those
    whose fork failed, which says nothing of any of them.

    A fork writes to, and so copies, what it shares: more of the time than the files
    take.
    """
    from batchline.bench.measure.reading.declarations import variants_job

    by_op: dict[str, list[str]] = {}
    for file, (op, _) in variants.items():
        by_op.setdefault(op["name"], []).append(file)
    groups, jobs = {}, []
    for op_name, files in by_op.items():
        count = _at_once()
        for number in range(min(count, len(files))):
            share = files[number::count]
            names = [variants[file][1] for file in share]
            problems = variants[share[0]][0]["problems"]
            title = f"{Path(files[0]).parent.as_posix()}, part {number + 1}"
            groups[title] = share
            jobs.append(variants_job(title, op_name, names, problems, configs, fence))
    for kind, answer in _each(jobs, min(deadline_s, _TOGETHER_S)):
        if kind != "ended":
            yield kind, answer
            continue
        files = groups[answer["file"]]
        names = [variants[file][1] for file in files]
        data = answer["data"]
        if answer["failure"] or data[::3] != names or len(data) != 3 * len(names):
            yield "apart", files
            continue
        for place, file in enumerate(files):
            op, name = variants[file]
            yield "variant", {
                "file": file,
                "data": data[3 * place + 1 : 3 * place + 3],
                "failure": None,
                "op": op["name"],
                "name": name,
            }


def _at_once() -> int:
    """How many processes there are at a time."""
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    return min(_MOST_AT_ONCE, cores or 1)


def _each(jobs: Sequence, deadline_s: float) -> Iterator[tuple[str, object]]:
    """("ended", what came of it) for each job, between what is to be told of those that
    take long.
    """
    from batchline.bench.measure.reading import declarations

    for job, told in declarations.each(jobs, deadline_s, _at_once()):
        if isinstance(told, declarations.Waiting):
            yield "waiting", f"waiting for {job.name} ({told.step})"
        else:
            yield "ended", {
                "file": job.name,
                "data": told.data,
                "failure": told.failure,
            }


def _strays(folder: Path, packages: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Folders that look like ops and can't be one."""
    for name in packages:
        if not _is_name(name):
            yield _misnamed(f"{folder.name}/{name}")
    for path in sorted(folder.iterdir()):
        if (
            path.is_dir()
            and path.name[0] not in "_."
            and path.name not in packages
            and any(path.glob("*.py"))
        ):
            yield "broken", {
                "file": f"{folder.name}/{path.name}",
                "failure": ("failed", "it has no __init__.py"),
            }


def _misnamed(file: str) -> tuple[str, object]:
    return "broken", {
        "file": file,
        "failure": (
            "failed",
            "its name can't be part of a case id: only ASCII letters, digits and _ can",
        ),
    }


def _file(folder: Path, op: str, variant: str = "__init__") -> str:
    return f"{folder.name}/{op}/{variant}.py"


def _is_name(name: str) -> bool:
    return name.isascii() and name.isidentifier()
