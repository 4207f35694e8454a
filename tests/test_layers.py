"""Data flows one way, kernels → cases → measure → records → report, and only measuring
touches the compilers.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
COMPILERS = {"torch", "triton", "numba"}
MEASURING = (
    "bench/measure",
    "bench/noise/meter",
    "bench/noise/workloads",
    "bench/noise/experiments",
    "bench/noise/coverage.py",
)


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("batchline.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                f"{node.module}.{alias.name}".removeprefix("batchline.")
                for alias in node.names
            )


def _files(folder):
    return sorted(path for path in (REPOSITORY / folder).rglob("*.py"))


@pytest.mark.parametrize(
    "path", _files("kernels"), ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_kernels_import_nothing_of_bench(path):
    assert not [
        name for name in _imports(path) if name.partition(".")[0] in ("bench", "tests")
    ]


@pytest.mark.parametrize(
    "path", _files("bench"), ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_only_measuring_imports_the_compilers(path):
    if not str(path.relative_to(REPOSITORY)).startswith(MEASURING):
        assert not [
            name for name in _imports(path) if name.partition(".")[0] in COMPILERS
        ]


SHOWING = [
    *_files("bench/report"),
    *_files("bench/store"),
    *_files("bench/verdicts"),
    *(
        path
        for path in _files("bench/noise")
        if not str(path.relative_to(REPOSITORY)).startswith(MEASURING)
        and path.name != "__init__.py"
    ),
    *(
        REPOSITORY / f"bench/{name}.py"
        for name in ("case_ids", "statuses", "texts", "units")
    ),
]


@pytest.mark.parametrize("path", SHOWING, ids=lambda path: path.name)
def test_showing_imports_nothing_that_measures(path):
    allowed = (
        "bench.case_ids",
        "bench.console",
        "bench.errors",
        "bench.report",
        "bench.statuses",
        "bench.stopping",
        "bench.store",
        "bench.texts",
        "bench.units",
        "bench.verdicts",
        "bench.noise",
        "kernels.architectures",
    )
    ours = [
        name
        for name in _imports(path)
        if name.partition(".")[0] in ("bench", "kernels", "tests")
    ]
    assert all(name.startswith(allowed) for name in ours), ours
    assert not [
        name for name in ours if name.replace(".", "/").startswith(MEASURING)
    ], ours


def test_the_table_of_architectures_imports_nothing():
    assert set(_imports(REPOSITORY / "kernels/architectures.py")) == {
        "__future__.annotations",
        "dataclasses.dataclass",
        "dataclasses.replace",
    }


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
