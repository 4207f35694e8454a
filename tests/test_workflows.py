"""The workflows that a user copies: valid, made of the Makefile's commands only, and
safe to run.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from batchline.bench import commands

yaml = pytest.importorskip("ruamel.yaml")
pytest.importorskip("check_jsonschema")

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (REPOSITORY / "Makefile").read_text()
TARGETS = {
    name
    for names in re.findall(r"^([\w -]+):(?!=)", MAKEFILE, re.MULTILINE)
    for name in names.split()
}
SETTINGS = set(re.findall(r"^(\w+) *\?=", MAKEFILE, re.MULTILINE))
EXAMPLE = REPOSITORY / "tests/own_repository/.github/workflows/batchline.yml"
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
each_of_all = pytest.mark.parametrize(
    "path", [*WORKFLOWS, EXAMPLE], ids=lambda path: path.name
)


def jobs(path):
    return yaml.YAML(typ="safe").load(path.read_text())["jobs"]


def steps(path):
    return [step for job in jobs(path).values() for step in job["steps"]]


def runs(path):
    return [
        line
        for step in steps(path)
        if "run" in step
        for line in step["run"].splitlines()
    ]


def test_there_is_one_workflow_without_a_gpu_and_one_with():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "gpu.yml"]
    assert runs(WORKFLOWS[0]) == [
        "make lint",
        "make test",
        "make test-compiled",
        "make test-commands",
        "make test-slow",
        "make test-page",
        "make codegen",
        "make bench PROFILE=smoke",
    ]
    assert runs(WORKFLOWS[1]) == ['make regress BASE="$BASE" DEVICE=cuda']


@each_of_all
def test_it_is_valid_by_the_schema(path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.github-workflows",
            str(path),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@each_workflow
def test_every_line_that_runs_is_a_make_call_of_known_targets_and_settings(path):
    for line in runs(path):
        command, *words = shlex.split(line)
        assert command == "make" and not set(line) & set(";&|<>`()\\"), line
        settings = [word.partition("=")[0] for word in words if "=" in word]
        targets = [word for word in words if "=" not in word]
        assert (
            targets and not set(targets) - TARGETS and not set(settings) - SETTINGS
        ), line


@each_of_all
def test_no_expression_is_pasted_into_a_shell(path):
    assert not [line for line in runs(path) if "${{" in line]


@each_of_all
def test_it_may_only_read_keeps_no_token_and_ends(path):
    workflow = yaml.YAML(typ="safe").load(path.read_text())
    assert (
        workflow["permissions"] == {"contents": "read"}
        and workflow["concurrency"]["cancel-in-progress"]
    )
    assert "pull_request_target" not in workflow["on"]
    assert all(
        job["timeout-minutes"] <= 90 and "permissions" not in job
        for job in jobs(path).values()
    )
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
            assert (
                not step["uses"].startswith("actions/checkout")
                or step["with"]["persist-credentials"] is False
            )


@each_workflow
def test_what_was_measured_is_uploaded_also_where_the_job_failed(path):
    last = steps(path)[-1]
    assert (
        last["uses"].startswith("actions/upload-artifact@") and last["if"] == "always()"
    )


@each_workflow
def test_no_stranger_s_pull_request_runs_on_a_machine_of_ones_own(path):
    for job in jobs(path).values():
        if "self-hosted" in job["runs-on"]:
            assert job["if"] == (
                "github.event_name != 'pull_request' || "
                "github.event.pull_request.head.repo.full_name == github.repository"
            )


def test_the_base_is_there_to_be_checked_out():
    (job,) = jobs(WORKFLOWS[1]).values()
    assert job["steps"][0]["with"]["fetch-depth"] == 0
    assert job["env"]["BASE"] == "${{ inputs.base || 'HEAD^1' }}"


def test_without_a_gpu_torch_is_the_build_for_cpus():
    for path in WORKFLOWS:
        (job,) = jobs(path).values()
        index = job["env"].get("PIP_EXTRA_INDEX_URL")
        assert index == (
            "https://download.pytorch.org/whl/cpu" if path.name == "ci.yml" else None
        )


def test_a_repository_of_ones_own_calls_commands_that_there_are():
    lines = [line for line in runs(EXAMPLE) if not line.startswith("pip install")]
    names = []
    for line in lines:
        command, *words = shlex.split(line)
        assert command == "batchline"
        names.append(commands.parse(words)[0])
    assert names == ["check", "run", "regress"]
