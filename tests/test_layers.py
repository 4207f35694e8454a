"""Data flows one way, and this table says what each room of the code may import.

kernels → plan → measure → store → verdicts → report → running → commands; statistics and
the small common modules are under all of them. Whatever is left of the store may import
torch and the compilers, and nothing right of it does: a report renders on any machine.
The noise has a measuring side and a judging side, which stand beside measure and
verdicts.

An import is one wherever it stands: at the top of a module, in a function, or for a
type checker alone.
"""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
COMPILERS = {"torch", "triton", "numba"}
FOLDERS = ("kernels", "bench", "batchline")

# Room → the modules that it is made of; the longest name that fits a module says where
# it belongs.
ROOMS = {
    "the name": ("batchline",),
    "common": (
        "bench.statuses",
        "bench.console",
        "bench.errors",
        "bench.errors",
        "bench.folders",
        "bench.own_repository",
        "bench.git",
        "bench.errors",
        "bench.texts",
        "bench.statuses",
        "bench.stopping",
        "bench.store.files",
        "bench.texts",
        "bench.units",
    ),
    "names of devices": ("kernels.architectures", "kernels.device_names"),
    "statistics": ("bench.stats",),
    "kernels": ("kernels",),
    "the stand-in": ("bench.measure.stand_in",),
    "plan": (
        "bench.cases",
        "bench.catalogue",
        "bench.declared",
        "bench.cases",
        "bench.reader",
        "bench.selection",
    ),
    "machine": ("bench.measure.machine", "bench.measure.doing"),
    "checking": ("bench.measure.checking",),
    "timing": ("bench.measure.timing",),
    "reading": ("bench.measure.reading",),
    "compiled": ("bench.measure.compiled",),
    "ahead": ("bench.measure.ahead",),
    "emulator": ("bench.measure.emulator",),
    "worker": ("bench.measure",),
    "noise, measured": (
        "bench.noise.experiments",
        "bench.noise.integrations",
        "bench.noise.meter",
        "bench.noise.workloads",
    ),
    "store": ("bench.store",),
    "verdicts": ("bench.verdicts",),
    "noise, judged": ("bench.noise",),
    "document": ("bench.report.document", "bench.report.findings"),
    "rendering": ("bench.report.render",),
    "figures": (
        "bench.report.figures",
        "bench.report.map_figure",
        "bench.report.page_plots",
    ),
    "sections": (
        "bench.report.of_commands",
        "bench.report.of_commands",
        "bench.report.over_time",
        "bench.report.regression",
        "bench.report.by_device",
        "bench.report.drawn_intervals",
        "bench.report.sections",
        "bench.report.two_runs",
    ),
    # what lays out more than one document is of the report
    "report": (
        "bench.report",
        "bench.report.render.html",
        "bench.report.render.junit",
    ),
    "running": ("bench",),
    "commands": ("bench.commands",),
    "program": ("batchline.__main__",),
}
_COMMON = ("the name", "common", "names of devices", "statistics")
_PLANNED = (*_COMMON, "kernels", "the stand-in", "plan")
_STORED = (*_COMMON, "store")
_JUDGED = (*_STORED, "verdicts", "noise, judged")
MAY_IMPORT = {
    "the name": (),
    "common": ("the name", "names of devices"),
    "names of devices": (),
    "statistics": ("common", "names of devices"),
    "kernels": ("the name", "names of devices"),
    "the stand-in": ("common", "names of devices", "kernels"),
    "plan": (*_COMMON, "kernels", "the stand-in"),
    "machine": _PLANNED,
    "checking": (*_PLANNED, "machine"),
    "timing": (*_PLANNED, "machine", "checking"),
    "reading": (*_PLANNED, "machine", "checking"),
    "compiled": (*_PLANNED, "machine", "reading"),
    "ahead": (*_PLANNED, "machine", "checking", "reading", "compiled"),
    "emulator": (
        *_PLANNED,
        "machine",
        "checking",
        "reading",
        "compiled",
        "ahead",
    ),
    "worker": (
        *_PLANNED,
        "machine",
        "checking",
        "timing",
        "reading",
        "compiled",
        "ahead",
        "emulator",
    ),
    "noise, measured": (*_PLANNED, "machine", "checking", "timing", "worker"),
    "store": _COMMON,
    "verdicts": _STORED,
    "noise, judged": _STORED,
    "document": _JUDGED,
    "rendering": (*_JUDGED, "document"),
    "figures": (*_JUDGED, "document"),
    "sections": (*_JUDGED, "document", "rendering", "figures"),
    "report": (*_JUDGED, "document", "rendering", "figures", "sections"),
    "running": tuple(room for room in ROOMS if room not in ("commands", "program")),
    "commands": tuple(room for room in ROOMS if room != "program"),
    "program": tuple(room for room in ROOMS),
}
COMPILING = (
    "kernels",
    "the stand-in",
    "machine",
    "checking",
    "timing",
    "reading",
    "compiled",
    "ahead",
    "emulator",
    "worker",
    "noise, measured",
)
# A user's own imports: `from batchline import NoiseMeter, Op`. Each is made when asked
# for.
NAMES_FOR_USERS = ("batchline", "bench.noise")


def _module_of(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _module_of(path): path
    for folder in FOLDERS
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
}


@functools.cache
def _names(path):
    """What a file imports, by the names that it uses: "torch.nn", "bench.units.size"."""
    return tuple(_imported(path))


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _resolved(name):
    """The module of ours that a name is in; None of another library's."""
    name = name.removeprefix("batchline.")
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


@functools.cache
def imports():
    """The modules of ours that each module imports."""
    return {
        module: sorted({_resolved(name) for name in _names(path)} - {None, module})
        for module, path in MODULES.items()
        if module not in NAMES_FOR_USERS
    }


def room_of(module):
    """The room of a module, by the longest name that fits."""
    fits = [
        (len(prefix), room)
        for room, prefixes in ROOMS.items()
        for prefix in prefixes
        if f"{module}.".startswith(f"{prefix}.")
    ]
    return max(fits)[1]


def circles(graph):
    """The strongly connected components of more than one node, each sorted (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(tuple(sorted(component)))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def _refused():
    """Each import against the table's direction: (importing, imported)."""
    for module, its_imports in imports().items():
        room = room_of(module)
        for imported in its_imports:
            if room_of(imported) not in (room, *MAY_IMPORT[room]):
                yield module, imported


def test_the_table_itself_has_no_circle():
    assert MAY_IMPORT.keys() == ROOMS.keys()
    assert circles(MAY_IMPORT) == []


def test_every_import_is_one_that_the_table_allows():
    refused = list(_refused())
    assert refused == [], refused


def test_no_circle_of_modules():
    assert circles(imports()) == []


@pytest.mark.parametrize("module", list(MODULES))
def test_only_measuring_imports_the_compilers(module):
    if room_of(module) not in COMPILING:
        libraries = {name.partition(".")[0] for name in _names(MODULES[module])}
        assert not libraries & COMPILERS


def test_nothing_imports_the_tests():
    assert not [
        (module, name)
        for module, path in MODULES.items()
        for name in _names(path)
        if name.partition(".")[0] == "tests"
    ]


def test_the_table_of_architectures_imports_nothing():
    assert set(_names(MODULES["kernels.architectures"])) == {
        "__future__.annotations",
        "dataclasses.dataclass",
        "dataclasses.replace",
    }


@pytest.mark.parametrize(
    "graph, expected",
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["a"]}, [("a", "b")]),
        ({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}, [("b", "c")]),
    ],
    ids=["a line", "two", "behind a line"],
)
def test_circles_are_found(graph, expected):
    assert circles(graph) == expected


def test_a_module_belongs_where_its_longest_name_says():
    assert room_of("bench.noise.meter.meter") == "noise, measured"
    assert room_of("bench.noise.advisor") == "noise, judged"
    assert room_of("bench.noise_of_something_else") == "running"
    assert room_of("batchline.__main__") == "program"
    assert room_of("kernels.architectures") == "names of devices"
    assert room_of("kernels.bmm") == "kernels"


@pytest.mark.commands
def test_a_report_renders_without_torch(tmp_path):
    from tests.runs import save_document
    from tests.test_records import document

    save_document(tmp_path, document())
    program = f"""
import sys
for name in ("torch", "triton", "numba", "batchline.kernels.op"):
    sys.modules[name] = None
from batchline.__main__ import main
sys.exit(main(["report", {str(tmp_path)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "README.md").exists()


EDGE = {
    f"bench.measure.emulator.{name}"
    for name in (
        "capture",
        "compiled",
        "mutants",
        "on_stand_in",
        "storages",
        "subjects",
    )
}


def test_the_emulator_takes_torch_and_triton_at_its_edge_alone():
    executing = [
        module
        for module in MODULES
        if room_of(module) == "emulator" and module not in EDGE
    ]
    assert len(executing) > 15
    for module in executing:
        libraries = {name.partition(".")[0] for name in _names(MODULES[module])}
        assert not libraries & {"torch", "triton"}, module
        assert not EDGE & set(imports()[module]), module
