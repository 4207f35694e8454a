"""Registration and discovery: a file is a variant, and what can't work says why."""

import functools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from batchline import kernels
from batchline.kernels import backends
from batchline.kernels.elements import distinct_bytes
from batchline.kernels.op import (
    Calls,
    Op,
    Problems,
    Reference,
    Scenario,
    Variant,
    Work,
)


@pytest.fixture
def op():
    """An op of its own, so that nothing is left in the real ones."""
    return Op(
        "elsewhere.copy",
        signature="x[B] → x[B]",
        problems=Problems(
            (Scenario("plain", "a plain one", {}),), None, {}, example=("plain", 1)
        ),
        reference=Reference(None, None),
        work=Work(None, None),
        calls=Calls("torch_copy"),
    )


def test_decorator_returns_the_function_unchanged(op):
    def torch_copy(x):
        """A copy."""
        return x.clone()

    assert op.variant(backend="torch")(torch_copy) is torch_copy
    assert op._variants["torch_copy"].function is torch_copy


def test_a_second_variant_of_the_same_name_raises(op):
    def torch_copy(x):
        return x

    op.variant(backend="torch")(torch_copy)
    with pytest.raises(ValueError, match="has a variant named 'torch_copy' already"):
        op.variant(backend="torch")(torch_copy)


@pytest.mark.parametrize(
    "declared, words",
    [
        (
            {"backend": "cupy"},
            "backend 'cupy' is none of torch, triton, numba_cuda, numba_cpu",
        ),
        ({"backend": "torch", "needs": "tpu"}, "needs='tpu' is none of"),
    ],
)
def test_unknown_declarations_raise(op, declared, words):
    with pytest.raises(ValueError, match=words):
        op.variant(**declared)(lambda x: x)


def test_what_is_not_declared_is_supported():
    variant = Variant(kernels.ops["bmm"], torch.bmm, "torch")
    x = torch.ones(1, 2, 2, dtype=torch.float8_e5m2)
    assert variant.why_unsupported(x, x) is None
    assert variant.why_not_here("cpu") is None and variant.why_not_here("cuda") is None


def test_declared_limits_are_reasons():
    bmm = kernels.ops["bmm"]
    doubles = bmm.make_inputs("tiny_16", 2, "float64", "meta")
    assert "float64 is not among its dtypes" in bmm.variants[
        "triton_tiled"
    ].why_unsupported(*doubles)
    assert bmm.variants["numba_cpu_tiled"].why_not_here("cuda") == "needs CPU"
    limited = Variant(
        bmm,
        torch.bmm,
        "torch",
        supports=lambda a, b: "only odd K" if a.shape[2] % 2 == 0 else None,
    )
    assert limited.why_unsupported(*doubles) == "only odd K"


def test_the_op_is_callable_and_runs_what_the_dispatch_chooses():
    from batchline.kernels.bmm import bmm

    a, b = bmm.make_inputs("tiny_16", 2, "float32", "cpu")
    assert torch.equal(
        bmm(a, b), bmm.variants[bmm.dispatch.look_up(a, b).variant](a, b)
    )
    assert next(iter(bmm.variants)) == bmm.baseline


def test_every_variant_tells_its_idea():
    for op in kernels.ops.values():
        for variant in op.variants.values():
            assert len(variant.idea) > 20, variant.id


IN_FORKS = """
import json, os, sys
import torch

outputs = []
for program in json.load(sys.stdin):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.dup2(writing, 1)
        try:
            exec(program, {"__name__": "__main__"})
            sys.stdout.flush()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        output = file.read()
    outputs.append([os.waitstatus_to_exitcode(os.wait()[1]), output])
json.dump(outputs, sys.stdout)
"""


def output_of(program, *all_programs):
    """What a program prints, run in a process that has imported torch and nothing of
    ours.

    Importing torch takes seconds, so one process forks another for each of all
    programs.
    """
    programs = tuple(dict.fromkeys((program, *all_programs)))
    done = _run_in_forks(tuple(sorted(programs)))
    code, output = dict(zip(sorted(programs), done))[program]
    assert code == 0, output
    return output


@functools.cache
def _run_in_forks(programs):
    done = subprocess.run(
        [sys.executable, "-c", IN_FORKS],
        input=json.dumps(programs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


WITHOUT = """
import sys
sys.modules[{absent!r}] = None
from batchline import kernels
variants = [v for op in kernels.ops.values() for v in op.variants.values()]
assert not [v.id for v in variants if v.idea == "(does not load)"]
print(*sorted({{v.why_not_here("cuda") for v in variants if v.why_not_here("cuda")}}), sep="\\n")
"""
COMPILERS = ("triton", "numba", "numba.cuda")


@pytest.mark.commands
@pytest.mark.parametrize("absent", COMPILERS)
def test_variants_import_without_their_compiler(absent):
    """In a process where the module can't be imported every file still loads, and its
    variants say what is missing.
    """
    programs = [WITHOUT.format(absent=name) for name in COMPILERS]
    output = output_of(WITHOUT.format(absent=absent), *programs)
    assert f"{absent} can't be imported" in output


def test_a_broken_file_is_a_variant_that_fails(tmp_path, monkeypatch):
    package = tmp_path / "brokenop"
    package.mkdir()
    (package / "__init__.py").write_text(textwrap.dedent("""
        from batchline.kernels.op import Calls, Op, Problems, Reference, Work
        brokenop = Op(__name__, signature="", problems=Problems((), None, {}, ("", 1)), reference=Reference(None, None),
                      work=Work(None, None), calls=Calls("torch_fine"))
    """))
    (package / "torch_fine.py").write_text(
        "from brokenop import brokenop\n@brokenop.variant(backend='torch')\ndef torch_fine(x): return x\n"
    )
    (package / "torch_typo.py").write_text("def torch_typo(x) return x\n")
    (package / "torch_forgot.py").write_text("def torch_forgot(x): return x\n")
    (package / "torch_misnamed.py").write_text(
        "from brokenop import brokenop\n@brokenop.variant(backend='torch')\ndef another(x): return x\n"
    )
    (package / "_helper.py").write_text(
        "raise RuntimeError('a helper is not imported for its own sake')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from brokenop import brokenop

    assert list(brokenop.variants) == [
        "torch_fine",
        "dispatched",
        "torch_forgot",
        "torch_misnamed",
        "torch_typo",
    ]
    for name, words in (
        ("torch_typo", "SyntaxError"),
        ("torch_forgot", "registers no variant"),
        ("torch_misnamed", "a variant is named after its file"),
    ):
        with pytest.raises(ImportError, match=f"{name}.py does not load: .*{words}"):
            brokenop.variants[name]()


PROGRAM = """
import sys, threading
from batchline.kernels.bmm import bmm
{body}
ours = [name for name in sys.modules if name.startswith("batchline.kernels.bmm.")]
print(sorted(name.rpartition(".")[2] for name in ours if "._" not in name))
"""


IMPORTED = [
    ("'torch_bmm' in bmm.variants, len(bmm.variants)", []),
    ("bmm.variants['torch_einsum']", ["torch_einsum"]),
    (
        "import torch; a = torch.ones(2, 3, 3); bmm.dispatch.table = lambda device: {}; bmm(a, a)",
        ["torch_bmm"],
    ),
    (
        "threads = [threading.Thread(target=bmm.variants.get, args=('torch_bmm',)) for _ in range(8)]\n"
        "for one in threads: one.start()\nfor one in threads: one.join()\n"
        "assert len({id(bmm.variants['torch_bmm'])}) == 1",
        ["torch_bmm"],
    ),
]
AN_OP = (
    "import sys; from batchline import kernels; kernels.ops['bmm']; "
    "print('batchline.kernels.wgrad_stats' in sys.modules, *kernels.ops)"
)
PROGRAMS = [*(PROGRAM.format(body=body) for body, _ in IMPORTED), AN_OP]


@pytest.mark.commands
@pytest.mark.parametrize("body, loaded", IMPORTED)
def test_a_file_is_imported_when_its_variant_is_asked_for(body, loaded):
    output = output_of(PROGRAM.format(body=body), *PROGRAMS)
    assert output.strip() == str(loaded)


@pytest.mark.commands
def test_an_op_is_imported_when_it_is_asked_for():
    folders = sorted(
        path.parent.name
        for path in Path(kernels.__file__).parent.glob("[!_]*/__init__.py")
    )
    assert output_of(AN_OP, *PROGRAMS).split() == ["False", *folders]


def test_stand_in_swallows_decorators():
    absent = backends.Absent("gone")

    @absent.jit
    def bare(x: absent.constexpr):
        return x

    @absent.jit(parallel=True)
    def configured(x):
        return x

    assert bare is absent and configured is absent and absent.types.Array[1:2] is absent


def test_distinct_bytes_counts_a_repeated_element_once():
    x = torch.ones(1, 3, 4)
    assert distinct_bytes(x) == 48 and distinct_bytes(x.expand(7, -1, -1)) == 48
    assert distinct_bytes(x[:, :0]) == 0
