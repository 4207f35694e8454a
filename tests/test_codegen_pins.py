"""A pin file gives back what was pinned, or one line that says why it does not; it
never passes.
"""

import json
from types import SimpleNamespace

import pytest

from batchline.bench import catalogue
from batchline.bench.commands import codegen as command
from batchline.bench.commands._executed_pins import execute_and_compare
from batchline.bench.declared import BrokenFile, Catalogue
from batchline.bench.measure.compiled import pins, static_facts
from batchline.bench.measure.emulated import pinned as emulated_pins
from batchline.bench.statuses import FAILED
from batchline.bench.store.files import SealBroken
from tests.test_records import compiled_row

JOB = ("grad_reduce/triton_two_stage", "float32")
ENTRIES = {
    JOB: {"sources": "abc", "kernels": [compiled_row(), compiled_row(architecture=80)]},
    ("bmm/triton_tiled", "float16"): {"sources": "def", "kernels": []},
}


@pytest.fixture
def file(monkeypatch, tmp_path):
    monkeypatch.setattr(pins, "folder", lambda: tmp_path)
    return pins.save(ENTRIES)


def test_what_is_pinned_is_loaded(file):
    assert pins.load() == ENTRIES
    assert (
        sum('"variant"' in line for line in file.read_text().splitlines()) == 2
    )  # a kernel a line
    assert list(file.parent.iterdir()) == [file]


def test_where_nothing_is_pinned_it_says_what_is(monkeypatch, file):
    monkeypatch.setattr(pins, "toolchain", lambda: dict.fromkeys(pins.TOOLS, "0"))
    assert pins.load() == {}
    assert pins.why_none() == (
        "nothing is pinned for triton 0, numba 0, numba-cuda 0, nvidia-nvvm 0, nvidia-nvjitlink 0 "
        f"(there is {file.name}): `make codegen PIN=1` compiles and pins everything anew"
    )


def _cut(text):
    return text[: len(text) // 2]


def _empty(text):
    return ""


def _edited(text):
    assert text.count('"registers": 110') == 2
    return text.replace('"registers": 110', '"registers": 111', 1)


def _line_dropped(text):
    return "\n".join(
        line for line in text.splitlines() if '"architecture": 80' not in line
    ).replace("},\n ]}", "}]}")


def _sources_edited(text):
    return text.replace('"abc"', '"abd"')


def _without_digest(text):
    document = json.loads(text)
    del document["digest"]
    return json.dumps(document)


def _older(text):
    document = json.loads(text)
    return json.dumps({name: document[name] for name in ("toolchain", "entries")})


def _newer(text):
    return text.replace('"format": 2', '"format": 3')


def _conflict(text):
    return "<<<<<<< HEAD\n" + text


def _list(text):
    return "[]"


def _not_utf8(text):
    return b"\xff\xfe" + text.encode()


DAMAGES = {
    _cut: "is damaged",
    _empty: "is damaged",
    _edited: "is not as it was written",
    _line_dropped: "is damaged|is not as it was written",
    _sources_edited: "is not as it was written",
    _without_digest: "is not as it was written",
    _older: "is of format 'an older one'",
    _newer: "is of format 3, and this Batchline reads 2",
    _conflict: "is damaged",
    _list: "is of format 'none'",
    _not_utf8: "is damaged",
}


@pytest.mark.parametrize(
    "damage, words", DAMAGES.items(), ids=[damage.__name__ for damage in DAMAGES]
)
def test_a_damaged_file_is_one_line_and_exit_3(file, capsys, damage, words):
    damaged = damage(file.read_text())
    assert damaged != file.read_text()
    file.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    with pytest.raises(SealBroken, match=words) as refused:
        pins.load()
    assert file.name in str(refused.value) and "`make codegen PIN=1`" in str(
        refused.value
    )
    assert command.codegen(pin=False, everything=False) == 3
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == f"batchline: {refused.value}\n"


def test_another_toolchain_of_the_same_file_is_named(file, monkeypatch):
    other = pins.toolchain() | {"nvidia-nvvm": "14.0"}
    monkeypatch.setattr(pins, "toolchain", lambda: other)
    with pytest.raises(
        SealBroken, match=r"another toolchain \(nvidia-nvvm .*, here 14.0\)"
    ):
        pins.load()


def test_a_folder_in_the_files_place_is_a_line(file):
    file.unlink()
    file.mkdir()
    with pytest.raises(SealBroken, match="can't read"):
        pins.load()


def test_nothing_pinned_is_exit_3_before_anything_is_compiled(file, capsys):
    file.unlink()
    assert command.codegen(pin=False, everything=False) == 3
    assert capsys.readouterr().err == f"batchline: {pins.why_none()}\n"


def _reads(monkeypatch, *variants, broken=()):
    """The catalogue has these variants of one op, and these broken files."""
    ops = {"my_op": SimpleNamespace(variants={one.id: one for one in variants})}
    found = Catalogue(ops if variants else {}, tuple(broken))
    monkeypatch.setattr(catalogue, "read", lambda: found)


BROKEN_FILE = BrokenFile("my_ops/my_op/__init__.py", FAILED, "it does not load: no")


def test_what_does_not_load_is_named_and_not_called_gone(file, monkeypatch, capsys):
    _, current = ENTRIES
    _reads(monkeypatch, broken=[BROKEN_FILE])
    monkeypatch.setattr(static_facts, "jobs", lambda variants: [])
    assert command.codegen(pin=False, everything=False) == 3
    said = capsys.readouterr()
    assert not said.out and f"not compared: {BROKEN_FILE}" in said.err
    monkeypatch.setattr(static_facts, "jobs", lambda variants: [current])
    monkeypatch.setattr(static_facts, "is_current", lambda job, pinned: True)
    assert command.codegen(pin=False, everything=False) == 3
    said = capsys.readouterr()
    assert "Nothing moved" in said.out and str(BROKEN_FILE) in said.err


def test_ops_without_a_gpu_kernel_say_so(file, monkeypatch, capsys):
    _reads(monkeypatch, SimpleNamespace(id="my_op/a", backend="torch", broken=None))
    monkeypatch.setattr(static_facts, "jobs", lambda variants: [])
    monkeypatch.setattr(emulated_pins, "jobs", lambda variants: [])
    assert command.codegen(pin=True, everything=False) == 3
    assert "of my_op no variant is a GPU kernel" in capsys.readouterr().err
    assert execute_and_compare(pin=True, everything=False) == 3
    assert "there is nothing to execute" in capsys.readouterr().err
    assert list(file.parent.iterdir()) == [file]


def test_what_does_not_compile_is_not_pinned(file, monkeypatch, capsys):
    before = file.read_text()
    row = compiled_row(error="CompilationError: at 7:50")
    compiled = static_facts.Compilation({JOB: [row]}, 0, None)
    _reads(monkeypatch)
    monkeypatch.setattr(static_facts, "jobs", lambda variants: [JOB])
    monkeypatch.setattr(static_facts, "compiled", lambda wanted: compiled)
    assert command.codegen(pin=True, everything=True) == 3
    said = capsys.readouterr()
    assert "pinned in" not in said.out and file.read_text() == before
    assert "not pinned: bmm/triton_tiled float16 does not compile" in said.err
