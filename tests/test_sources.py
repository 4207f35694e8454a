"""What a variant is made of, and a digest that a comment does not move and code does."""
import importlib
import sys
from pathlib import Path

import pytest

import kernels
from bench.measure import sources

VARIANT = kernels.ops["bmm"].variants["triton_tiled"]


def test_the_files_are_the_variants_own_and_all_that_they_import():
    names = {path.relative_to(Path(kernels.__file__).parents[1]).as_posix() for path in sources.files_of(VARIANT)}
    assert {"kernels/bmm/triton_tiled.py", "kernels/bmm/__init__.py", "kernels/backends.py",
            "kernels/op.py"} <= names
    assert not [name for name in names if name.startswith("kernels/grad_reduce")]


class Made:
    """A package `kernels` in a folder of its own, with one variant."""

    def __init__(self, folder, body):
        self.file = folder / "kernels" / "idea.py"
        self.file.parent.mkdir(parents=True)
        (self.file.parent / "__init__.py").write_text("")
        (self.file.parent / "shared.py").write_text("TILE = 16\n")
        self.file.write_text(f'"""An idea."""\nfrom kernels.shared import TILE\n\n\ndef idea(a):\n{body}')


def digest(monkeypatch, made):
    class Function:
        __module__ = "an_idea"

    module = type(sys)("an_idea")
    module.__file__ = str(made.file)
    monkeypatch.setitem(sys.modules, "an_idea", module)
    importlib.invalidate_caches()
    return sources.launch_digest(type("V", (), {"function": Function, "tunable": None, "backend": "torch"})(), "cpu")


BODY = "    return a + TILE\n"


@pytest.mark.parametrize("body, same", [
    ('    """Says it."""\n    return a + TILE\n', True), ("    return (a +\n            TILE)  # why\n", True),
    ("    return a - TILE\n", False)])
def test_a_digest_follows_the_code_alone(tmp_path, monkeypatch, body, same):
    one, other = Made(tmp_path / "one", BODY), Made(tmp_path / "other", body)
    assert (digest(monkeypatch, one) == digest(monkeypatch, other)) is same


def test_a_digest_follows_what_is_imported(tmp_path, monkeypatch):
    one, other = Made(tmp_path / "one", BODY), Made(tmp_path / "other", BODY)
    (other.file.parent / "shared.py").write_text("TILE = 32\n")
    assert digest(monkeypatch, one) != digest(monkeypatch, other)


def test_a_digest_follows_what_was_tuned_here_for_a_variant_with_configurations(monkeypatch):
    variants = kernels.ops["bmm"].variants
    both = next(variant for variant in variants.values() if variant.tunable), variants["torch_bmm"]
    before = [sources.launch_digest(variant, "cpu") for variant in both]
    monkeypatch.setattr(sources, "stored", lambda path: {"winners": {"triton_tiled": [{"config": {"BLOCK_M": 8}}]}})
    after = [sources.launch_digest(variant, "cpu") for variant in both]
    assert before[0] != after[0] and before[1] == after[1]


def test_what_hands_on_to_another_changes_with_any_of_them(monkeypatch):
    op = kernels.ops["wgrad_stats"]
    both = op.variants["dispatched"], op.variants["torch_materialize"]
    before = [sources.launch_digest(variant, "cpu") for variant in both]
    code_of = sources._code
    monkeypatch.setattr(sources, "_code", lambda path: "else" if path.stem == "torch_ghost" else code_of(path))
    after = [sources.launch_digest(variant, "cpu") for variant in both]
    assert before[0] != after[0] and before[1] == after[1]
