"""Two stored runs side by side: what differs is shown, other machines are refused, and
nothing is a verdict.
"""

import json
import subprocess
from dataclasses import replace

import pytest

from batchline.__main__ import main
from batchline.bench.commands import compare as command
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.report.render.terminal import COLUMNS
from batchline.bench.report.two_runs import document as page_document
from batchline.bench.report.two_runs import terminal
from batchline.bench.store import run_json
from batchline.bench.verdicts.across_runs import compare
from tests.runs import save_document
from tests.test_records import document
from tests.pages import Tree

CASE = "bmm/torch_bmm/tiny_16/float32/B4"
GPU = {"name": "NVIDIA H200", "memory_bytes": 150 * 2**30, "driver": "580.82.07"}


def stored(
    factor=1.0,
    machine=None,
    facts=None,
    commit="a" * 40,
    started="2026-01-02T03:04:05+00:00",
    clock="host",
):
    made = document()
    made["machine_info"]["batchline"] |= {
        "revision": {"commit": commit, "dirty": False}
    } | (machine or {})
    made["batchline"]["started"] = started
    bench = made["benchmarks"][0]
    bench["stats"]["data"] = [factor * 1e-3 * (1 + 0.001 * (i % 7)) for i in range(50)]
    bench["extra_info"] |= {"clock": clock} | (facts or {})
    return made


def saved(folder, **changes):
    folder.mkdir(parents=True)
    save_document(folder, stored(**changes))
    return folder


def shown(capsys, *args, **options):
    assert command.compare(*args, **options) == 0
    return capsys.readouterr().out


def test_the_answer_comes_first_then_the_case(tmp_path, capsys):
    a = saved(tmp_path / "a")
    b = saved(
        tmp_path / "b",
        factor=1.2,
        facts={"peak_bytes": 8192, "error_of_tolerance": 0.25},
    )
    output = shown(capsys, a, str(b))
    assert " ".join(output.split()).startswith(
        f"1 of 1 cases differ by more than their intervals and 1% or 1 µs (B slower in 1, faster in 0): {CASE} +20.0%"
    )
    assert "`make regress` judges" in output
    row = next(line for line in output.splitlines() if line.startswith("4 "))
    assert (
        "1.00 ms → 1.20 ms" in row
        and "+20.0 [" in row
        and "4.00 KiB → 8.00 KiB" in row
        and "10.0% → 25.0%" in row
    )
    assert "other machine" not in output


def test_the_interval_holds_the_change_and_widens_with_the_noise():
    (pair,) = compare(run_json.parse(stored()), run_json.parse(stored(1.05))).pairs
    assert pair.low < pair.change < pair.high and pair.change == pytest.approx(0.05)
    noisy = stored(1.05)
    noisy["benchmarks"][0]["stats"]["data"] = [
        1.05e-3 * (1 + 0.1 * (i % 9 - 4)) for i in range(50)
    ]
    (wide,) = compare(run_json.parse(stored()), run_json.parse(noisy)).pairs
    assert (
        wide.high - wide.low > 3 * (pair.high - pair.low)
        and pair.moved
        and not wide.moved
    )


def test_without_a_case_that_both_have_timed_nothing_is_compared_and_the_code_is_3(
    tmp_path, capsys
):
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b", clock="device_hot")
    assert command.compare(a, b) == ExitCode.NOT_MEASURED == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "timed in both runs by one clock, so there is nothing to compare" in said
    assert "timed in one run only, or by another clock" in said


def test_a_run_that_was_stopped_says_so(tmp_path, capsys):
    a, made = saved(tmp_path / "a"), stored()
    made["batchline"]["partial"] = True
    (tmp_path / "b").mkdir()
    save_document(tmp_path / "b", made)
    lines = shown(capsys, a, tmp_path / "b").splitlines()
    assert [line[:2] for line in lines if "stopped before its end" in line] == ["B:"]


def test_a_change_within_one_percent_is_not_marked():
    (pair,) = compare(run_json.parse(stored()), run_json.parse(stored(1.005))).pairs
    assert pair.low > 0 and not pair.moved


def test_a_ratio_far_below_one_is_not_nothing():
    fast = stored(0.0012, machine={"cpu": "Another"})
    text = terminal(compare(run_json.parse(stored()), run_json.parse(fast)))
    assert text.startswith("B takes 0.0012x of A's time") and "0.00x" not in text


def test_machines_without_a_case_in_both_have_no_empty_table():
    other = stored(clock="device_hot", machine={"cpu": "Another"})
    text = terminal(compare(run_json.parse(stored()), run_json.parse(other)))
    said = text.partition("B's time over A's, by op\n")[2].splitlines()
    assert said[0] == "No op has a case that both have timed by one clock."


def test_few_samples_have_no_interval():
    few = stored()
    few["benchmarks"][0]["stats"]["data"] = [1e-3, 2e-3]
    comparison = compare(run_json.parse(few), run_json.parse(stored(9)))
    assert not comparison.pairs[0].moved and "too few samples" in terminal(comparison)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"cpu": "Another CPU"}, "CPU Some CPU → Another CPU"),
        ({"versions": {"torch": "2.14.0"}}, "torch 2.13.0 → 2.14.0"),
        (
            {"versions": {"torch": "2.13.0", "numba-cuda": "0.31"}},
            "numba-cuda unknown → 0.31",
        ),
        ({"gpu": GPU}, "GPU none → NVIDIA H200"),
        ({"cpu_threads_of_torch": 16}, "threads 2 → 16"),
    ],
)
def test_another_machine_or_toolchain_is_refused_with_what_differs(
    tmp_path, change, named
):
    with pytest.raises(UsageError) as refused:
        command.compare(saved(tmp_path / "a"), saved(tmp_path / "b", machine=change))
    assert named in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "other, same",
    [
        ({"driver": "580.95.05"}, True),
        ({"driver": "590.1"}, False),
        ({"memory_bytes": 80 * 2**30}, False),
        ({"memory_bytes": 150 * 2**30 - 2**20}, True),
        ({"name": "NVIDIA H100"}, False),
    ],
)
def test_a_gpu_is_its_model_memory_and_major_driver(other, same):
    sides = [run_json.parse(stored(machine={"gpu": gpu})) for gpu in (GPU, GPU | other)]
    assert (not compare(*sides).other_machine) is same


def test_forced_it_is_said_once_that_the_machine_is_another(tmp_path, capsys):
    """And the two are compared in ratios, by op, with the map of each."""
    output = shown(
        capsys,
        saved(tmp_path / "a"),
        saved(tmp_path / "b", factor=60, machine={"cpu": "Another CPU"}),
        force=True,
    )
    assert output.count("other machine: ") == 1 and "hardware" not in output
    assert output.startswith("B takes 60.0x of A's time, in the geometric mean of 1 ")
    lines = [line.split() for line in output.splitlines()]
    assert ["bmm", "1", "60.0x", "60.0x", "60.0x"] in lines
    assert "60.0x [" in output and "+" not in output
    for side in "AB":
        assert f"Which wins where on {side}, " in output


def test_ratios_have_the_geometric_mean_of_each_op():
    def run(*factors):
        one = run_json.parse(stored())
        (case,) = (record for record in one.records if record.samples_s)
        cases = (
            replace(case, batch=batch, samples_s=(factor, factor, factor))
            for batch, factor in enumerate(factors, 1)
        )
        return replace(one, records=tuple(cases))

    (ratio,) = compare(run(1, 1, 1), run(1, 2, 4)).ratios
    assert (ratio.op, ratio.count) == ("bmm", 3)
    assert (ratio.least, ratio.mean, ratio.largest) == pytest.approx((1, 2, 4))


def test_what_one_side_alone_has_timed_is_listed_with_the_reason():
    b = stored()
    b["batchline"]["cases"][0] |= {"status": "wrong", "reason": "on ragged: no"}
    text = terminal(compare(run_json.parse(stored()), run_json.parse(b)))
    assert "No case is timed in both runs" in text and "Timed in one run only" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("A  "))
    assert row == [*"A bmm/torch_bmm/tiny_16/float32 4 wrong: on ragged: no".split()]


def test_times_by_different_clocks_are_not_compared():
    comparison = compare(
        run_json.parse(stored()), run_json.parse(stored(clock="host_cold"))
    )
    assert (
        not comparison.pairs
        and "by the clock host, and in B by host_cold" in terminal(comparison)
    )


def test_it_fits_the_terminal():
    long = {"peak_bytes": 1023 * 2**20, "error_of_tolerance": 0.999}
    machine = {"cpu": "Another CPU"}
    text = terminal(
        compare(
            run_json.parse(stored(0.001234)),
            run_json.parse(stored(0.002345, machine, long)),
        )
    )
    assert max(map(len, text.splitlines())) <= COLUMNS


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"benchmarks": [], "batchline": {"cases": [{"id": "x"}]}}',
    ],
)
def test_what_is_no_run_is_a_line(tmp_path, text):
    folder = tmp_path / "b"
    folder.mkdir()
    if text is not None:
        (folder / run_json.FILE_NAME).write_text(text)
    with pytest.raises(UsageError) as refused:
        command.compare(saved(tmp_path / "a"), folder)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "samples", [[], [0.0] * 9, [-1.0] * 9, ["1"] * 9, [float("nan")] * 9]
)
def test_times_that_are_none_are_a_line(tmp_path, samples):
    damaged = stored()
    damaged["benchmarks"][0]["stats"]["data"] = samples
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / run_json.FILE_NAME).write_text(json.dumps(damaged))
    with pytest.raises(
        UsageError, match="a sample that is no time|has no sample|TypeError"
    ):
        command.compare(saved(tmp_path / "a"), tmp_path / "b")


@pytest.mark.parametrize(
    "a, words",
    [
        ("", "say which two"),
        ("no-such-revision", "neither a folder nor a revision"),
        ("abcdef0123", "no run of A=abcdef0123"),
    ],
)
def test_a_side_that_is_nothing_is_a_line(tmp_path, a, words):
    with pytest.raises(UsageError, match=words):
        command.compare(a, saved(tmp_path / "b"), stored=[tmp_path / "none"])


def test_a_revision_is_its_newest_run_on_the_other_sides_machine(tmp_path, capsys):
    commit, runs = (
        subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        tmp_path,
    )
    saved(runs / "old", commit=commit, started="2026-01-01T00:00:00+00:00", factor=3)
    saved(runs / "newer", commit=commit, started="2026-01-03T00:00:00+00:00", factor=2)
    saved(
        runs / "elsewhere",
        commit=commit,
        started="2026-01-04T00:00:00+00:00",
        machine={"cpu": "Another"},
    )
    b = saved(runs / "b")
    (runs / "torn").mkdir()
    (runs / "torn" / run_json.FILE_NAME).write_text(f"{{{commit}")
    command.compare("HEAD", b, stored=[runs])
    captured = capsys.readouterr()
    assert "2.01 ms → 1.00 ms" in captured.out and "passed over" in captured.err
    assert "torn" in captured.err


def test_a_commit_that_git_has_lost_is_found_by_its_hash(tmp_path, capsys):
    saved(tmp_path / "a", commit="f" * 40)
    assert "A: fffffffff, smoke" in shown(
        capsys, "f" * 9, saved(tmp_path / "b"), stored=[tmp_path]
    )


def test_a_page_has_what_changed_first(tmp_path, capsys):
    pytest.importorskip("jinja2")
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b", factor=1.2)
    page = tmp_path / "both.html"
    assert shown(capsys, a, b, page=page).endswith(f"page: {page}\n")
    tree = Tree(page.read_text(encoding="utf-8"))
    assert tree.text("h2") == ["What changed", "Every case"]
    assert tree.text("strong")[0].startswith("1 of 1 cases differ by more")
    changed = tree.all("table")[0]["text"].split()
    assert CASE in changed and "slower" in changed


def test_a_page_of_two_machines_has_their_maps(tmp_path, capsys):
    pytest.importorskip("jinja2")
    a = saved(tmp_path / "a")
    b = saved(tmp_path / "b", factor=1.2, machine={"device_name": "<b>Another</b>"})
    page = tmp_path / "both.html"
    output = shown(capsys, a, b, force=True, page=page)
    assert output.endswith(f"page: {page}\n")
    tree = Tree(page.read_text(encoding="utf-8"))
    maps = [
        f"Which wins where on {side}, {of}"
        for side, of in (("A", "Some CPU"), ("B", "<b>Another</b>"))
    ]
    assert tree.text("h2") == ["B's time over A's, by op", *maps, "Every case"]
    assert tree.text("strong")[0].startswith("B takes 1.20x of A's time")
    assert not tree.all("b", "script") and "default-src 'none'" in page.read_text()
    (bad,) = (
        one["text"]
        for one in tree.all("div")
        if one["attributes"].get("class") == "bad"
    )
    assert "<b>Another</b>" in bad


def test_a_page_of_runs_alike_says_so(tmp_path, capsys):
    pytest.importorskip("jinja2")
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b")
    shown(capsys, a, b, page=tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "No case, of those that are timed in both." in text


def test_a_page_that_can_not_be_written_is_one_line(tmp_path):
    pytest.importorskip("jinja2")
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b")
    page = tmp_path / "gone" / "both.html"
    with pytest.raises(UsageError, match="^can't write .*: No such file [a-z ]+$"):
        command.compare(a, b, page=page)


def test_a_page_is_a_file_in_a_folder_that_is_there(tmp_path, capsys):
    for page, said in ((tmp_path, "is a folder"), (tmp_path / "a" / "b", "no folder")):
        with pytest.raises(SystemExit):
            main(["compare", "a", "b", "--html", str(page)])
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_page_has_the_largest_change_on_top():
    def run(*factors):
        one = run_json.parse(stored())
        (case,) = (record for record in one.records if record.samples_s)
        cases = (
            replace(
                case,
                batch=2**power,
                samples_s=tuple(factor * sample for sample in case.samples_s),
            )
            for power, factor in enumerate(factors)
        )
        return replace(one, records=tuple(cases))

    compared = compare(run(1, 1, 1), run(1.2, 0.3, 2))
    changed = page_document(compared).sections[0].parts[0]
    assert [row[0].rpartition("/")[2] for row in changed.rows] == ["B2", "B4", "B1"]
    assert [row[1] for row in changed.rows] == ["faster", "slower", "slower"]
