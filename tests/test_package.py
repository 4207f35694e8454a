"""The name `batchline`: what a wheel has, and how it lives with other packages called
`kernels` and `bench`.
"""

import configparser
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from batchline import places

pytestmark = pytest.mark.commands
REPOSITORY = Path(__file__).resolve().parents[1]
METERED = """
import torch
from batchline import NoiseMeter
model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3))
meter = NoiseMeter(model, reduction="mean")
with meter:
    model(torch.randn(8, 5)).square().sum(1).mean().backward()
print(meter.reading.batch)
"""


def program(code, *paths, python=sys.executable, folder=None):
    """What it prints, with these folders first on sys.path, in this order."""
    before = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    done = subprocess.run(
        [python, "-c", before + code],
        cwd=folder or "/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tracked_files():
    """Those of the packages, as git has them; without git, those that are there."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    paths = map(Path, done.stdout.splitlines())
    if done.returncode:
        paths = (path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*"))
    return [
        path
        for path in paths
        if path.parts[0] in ("batchline", "kernels", "bench")
        and "__pycache__" not in path.parts
        and (REPOSITORY / path).is_file()
    ]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built offline, by the setuptools that is there."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, source)
    for path in tracked_files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / path, source / path)
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    (path,) = folder.glob("*.whl")
    return path


def pip(command, *arguments):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", command),
            *("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel alone, that sees this one's torch: the folder
    of its scripts.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    here = {"base": str(folder), "platbase": str(folder)}
    scripts = Path(sysconfig.get_path("scripts", vars=here))
    site = Path(sysconfig.get_path("purelib", vars=here))
    pip("install", "--target", site, wheel)
    shutil.move(site / "bin" / "batchline", scripts / "batchline")
    script = (scripts / "batchline").read_text().split("\n", 1)
    (scripts / "batchline").write_text(f"#!{scripts / 'python'}\n{script[1]}")
    (site / "others.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    return scripts


@pytest.fixture
def others(tmp_path):
    """Packages of other people: Hugging Face's, and a file as nanoGPT has."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(
        "from .layer import CUDAProperties\n"
    )
    (tmp_path / "kernels" / "layer.py").write_text("class CUDAProperties: ...\n")
    (tmp_path / "bench.py").write_text("theirs = True\n")
    return tmp_path


def test_a_wheel_has_nothing_at_its_top_but_batchline(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"batchline"}
    assert len(tops) == 2


def test_a_wheel_has_every_file_of_the_packages(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        (path if path.parts[0] == "batchline" else "batchline" / path).as_posix()
        for path in tracked_files()
    }
    assert not expected - names
    data = {name for name in expected if not name.endswith(".py")}
    for kind in ("/tuning/", "/dispatch/", "/report/render/page/"):
        assert [name for name in data if kind in name], kind


def test_the_console_script_works_from_any_folder(installed, tmp_path):
    for command in (["batchline"], ["python", "-m", "batchline"]):
        done = subprocess.run(
            [installed / command[0], *command[1:], "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
    done = subprocess.run(
        [installed / "batchline", "list", "--profile", "smoke"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "bmm/torch_bmm/tiny_16/float32/B16" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_goes_into_the_folder_that_it_is_made_in(installed, tmp_path):
    done = subprocess.run(
        [
            *(installed / "batchline", "run", "--profile", "smoke"),
            *("-k", "bmm and torch_bmm and tiny_16 and B16"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("reports/runs/*/run.json"))) == 1


def test_a_wheel_keeps_what_it_measures_in_the_folder_of_the_command(
    installed, tmp_path
):
    out = program(
        """
from batchline import places
from batchline.bench.measure.compiled import pins
from batchline.bench.measure.machine import environment
print(places.IS_CHECKOUT, places.BASELINES, environment.revision()["commit"])
print(pins.load(), pins.why_none())
""",
        python=installed / "python",
        folder=tmp_path,
    )
    first, second = out.splitlines()
    assert first == "False reports/baselines unknown"
    assert second.startswith("{} nothing is pinned for ")


def test_a_wheel_compares_no_revisions(installed, tmp_path):
    done = subprocess.run(
        [installed / "batchline", "regress", "--base", "main"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "in a checkout of it" in done.stderr and "Traceback" not in done.stderr


def test_a_checkout_keeps_it_in_its_own_reports():
    assert places.IS_CHECKOUT and places.CODE == places.IMPORT_ROOT == REPOSITORY
    assert places.BASELINES == REPOSITORY / "reports" / "baselines"


THEIRS = """
import bench, kernels, kernels.layer
from kernels import CUDAProperties
assert bench.theirs and kernels.layer.CUDAProperties is CUDAProperties
"""
OURS = """
import batchline.kernels, batchline.bench.store.records
assert "bmm" in batchline.kernels.ops and batchline.kernels.ops["bmm"].baseline
"""


@pytest.mark.parametrize("code", [THEIRS + OURS, OURS + THEIRS])
@pytest.mark.parametrize("first", ["checkout", "others"])
def test_a_checkout_hides_no_other_package(others, first, code):
    paths = [REPOSITORY, others] if first == "checkout" else [others, REPOSITORY]
    program(code, *paths)


@pytest.mark.parametrize("code", [THEIRS + OURS, OURS + THEIRS])
def test_a_wheel_hides_no_other_package(others, installed, code):
    program(code, others, python=installed / "python")


def test_a_checkouts_folders_are_no_packages_where_there_is_no_other():
    out = program(
        """
import importlib.util, kernels, bench
print(kernels.__file__, hasattr(kernels, "ops"), bench.__file__)
print(importlib.util.find_spec("kernels.bmm"), importlib.util.find_spec("kernels").name)
""",
        REPOSITORY,
    )
    assert out.split("\n")[:2] == ["None False None", "None kernels"]


def test_another_package_that_fails_says_so_itself(others):
    (others / "bench.py").write_text("raise OSError('theirs')\n")
    out = program(
        """
try:
    import bench
except OSError as error:
    print(error, "bench" in sys.modules)
""",
        REPOSITORY,
        others,
    )
    assert out.split() == ["theirs", "False"]


def test_a_run_leaves_a_bench_of_others_alone(others):
    (others / "bench.py").write_text("raise SystemExit('imported')\n")
    program(
        """
from batchline.bench import selection
assert selection.selected(["lion/a", "zebra/b"], "zebra", "") == ["zebra/b"]
assert "bench" not in sys.modules
""",
        others,
        REPOSITORY,
    )


def test_the_meter_imports_nothing_that_training_does_not_need():
    out = program(
        """
import torch
before = set(sys.modules)
from batchline import NoiseMeter
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*new - sys.stdlib_module_names)
""",
        REPOSITORY,
    )
    assert out.split() == ["batchline"]


def test_the_advisor_of_a_loop_imports_no_torch():
    out = program(
        """
import sys
sys.modules["torch"] = None
import batchline
advice = batchline.advise
assert "batchline.bench.commands" not in sys.modules
try:
    advice({8: 1e-3}, [])
except ValueError as error:
    print(type(error).__name__, error)
""",
        REPOSITORY,
    )
    assert out.startswith("UsageError an interval needs the readings of two steps")


def test_the_base_dependencies_are_what_training_takes():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    base = setup["options"]["install_requires"].split("\n")
    assert [line.split()[0] for line in base if line] == ["torch", "numpy", "scipy"]
    others = {
        line.partition(" ")[0].partition("[")[0].replace("-", "_")
        for lines in setup["options.extras_require"].values()
        for line in lines.split("\n")
        if line
    }
    modules = [*others, "sklearn", "numba.cuda"]
    program(
        f"for name in {modules!r}: sys.modules[name] = None\n"
        "sys.modules.pop('batchline')\n" + METERED,
        REPOSITORY,
    )
