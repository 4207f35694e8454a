"""What decides a variant's launch: files, imported or read, beside it or far off; and
what does not.
"""

import os
from pathlib import Path

import pytest

from batchline import kernels
from batchline.bench.measure.reading import sources
from batchline.kernels.backends import DISPATCH

VARIANT = kernels.ops["bmm"].variants["triton_tiled"]
TREE = Path(kernels.__file__).parents[1]
IDEA = '''"""An idea."""
from batchline.kernels.shared import TILE


def idea(a):
    return a + TILE
'''


def forget():
    """Files are read once in a process, and tests change them."""
    for cached in (sources.read, sources._decided_by, sources._hash):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def read_anew():
    yield
    forget()


def names(variant):
    return {path.relative_to(TREE).as_posix() for path in sources.files_of(variant)}


def test_the_files_are_the_variants_own_and_all_that_they_import():
    found = names(VARIANT)
    assert {
        "kernels/bmm/triton_tiled.py",
        "kernels/bmm/__init__.py",
        "kernels/backends.py",
        "kernels/op.py",
    } <= found
    assert not [name for name in found if name.startswith("kernels/grad_reduce")]


def test_no_variant_of_bmm_has_another_variants_file():
    variants = kernels.ops["bmm"].variants
    for variant in [one for one in variants.values() if one.backend != DISPATCH]:
        assert names(variant) & {f"kernels/bmm/{name}.py" for name in variants} <= {
            f"kernels/bmm/{variant.name}.py"
        }


def test_a_package_that_is_imported_on_the_way_is_one_of_the_files():
    assert "kernels/grad_stats/__init__.py" in names(
        kernels.ops["wgrad_stats"].variants["triton_fused"]
    )


class Made:
    """A tree with a package `kernels`, in it the op `op`, and a variant `idea` of it."""

    def __init__(self, folder, idea=IDEA, files={}):
        self.folder = folder
        usual = {
            "kernels/__init__.py": "",
            "kernels/shared.py": "TILE = 16\n",
            "kernels/op.py": "",
            "kernels/op/__init__.py": "",
            "kernels/op/idea.py": idea,
            "kernels/op/other_variant.py": "OTHER = 1\n",
            "kernels/op/_helper.py": "HELP = 1\n",
        }
        for name, text in (usual | files).items():
            self.write(name, text)

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def digest(self, module="idea", backend="torch"):
        forget()
        op = self.folder / "kernels" / "op"
        variant = type(
            "V",
            (),
            {
                "name": "idea",
                "folder": op,
                "file": op / f"{module}.py",
                "backend": backend,
                "tunable": None,
            },
        )
        return sources.launch_digest(variant, "cpu")


def changes(tmp_path, idea, files, name, text):
    """Whether the digest of a variant is another one once a file has another text."""
    made = Made(tmp_path / "tree", idea, files)
    before = made.digest()
    made.write(name, text)
    return made.digest() != before


@pytest.mark.parametrize(
    "body, same",
    [
        ('    """Says it."""\n    return a + TILE\n', True),
        ("    return (a +\n            TILE)  # why\n", True),
        ("    return a - TILE\n", False),
    ],
)
def test_a_digest_follows_the_code_alone(tmp_path, body, same):
    other = IDEA.replace("    return a + TILE\n", body)
    assert changes(tmp_path, IDEA, {}, "kernels/op/idea.py", other) is not same


def test_the_same_tree_elsewhere_has_the_same_digest(tmp_path):
    files = {"kernels/op/idea.cu": "__global__", "helper/__init__.py": ""}
    one, other = (Made(tmp_path / name, files=files) for name in ("one", "other"))
    assert one.digest() == other.digest()


def reading(expression):
    return f"from pathlib import Path\nimport importlib\n\n\ndef idea(a):\n    return {expression}\n"


@pytest.mark.parametrize(
    "idea, name",
    [
        (IDEA, "kernels/shared.py"),
        ("from batchline.kernels import shared\n", "kernels/shared.py"),
        ("from ..shared import TILE\n", "kernels/shared.py"),
        ("from . import _helper\n", "kernels/op/_helper.py"),
        ("from ._helper import HELP\n", "kernels/op/_helper.py"),
        (
            "import _helper\n",
            "kernels/op/_helper.py",
        ),  # with its folder put into sys.path
        ("from batchline.kernels.op._helper import HELP\n", "kernels/op/__init__.py"),
        (
            "from batchline.kernels.op.other_variant import OTHER\n",
            "kernels/op/other_variant.py",
        ),
        ("import helper.fast\n", "helper/fast.py"),
        ("import helper.fast\n", "helper/__init__.py"),
        ("import helper.fast\n", "helper/kernel.cu"),  # beside what is imported
        (
            "from tests.helper import fast\n",
            "tests/helper/fast.py",
        ),  # a folder that is no package
        (reading("importlib.import_module('helper.fast')"), "helper/fast.py"),
        (
            reading("importlib.import_module('._helper', __package__)"),
            "kernels/op/_helper.py",
        ),
        (reading("importlib.import_module('_helper')"), "kernels/op/_helper.py"),
        (reading("__import__('helper.fast')"), "helper/fast.py"),
        (reading("pick({'a': 'helper.fast'}['a'])"), "helper/fast.py"),
        (
            reading("importlib.import_module('batchline.kernels.op._' + a)"),
            "kernels/op/_helper.py",
        ),
        (reading("exec(a)"), "kernels/op/_helper.py"),
        (
            reading("runpy.run_path(Path(__file__).parent / ('_' + a))"),
            "kernels/op/_helper.py",
        ),
        (reading("exec(open('_helper.py').read(), {})"), "kernels/op/_helper.py"),
        (IDEA, "kernels/op/idea.cu"),
        (IDEA, "kernels/op/idea.ptx"),
        (IDEA, "kernels/op/fast.so"),
        (IDEA, "kernels/op/settings.json"),
        (IDEA, "kernels/op/data/a/settings"),
        (IDEA, "kernels/op/scripts/run.py"),
        (IDEA, "kernels/settings.json"),  # beside what it imports
        (
            reading(
                "(Path(__file__).parents[2] / 'assets' / 'table.bin').read_bytes()"
            ),
            "assets/table.bin",
        ),
        (
            reading("(Path(__file__).parents[2] / 'assets' / a).read_bytes()"),
            "assets/deep/other.bin",
        ),
        (reading("open('assets/table.bin')"), "assets/table.bin"),
        (reading("open(f'assets/{a}.py')"), "assets/make.py"),
        (reading("open('../../assets/table.bin')"), "assets/table.bin"),
        (
            reading("json.load(open(Path(__file__).parent / 'tuning' / a))"),
            "kernels/op/tuning/some.json",
        ),
    ],
)
def test_a_digest_follows_whatever_is_imported_or_may_be_read(tmp_path, idea, name):
    files = {
        name: "A = 1\n",
        "helper/__init__.py": "B = 1\n",
        "helper/fast.py": "C = 1\n",
    } | {name: "A = 1\n"}
    assert changes(tmp_path, idea, files, name, "A = 2\n")


@pytest.mark.parametrize(
    "idea, name",
    [
        (IDEA, "kernels/op/other_variant.py"),
        (IDEA, "kernels/op/_helper.py"),
        (IDEA, "kernels/another.py"),
        (IDEA, "kernels/op2/__init__.py"),
        (IDEA, "kernels/op2/idea.cu"),
        (IDEA, "kernels/op/tuning/some.json"),
        (IDEA, "kernels/op/dispatch/some.json"),
        (IDEA, "kernels/op/__pycache__/idea.nbi"),
        (IDEA, "kernels/op/.idea.py.swp"),
        (IDEA, "kernels/op/idea.py~"),
        (IDEA, "README.md"),
        (IDEA, "reports/runs/a/run.json"),
        (IDEA, "tests/test_idea.py"),
        (IDEA, "helper/fast.py"),
        (
            IDEA + "NAME = 'other_variant'\n",
            "kernels/op/other_variant.py",
        ),  # as builds_on= has it
        (IDEA + "torch.compile(model.eval())(a)\n", "kernels/op/other_variant.py"),
    ],
)
def test_a_digest_does_not_follow_what_another_variant_is_made_of(tmp_path, idea, name):
    files = {"kernels/op2/__init__.py": "", name: "A = 1\n"}
    assert not changes(tmp_path, idea, files, name, "A = 2\n")


def test_a_file_that_appears_beside_it_changes_the_digest(tmp_path):
    made = Made(tmp_path)
    before = made.digest()
    made.write("kernels/op/fast.so", "")
    assert made.digest() != before


@pytest.mark.parametrize(
    "idea",
    [
        '"""__global__ void f() { slow(); }"""\n\n\ndef idea(a):\n    return compiled(__doc__)(a)\n',
        'def source():\n    """slow();"""\n\n\ndef idea(a):\n    return compiled(source.__doc__)(a)\n',
        "import inspect\n\n\ndef idea(a):\n    return compiled(inspect.getsource(idea))(a)  # slow();\n",
    ],
)
def test_a_docstring_or_comment_that_is_data_counts(tmp_path, idea):
    assert changes(
        tmp_path, idea, {}, "kernels/op/idea.py", idea.replace("slow", "fast")
    )


def test_what_does_not_load_is_its_own_file_and_what_can_not_be_parsed_its_text(
    tmp_path,
):
    made = Made(tmp_path, "def idea(:\n")
    before = made.digest(
        module="other_variant"
    )  # where the function that stands for it is
    made.write("kernels/op/idea.py", "def idea(::\n")
    assert made.digest(module="other_variant") != before


def test_links_pipes_and_what_can_not_be_read_end(tmp_path):
    made = Made(tmp_path / "tree")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "data").write_text("1")
    before = made.digest()
    (made.folder / "kernels" / "op" / "loop").symlink_to(made.folder / "kernels" / "op")
    (made.folder / "kernels" / "op" / "dangling").symlink_to("nowhere")
    (made.folder / "kernels" / "op" / "out").symlink_to(tmp_path / "outside")
    os.mkfifo(made.folder / "kernels" / "op" / "pipe")
    linked = made.digest()
    (tmp_path / "outside" / "data").write_text("2")
    assert len({before, linked, made.digest()}) == 3


@pytest.mark.parametrize(
    "name, changed",
    [("TRITON_DEFAULT_FP_FUSION", True), ("NUMBA_OPT", True), ("HOME", False)],
)
def test_a_digest_follows_the_variables_that_change_what_is_compiled(
    tmp_path, monkeypatch, name, changed
):
    """Another variant may set one where it is imported."""
    made = Made(tmp_path)
    before = made.digest()
    monkeypatch.setenv(name, "1")
    assert (made.digest() != before) is changed


def test_a_variable_that_names_the_tree_does_not_tell_two_trees_apart(
    tmp_path, monkeypatch
):
    digests = set()
    for name in ("one", "two"):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / name / "cache"))
        digests.add(Made(tmp_path / name).digest())
    assert len(digests) == 1


def test_a_digest_follows_the_versions_of_the_compilers(tmp_path, monkeypatch):
    made = Made(tmp_path)
    before = made.digest()
    monkeypatch.setattr(
        sources.environment, "versions", lambda names: dict.fromkeys(names, "9")
    )
    assert made.digest() != before


def test_a_digest_follows_what_was_tuned_here_for_a_variant_with_configurations(
    monkeypatch,
):
    variants = kernels.ops["bmm"].variants
    both = (
        next(variant for variant in variants.values() if variant.tunable),
        variants["torch_bmm"],
    )
    before = [sources.launch_digest(variant, "cpu") for variant in both]
    monkeypatch.setattr(
        sources,
        "stored",
        lambda path: {"winners": {"triton_tiled": [{"config": {"BLOCK_M": 8}}]}},
    )
    after = [sources.launch_digest(variant, "cpu") for variant in both]
    assert before[0] != after[0] and before[1] == after[1]


def test_what_hands_on_to_another_changes_with_any_of_them(tmp_path):
    made = Made(
        tmp_path,
        files={
            "kernels/op/other_variant.py": "from batchline.kernels import another\n",
            "kernels/another.py": "A = 1\n",
        },
    )
    for name in ("kernels/op/other_variant.py", "kernels/another.py"):
        before = made.digest("../op", DISPATCH)
        made.write(name, "A = 2\nfrom batchline.kernels import another\n")
        assert made.digest("../op", DISPATCH) != before
    dispatched = next(
        one for one in kernels.ops["bmm"].variants.values() if one.backend == DISPATCH
    )
    assert {"kernels/bmm/torch_bmm.py", "kernels/bmm/triton_tiled.py"} <= names(
        dispatched
    )
