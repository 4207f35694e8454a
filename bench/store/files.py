"""Reading and writing stored files: a file appears whole or not at all, damage is one
line that names the file, and what must be believed carries a digest.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.texts import clean_line

COMPRESSED = ".gz"
_MOST_SIGNS = 200  # of an error's own message


class DamagedFile(UsageError):
    """A stored file that can't be used: which file, and what is wrong with it, in a
    line.
    """


class SealBroken(ValueError):
    """Why a sealed file can't be believed, and what to do, in a line."""


def write_whole(path: Path, text: str) -> Path:
    """Write `text` to `path`, in UTF-8: a reader sees what was there before, or all of
    it, also after a power cut. A path that ends in .gz is compressed.

    Raises:
        OSError: if it can't be written; what was there before is still there.
    """
    content = text.encode("utf-8")
    if path.suffix == COMPRESSED:
        content = gzip.compress(content, mtime=0)
    unfinished = path.with_suffix(".partial")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, document: object) -> Path:
    """As `write_whole`, a document as JSON in as few bytes as it takes."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return write_whole(path, text)


def stored_path(path: Path) -> Path:
    """`path`, or the compressed file beside it where only that is there."""
    compressed = path.with_name(path.name + COMPRESSED)
    return compressed if compressed.exists() and not path.exists() else path


def stored_below(parent: Path, name: str) -> list[Path]:
    """The file of that name, compressed or not, of each folder below `parent` that has
    it; in the order of the folders' names.
    """
    folders = {path.parent for path in parent.glob(f"*/{name}")}
    folders |= {path.parent for path in parent.glob(f"*/{name}{COMPRESSED}")}
    return [stored_path(folder / name) for folder in sorted(folders)]


def compress(path: Path) -> Path:
    """Put the compressed file in the place of a file; the same content gives the same
    bytes.
    """
    compressed = path.with_name(path.name + COMPRESSED)
    write_whole(compressed, path.read_text(encoding="utf-8"))
    path.unlink()
    return compressed


def read_text(path: Path) -> str:
    """The text of a file, which may be compressed.

    Raises:
        OSError: if there is no such file, or it can't be read.
        ValueError: if it is damaged.
    """
    if path.suffix != COMPRESSED:
        return path.read_text(encoding="utf-8")
    content = path.read_bytes()
    try:
        return gzip.decompress(content).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error


def read_json(path: Path):
    """What the JSON file holds; one whose name ends in .gz is compressed.

    Raises:
        OSError: if there is no such file, or it can't be read.
        DamagedFile: if it is not an ordinary file (reading a pipe would wait for ever),
        or not JSON.
    """
    if path.exists() and not path.is_file():
        raise DamagedFile(f"{path} is not an ordinary file")
    try:
        return json.loads(read_text(path))
    except (
        ValueError,
        RecursionError,
    ) as error:  # of JSON, of UTF-8, of too long a number, of too deep a nesting
        raise DamagedFile(f"{path} is damaged: {_described(error)}") from error


@contextlib.contextmanager
def blamed_on(path: Path | str) -> Iterator[None]:
    """Turn what fails in the block into one line that names the stored file whose
    content it works on, or the runs, where it works on several.

    A stored file can be wrong in more ways than a reader can ask for: a name that is a
    number, a time below zero. The line also names the place in Batchline, in case the
    fault is there.

    Raises:
        DamagedFile: for any error but those that name what to do (UsageError) and those
        of the system (OSError).
    """
    try:
        yield
    except (UsageError, OSError):
        raise
    except Exception as error:
        raise DamagedFile(
            f"{path} is damaged, or of another version of Batchline: {_described(error)} "
            f"({_place_of(error)})"
        ) from error


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {clean_line(error, _MOST_SIGNS)}"


def _place_of(error: BaseException) -> str:
    """The innermost line of Batchline that the error passed through: "tables.py:33"."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "bench" in Path(frame.filename).parts] or list(
        frames
    )
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


def save_or_rescue(
    save: Callable[[Path], object], folder: Path, reader: str = ""
) -> Path:
    """Let `save` write what was measured into `folder`; where that fails by now,
    elsewhere, and say where.

    `reader`: the command that reads it, up to the folder's name, if there is one.
    Returns the folder that has it.

    Raises:
        OSError: if it can be written nowhere.
    """
    try:
        save(folder)
        return folder
    except OSError as error:
        why = error
    for parent in _other_folders():
        with contextlib.suppress(OSError):
            rescue = Path(tempfile.mkdtemp(prefix="batchline-", dir=parent))
            save(rescue)
            read = (
                f", and `python -m batchline {reader} {rescue}` reads it"
                if reader
                else ""
            )
            complain(
                f"can't write to {folder} any more ({why.strerror}): what was measured is in {rescue}{read}"
            )
            return rescue
    raise why


def _other_folders() -> Iterator[Path]:
    with contextlib.suppress(OSError):  # no temporary folder can be written
        yield Path(tempfile.gettempdir())
    yield from (Path("/var/tmp"), Path.home(), Path.cwd())


def digest(*parts) -> str:
    """A hash of what JSON can say of the parts."""
    whole = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def load_sealed(
    path: Path, version: int, again: str, parts: tuple[str, ...]
) -> dict | None:
    """The document in a file that carries a "format" number and, as its "digest", a
    hash of its named `parts`, so that no cut and no edit by hand passes for it; None
    where there is no file.

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
    if not isinstance(document, dict):
        document = {"format": "none"}
    number = document.get("format", "an older one")
    if number != version:
        raise SealBroken(
            f"{path.name} is of format {number!r}, and this Batchline reads {version}: {again}"
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
