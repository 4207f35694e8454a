"""Runs of several machines side by side: who wins where, in ratios, on one page."""

import re
from dataclasses import replace

import pytest

from batchline.__main__ import main
from batchline.bench.commands import compare as command
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.report import by_device
from batchline.bench.report.render.terminal import COLUMNS
from batchline.bench.store import run_json
from tests.pages import Tree
from tests.runs import save_document
from tests.test_compare import GPU, saved, stored

DEVICES = ({}, {"cpu": "Second CPU"}, {"gpu": GPU, "device_name": "NVIDIA H200"})


def a_run(device=0, **factors):
    """A run on one of DEVICES with a time for each variant: 1 ms times its factor."""
    run = run_json.parse(stored(machine=DEVICES[device]))
    (case,) = (record for record in run.records if record.samples_s)
    facts = {name: {**case.facts, "backend": name.split("_")[0]} for name in factors}
    cases = (
        replace(
            case,
            variant=name,
            samples_s=tuple(factor * one for one in case.samples_s),
            facts=facts[name],
        )
        for name, factor in factors.items()
    )
    return replace(run, records=tuple(cases))


def rows_of(text, title):
    """The lines of a section's table, its header first, each split into cells."""
    part = text.partition(title)[2].split("\n\n")
    lines = next(one for one in part if "---" in one).splitlines()
    return [re.split(" {2,}", line.strip()) for line in lines if "---" not in line]


def test_each_device_has_its_choice_and_its_ratio():
    runs = [
        a_run(0, torch_bmm=1, triton_tile=0.5),
        a_run(1, torch_bmm=2, triton_tile=1),
        a_run(2, torch_bmm=0.25, triton_tile=1),
    ]
    text = by_device.terminal(runs)
    assert text.startswith("Cells of the map that every device has: 1. One variant")
    assert "wins 0 of them on every device, one family 0." in " ".join(text.split())
    header, choice = rows_of(text, "Which variant on which device")[-2:]
    assert header == ["problem", "A", "B", "C"]
    assert choice == ["bmm/tiny_16/float32", *2 * ["triton_tile (B=4)"]] + [
        "torch_bmm (B=4)"
    ]
    assert rows_of(text, "Time over A's, by op") == [
        ["op", "B", "C"],
        ["bmm", "2.00x of 2", "0.71x of 2"],
        ["all", "2.00x", "0.71x"],
    ]
    assert re.findall("Which wins where on ([ABC])", text) == ["A", "B", "C"]
    assert max(map(len, text.splitlines())) <= COLUMNS


def test_where_all_agree_it_says_so():
    runs = [a_run(device, torch_bmm=1, triton_tile=0.5) for device in (0, 1)]
    answer = " ".join(by_device.terminal(runs).split())
    assert "One variant wins 1 of them on every device, one family 1." in answer


def test_variants_of_one_family_are_no_one_variant():
    runs = [
        a_run(0, torch_bmm=1, triton_tile=0.5, triton_other=1),
        a_run(1, torch_bmm=1, triton_tile=1, triton_other=0.5),
    ]
    answer = " ".join(by_device.terminal(runs).split())
    assert "One variant wins 0 of them on every device, one family 1." in answer


def test_a_run_that_has_timed_nothing_has_no_map():
    text = by_device.terminal([a_run(0, torch_bmm=1), a_run(1)])
    assert text.startswith("No problem has a winner on every device at the same batch.")
    assert rows_of(text, "Time over A's, by op")[-1] == ["all", "n/a"]
    assert text.rstrip().endswith("Nothing was timed.")


def test_the_command_takes_three_and_writes_a_page(tmp_path, capsys):
    pytest.importorskip("jinja2")
    folders = [
        str(saved(tmp_path / name, machine=machine))
        for name, machine in zip("abc", DEVICES)
    ]
    page = tmp_path / "all.html"
    assert command.compare_devices(folders, page=page) == ExitCode.CLEAN
    assert capsys.readouterr().out.endswith(f"page: {page}\n")
    tree = Tree(page.read_text(encoding="utf-8"))
    assert tree.text("h2")[:2] == [
        "Which variant on which device",
        "Time over A's, by op",
    ]
    assert tree.text("h2")[-1] == "Which wins where on C, NVIDIA H200"
    # The problems' sections are not on this page: a map's cells are no links.
    assert len(tree.all("td")) > 5
    anchors = {one["attributes"].get("id") for one in tree.elements}
    links = [one["attributes"]["href"] for one in tree.all("a")]
    assert links and all(link.removeprefix("#") in anchors for link in links)


def test_a_run_without_a_time_is_code_3(tmp_path, capsys):
    wrong = stored(machine=DEVICES[1])
    wrong["batchline"]["cases"][0] |= {"status": "wrong", "reason": "on ragged: no"}
    folders = [saved(tmp_path / "a"), tmp_path / "b"]
    folders[1].mkdir()
    save_document(folders[1], wrong)
    assert command.compare_devices(folders) == ExitCode.NOT_MEASURED
    assert "No problem has a winner on every device" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names, said",
    [
        (["a"], "takes from 2 to 26 runs, not 1"),
        (["a"] * 27, "takes from 2 to 26 runs, not 27"),
        (["a", "a"], "named twice"),
        (["a", "again"], "of one machine and toolchain"),
        (["a", "made_up"], "nothing to compare"),
    ],
)
def test_what_can_not_stand_side_by_side_is_a_line(tmp_path, names, said):
    for name, machine in (
        ("a", {}),
        ("again", {}),
        ("made_up", {"cpu": "Another", "stand_in": "its times are made up"}),
    ):
        saved(tmp_path / name, machine=machine)
    with pytest.raises(UsageError, match=said) as refused:
        command.compare_devices([str(tmp_path / name) for name in names])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_without_by_device_there_are_two(names, capsys):
    assert main(["compare", *names]) == ExitCode.USAGE
    assert "say which two" in capsys.readouterr().err
