"""What there is to measure is read in processes of their own: whatever a file does to
them is a row, and its alone.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from batchline.bench import catalogue
from batchline.bench.cases import PROFILES, along, plan
from batchline.bench.errors import UsageError
from batchline.bench.regress import pairs as regress_pairs
from batchline.bench.regress.pairs import HEAD_SIDE, Entry, Pairs
from batchline.bench.statuses import CRASHED, FAILED, HUNG, MEASURED, WRONG
from batchline.bench.store import run_json
from tests.trees import copy_sources

pytestmark = pytest.mark.commands  # most of them start processes that import torch

DEADLINE_S = 8
VARIANT = '''"""Does something."""
import torch

from batchline.kernels.grad_reduce import grad_reduce

{before}


@grad_reduce.variant({declared})
def {name}(g):
    return g.mean(0)
'''
OF_TORCH = 'backend="torch"'

# What a file does when it is imported → how it ends, and words of the reason.
AT_IMPORT = {
    "exits": ("import sys; sys.exit(3)", FAILED, "does not load: SystemExit: 3"),
    "vanishes": (
        "import os; os._exit(0)",
        CRASHED,
        "ended with exit code 0 (importing it)",
    ),
    "hangs": (
        "while True: pass",
        HUNG,
        f"not done after {DEADLINE_S} s (importing it)",
    ),
    "recurses": ("def again(): again()\nagain()", FAILED, "RecursionError"),
    "segfaults": (
        "import ctypes; ctypes.string_at(0)",
        CRASHED,
        "SIGSEGV (importing it)",
    ),
    "kills_itself": ("import os; os.kill(os.getpid(), 9)", CRASHED, "SIGKILL"),
    "interrupts": ("raise KeyboardInterrupt", FAILED, "KeyboardInterrupt"),
    "sets_a_device": (
        "torch.set_default_device('meta')",
        WRONG,
        "it left torch's stack of function modes changed",
    ),
    "sets_threads": (
        "torch.set_num_threads(7)",
        WRONG,
        "the number of torch's threads changed",
    ),
    "sets_a_variable": (
        "import os; os.environ['OMP_NUM_THREADS'] = '7'",
        WRONG,
        "environment variables changed",
    ),
    "patches_torch": ("torch.bmm = torch.matmul", WRONG, "it replaced torch.bmm"),
    "patches_its_op": (
        "grad_reduce.tolerance = lambda *all: float('inf')",
        WRONG,
        "it replaced grad_reduce.tolerance",
    ),
    "starts_a_thread": (
        "import threading, time\ndef wait(): time.sleep(60)\n"
        "threading.Thread(target=wait, daemon=True).start()",
        WRONG,
        "it left a thread of its own running",
    ),
    "starts_a_child": (
        "import subprocess; subprocess.Popen(['sleep', '60'])",
        WRONG,
        "it left a child process",
    ),
    "closes_files": (
        "import os; os.closerange(3, 99)",
        CRASHED,
        "ended with exit code 0",
    ),
    "writes_to_files": (
        "import os\nfor file in range(3, 99):\n    try: os.write(file, b'[\"done\"]\\nno\\n')\n"
        "    except OSError: pass",
        FAILED,
        "what it declares can't be read",
    ),
    "forges_the_end": (
        "import os, stat\nfolder = f'/proc/{os.getppid()}/fd'\nfor name in os.listdir(folder):\n"
        "    if stat.S_ISFIFO(os.stat(f'{folder}/{name}').st_mode):\n"
        "        os.write(os.open(f'{folder}/{name}', os.O_WRONLY), b'[\"done\", null]\\n')\n"
        "raise ValueError('forged')",
        FAILED,
        "ValueError: forged",
    ),
    "raises_60_mb": ("raise ValueError('x' * 60_000_000)", FAILED, "ValueError: xxx"),
    "raises_unprintably": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd",
        FAILED,
        "Odd",
    ),
    "speaks_to_the_ci": (
        "raise ValueError('::error::no \\x1b[31m \\ud800')",
        FAILED,
        "ValueError",
    ),
}
# Likewise, of what it declares; nothing else is wrong with it.
DECLARED = {
    "misnamed_rung": (
        f'{OF_TORCH}, builds_on="torch_meen"',
        "builds_on='torch_meen' names no other variant of "
        "grad_reduce: did you mean 'torch_mean'?",
    ),
    "on_itself": (
        f'{OF_TORCH}, builds_on="on_itself"',
        "builds_on='on_itself' names no other variant",
    ),
    "one_of_a_circle": (
        f'{OF_TORCH}, builds_on="other_of_a_circle"',
        "builds_on goes in a circle: one_of_a_circle, other_of_a_circle, one_of_a_circle",
    ),
    "other_of_a_circle": (
        f'{OF_TORCH}, builds_on="one_of_a_circle"',
        "builds_on goes in a circle",
    ),
    "misnamed_dtype": (
        f'{OF_TORCH}, dtypes=("float33",)',
        "dtypes: 'float33' is no dtype of torch",
    ),
    "bare_dtype": (f'{OF_TORCH}, dtypes="float32"', "dtypes: 'f' is no dtype of torch"),
    "misnamed_example": (
        f'{OF_TORCH}, example=("layernorm", 4)',
        "example=('layernorm', 4) names no scenario: did you " "mean 'layer_norm'?",
    ),
    "gives_nothing": (f"{OF_TORCH}, gives=0", "gives=0 is no number of outputs"),
    "gives_too_much": (f"{OF_TORCH}, gives=2", "gives=2 is no number of outputs"),
    "misnamed_backend": ('backend="cupy"', "backend 'cupy' is none of torch, triton"),
    "misnamed_device": (f'{OF_TORCH}, needs="tpu"', "needs='tpu' is none of"),
}
SUPPORTS = {
    "supports_hangs": (
        "def supports(g):\n    while True: pass",
        HUNG,
        "(supports on digits at B=1)",
    ),
    "supports_exits": (
        "import os\ndef supports(g): os._exit(0)",
        CRASHED,
        "exit code 0 (supports on digits at B=1)",
    ),
}
STRANGE = (
    "größe",
    "not_utf_8",
    "registers_nothing",
    "rewrites",
    "rewritten",
    "supports_raises",
)  # made by the tree
OPS = {
    "stray": ("", "it makes no Op called stray (a folder that is no op begins with _)"),
    "vanishing": (
        "import os; os._exit(0)",
        "its process ended with exit code 0 (importing it)",
    ),
    "typo": ("def typo(:", "SyntaxError"),
    "without_reference": (
        "from batchline.kernels.op import Calls, Op, Problems, Work\n"
        "without_reference = Op(__name__, signature='', problems=Problems((), len, {}, ('', 1)), "
        "work=Work(len, len), calls=Calls(''))",
        "'reference'",
    ),
    "misnamed_baseline": (
        "from batchline.kernels import grad_reduce as like\n"
        "from batchline.kernels.op import Calls, Op, Problems, Reference, Work\n"
        "misnamed_baseline = Op(__name__, signature='g[B,P] → ḡ[P]', "
        "problems=Problems(like.SCENARIOS, like.inputs, {}, ('digits', 1)), "
        "reference=Reference(like.reference, like.tolerance), "
        "work=Work(like.flops, like.least_bytes), calls=Calls('torch_gone'))",
        "baseline='torch_gone' names no variant",
    ),
}


def write(tree, name, before="", declared=OF_TORCH):
    (tree / "kernels" / "grad_reduce" / f"{name}.py").write_text(
        VARIANT.format(name=name, before=before, declared=declared)
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The sources with one op, of which three variants work and all others are faulty,
    and with half-found ops.
    """
    root = copy_sources(tmp_path_factory.mktemp("sources"), measures_ceilings=False)
    for op in ("bmm", "grad_reduce_multi", "grad_stats", "wgrad_stats"):
        shutil.rmtree(root / "kernels" / op)
    folder = root / "kernels" / "grad_reduce"
    for file in folder.glob("[!_t]*.py"):
        file.unlink()
    for file in folder.glob("triton*.py"):
        file.unlink()
    for name, (before, *_) in {**AT_IMPORT, **SUPPORTS}.items():
        write(
            root,
            name,
            before,
            OF_TORCH if name in AT_IMPORT else f"{OF_TORCH}, supports=supports",
        )
    for name, (declared, _) in DECLARED.items():
        write(root, name, declared=declared)
    write(
        root,
        "supports_raises",
        "def supports(g): raise ValueError('no')",
        f"{OF_TORCH}, supports=supports",
    )
    write(
        root, "honest", "print('x' * 10_000_000)", f'{OF_TORCH}, builds_on="torch_mean"'
    )
    write(root, "größe")
    write(root, "rewritten")
    write(
        root,
        "rewrites",
        "open(__file__.replace('rewrites', 'rewritten'), 'a').write('# and more\\n')",
    )
    (folder / "with_surrogate.py").write_text(
        VARIANT.format(name="with_surrogate", before="", declared=OF_TORCH).replace(
            "Does something.", "An \\ud800 idea."
        )
    )
    (folder / "not_utf_8.py").write_bytes(b"'''\xff'''\n")
    (folder / "registers_nothing.py").write_text("def registers_nothing(g): return g\n")
    for name, (text, _) in OPS.items():
        (root / "kernels" / name).mkdir()
        (root / "kernels" / name / "__init__.py").write_text(text)
    (root / "kernels" / "no_package").mkdir()
    (root / "kernels" / "no_package" / "idea.py").write_text("")
    (root / "kernels" / "_no_op").mkdir()
    (root / "kernels" / "_no_op" / "__init__.py").write_text("1 / 0")
    return root


@pytest.fixture(scope="module")
def found(tree):
    """What there is to measure, as a run plans it."""
    return plan("smoke", "cpu", DEADLINE_S, tree)


@pytest.mark.parametrize(
    "name, status, words",
    [(name, *rest) for name, (_, *rest) in {**AT_IMPORT, **SUPPORTS}.items()]
    + [
        ("not_utf_8", FAILED, "does not load: SyntaxError"),
        ("registers_nothing", FAILED, "it registers no variant"),
    ],
)
def test_a_faulty_file_is_a_broken_variant(found, name, status, words):
    variant = found.ops["grad_reduce"].variants[name]
    assert variant.broken is not None and variant.broken[0] == status, variant.broken
    reason = variant.broken[1]
    assert reason.startswith(f"kernels/grad_reduce/{name}.py: ") and words in reason
    assert len(reason) < 700 and reason.isprintable() and "::error::" not in reason


@pytest.mark.parametrize(
    "name, words", [(name, words) for name, (_, words) in DECLARED.items()]
)
def test_a_declaration_that_names_nothing_is_refused_by_its_file_and_field(
    found, name, words
):
    status, reason = found.ops["grad_reduce"].variants[name].broken
    assert (
        status == FAILED
        and reason.startswith(f"kernels/grad_reduce/{name}.py: ")
        and words in reason
    )


def test_the_others_are_read_all_the_same(found):
    op = found.ops["grad_reduce"]
    whole = [name for name, variant in op.variants.items() if variant.broken is None]
    assert whole == [
        "torch_mean",
        "dispatched",
        "honest",
        "rewrites",
        "supports_raises",
        "with_surrogate",
    ]
    assert {len(op.refusals[name]) for name in whole} == {
        len(op.problems)
    } and op.refusals["honest"][0] is None
    assert (
        op.variants["honest"].below == "grad_reduce/torch_mean"
        and op.variants["torch_mean"].is_baseline
    )
    assert (
        op.variants["with_surrogate"].idea.isprintable()
        and op.variants["honest"].idea == "Does something."
    )
    assert {tuple(refusal) for refusal in op.refusals["supports_raises"]} == {
        (FAILED, "supports raised ValueError: no")
    }


def test_a_file_that_another_one_changes_while_they_are_read_is_not_measured(found):
    line = "it changed while the ops were read, by hand or by another file"
    assert found.ops["grad_reduce"].variants["rewritten"].broken == (
        FAILED,
        f"kernels/grad_reduce/rewritten.py: {line}",
    )
    assert {one.file: one.reason for one in found.broken}[
        "kernels/grad_reduce/rewritten.py"
    ] == line


def test_what_is_no_op_is_a_line_and_the_others_go_on(found):
    assert list(found.ops) == ["grad_reduce"]
    lines = {one.file: one.reason for one in found.broken}
    for name, (_, words) in OPS.items():
        assert words in lines[f"kernels/{name}/__init__.py"]
    assert lines["kernels/no_package"] == "it has no __init__.py"
    assert "only ASCII letters" in lines["kernels/grad_reduce/größe.py"] and not any(
        "_no_op" in file for file in lines
    )


def test_a_tree_without_a_contract_is_one_line(tree, tmp_path):
    shutil.copytree(tree / "kernels", tmp_path / "kernels")
    (tmp_path / "kernels" / "op.py").write_text("def typo(:\n")
    with pytest.raises(ValueError, match="the kernels can't be read: SyntaxError"):
        catalogue.read(tree=tmp_path)


@pytest.mark.parametrize(
    "line, words",
    [
        ('["done", {"op": 0, "variant": 1}]', "0 ops and 0 variants have arrived"),
        ('["done", null]', "0 ops and 0 variants have arrived"),
        ('["done"]', "a line that is no answer"),
        ('{"done": 0, "or": 1}', "a line that is no answer"),
        ('["do', "a line that is no answer"),
        ("[" * 100_000, "a line that is no answer"),
        ("\xff", "a line that is no answer"),
        ("1", "a line that is no answer"),
    ],
)
def test_what_ends_early_or_is_no_answer_is_an_error(
    tmp_path, monkeypatch, line, words
):
    (tmp_path / "answers").write_text(f'["ready", null]\n{line}\n', encoding="latin-1")
    with open(tmp_path / "answers", "rb") as answers:
        process = SimpleNamespace(stdin=io.BytesIO(), stdout=answers)
        monkeypatch.setattr(
            catalogue.reader, "process", lambda tree: contextlib.nullcontext(process)
        )
        with pytest.raises(UsageError, match=f"the kernels can't be read: .*{words}"):
            catalogue.read(tree=tmp_path)


def test_a_plan_has_a_row_for_each_case_of_what_is_broken(found):
    refusals = {case.refusal for case in found.cases if case.variant.name == "exits"}
    problems = {case.problem for case in found.cases}
    assert len(refusals) == 1 and sum(
        case.variant.name == "exits" for case in found.cases
    ) == len(problems)


def test_what_is_broken_at_head_ends_there_and_is_not_measured(
    tree, found, monkeypatch
):
    monkeypatch.setattr(regress_pairs, "plan", lambda *_, **__: found)
    monkeypatch.setattr(
        Pairs, "_process", lambda self, side: pytest.fail("a worker was started")
    )
    pairs = Pairs("cpu", PROFILES["smoke"], (tree, tree))
    base, head = pairs.plans()
    case = "grad_reduce/vanishes/digits/float32/B1"
    assert (
        base[case] == head[case]
        and head[case]["refusal"] is None
        and pairs.baselines == {"grad_reduce": "torch_mean"}
    )
    codes = {
        name: {one["code"] for case, one in head.items() if f"/{name}/" in case}
        for name in ("honest", "exits")
    }
    assert [len(of_one) for of_one in codes.values()] == [1, 1] and codes[
        "honest"
    ] != codes["exits"]
    monkeypatch.setattr(Pairs, "_process", lambda self, side: open(os.devnull))
    assert pairs.first(HEAD_SIDE, [Entry(case, case)])[case].status == CRASHED
    assert not [name for name in sys.modules if name.endswith((".vanishes", ".honest"))]


SPY = """
import os
with open(os.environ["SPY"], "a") as file:
    file.write(f"{os.getpid()}\\n")
"""


@pytest.fixture(scope="module")
def watched(tree, tmp_path_factory):
    """The sources with one broken file, in which each file of the op writes down which
    process has imported it.
    """
    root = tmp_path_factory.mktemp("watched")
    for name in ("batchline", "kernels", "bench"):
        shutil.copytree(tree / name, root / name)
    folder = root / "kernels" / "grad_reduce"
    for name in (*AT_IMPORT, *DECLARED, *SUPPORTS, *STRANGE):
        (folder / f"{name}.py").unlink()
    for name in (*OPS, "no_package"):
        shutil.rmtree(root / "kernels" / name)
    for file in folder.glob("*.py"):
        text = file.read_text()
        file.write_text(
            text.replace("import annotations\n", f"import annotations\n{SPY}", 1)
            if "import annotations" in text
            else text + SPY
        )
    write(root, "vanishes", "import os; os._exit(0)")
    return root


@pytest.fixture
def one_core():
    """This process and those that it starts have one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("is_one_broken, processes", [(False, 2), (True, 7)])
def test_variants_share_a_process_unless_one_of_them_is_broken(
    watched, tmp_path, monkeypatch, one_core, is_one_broken, processes
):
    """One imports the op, the other the variants; then each of the five its own."""
    for name in ("batchline", "kernels", "bench"):
        shutil.copytree(watched / name, tmp_path / name)
    if not is_one_broken:
        (tmp_path / "kernels" / "grad_reduce" / "vanishes.py").unlink()
    monkeypatch.setenv("SPY", str(tmp_path / "imported"))
    op = catalogue.read(tree=tmp_path).ops["grad_reduce"]
    whole = [name for name, one in op.variants.items() if one.broken is None]
    assert whole == ["torch_mean", "dispatched", "honest", "with_surrogate"]
    imported = (tmp_path / "imported").read_text().split()
    assert len(set(imported)) == processes


@pytest.fixture
def bench(watched, tmp_path):
    """Runs a command; (what it said, the runs that it has stored). None of its own
    imports may be a file of an op.
    """

    def run(*arguments):
        spy = tmp_path / "imported"
        with subprocess.Popen(
            [sys.executable, "-m", "batchline", *arguments],
            cwd=watched,
            text=True,
            env=os.environ | {"SPY": str(spy)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            out, err = process.communicate(timeout=600)
        assert "Traceback" not in err
        imported = set(spy.read_text().split())
        assert imported and str(process.pid) not in imported
        return process.returncode, out, err

    return run


@pytest.mark.slow
def test_a_run_imports_no_file_says_once_what_is_broken_and_measures_the_baseline_along(
    bench, tmp_path
):
    code, out, err = bench(
        "run",
        "--profile",
        "smoke",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "runs"),
        "--history",
        str(tmp_path / "history"),
        "-k",
        "layer_norm and (honest or vanishes)",
    )
    (folder,) = (tmp_path / "runs").iterdir()
    run = run_json.load(folder)
    statuses = {}
    for record in run.records:
        statuses.setdefault(record.variant, set()).add(record.status)
    assert code == 1 and statuses == {
        "torch_mean": {MEASURED},
        "honest": {MEASURED},
        "vanishes": {CRASHED},
    }, err
    told = [line for line in err.splitlines() if "vanishes" in line]
    assert told == [
        "grad_reduce/vanishes, in all its cases: crashed: kernels/grad_reduce/vanishes.py: its process "
        "ended with exit code 0 (importing it)"
    ]
    assert list(run.along) == [
        f"grad_reduce/torch_mean/layer_norm/float32/B{batch}" for batch in (1, 3, 16)
    ]
    assert "3 of them along, to compare with: grad_reduce/torch_mean" in " ".join(
        out.split()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, code",
    [
        (("list", "--profile", "smoke", "--device", "cpu"), 1),
        (("tune", "--profile", "smoke", "--device", "cpu"), 3),
        (
            (
                "dispatch",
                "--profile",
                "smoke",
                "--device",
                "cpu",
                "-k",
                "layer_norm/float32/B1",
            ),
            1,
        ),
        (("profile", "grad_reduce/honest/layer_norm/float32/B1", "--device", "cpu"), 3),
    ],
)
def test_a_command_imports_no_file_of_an_op(bench, arguments, code):
    returned, out, err = bench(*arguments)
    assert returned == code, err
    assert sum("vanishes.py" in line for line in err.splitlines()) == (
        0 if arguments[0] == "profile" else 1
    )


def test_a_choice_lacks_its_baseline_and_the_rung_below_where_they_can_be_timed(found):
    problem = "digits/float32/B3"
    assert along(found, {f"grad_reduce/honest/{problem}"}) == {
        f"grad_reduce/torch_mean/{problem}"
    }
    assert along(found, {f"grad_reduce/with_surrogate/{problem}"}) == {
        f"grad_reduce/torch_mean/{problem}"
    }
    assert along(found, {f"grad_reduce/torch_mean/{problem}"}) == set()
    assert (
        along(found, {f"grad_reduce/vanishes/{problem}"}) == set()
    )  # it has no time to compare
