"""A machine's history: every run is kept, a damaged line costs itself alone, what
changed is said and drawn.
"""

import csv
import json
import multiprocessing
import xml.etree.ElementTree as ElementTree

import pytest

from batchline.bench.commands.history import print_histories
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.report import over_time
from batchline.bench.store import history, run_json
from batchline.bench.verdicts import across_runs
from tests.test_records import document

CASE = "bmm/torch_bmm/tiny_16/float32/B4"


def run(
    day=1, factor=1.0, torch="2.13.0", cpu="Some CPU", profile="smoke", commit=None
):
    stored = document()
    machine = stored["machine_info"]["batchline"]
    machine |= {
        "cpu": cpu,
        "versions": {"torch": torch},
        "revision": {"commit": commit or f"{day:09x}ff", "dirty": False},
    }
    stored["batchline"] |= {
        "started": f"2026-{1 + day // 28:02}-{1 + day % 28:02}T03:04:05+00:00",
        "profile": profile,
    }
    stats = stored["benchmarks"][0]["stats"]
    stats["data"] = [
        sample * factor * (1 + 0.01 * (day * 7 % 5 - 2)) for sample in stats["data"]
    ]
    return run_json.parse(stored)


def filled(folder, days=30, step_at=15, **changes):
    for day in range(days):
        path = history.append(
            run(day, 1.2 if day >= step_at else 1.0, **changes), folder
        )
    return path


def test_a_run_is_kept_as_one_line_that_anything_can_read(tmp_path):
    path = history.append(run(), tmp_path / "new")
    assert path == tmp_path / "new" / "some-cpu.jsonl"
    line = json.loads(path.read_text())
    assert path.read_text().count("\n") == 1
    assert (
        line["commit"] == "000000001ff"
        and line["profile"] == "smoke"
        and line["dirty"] is False
    )
    assert (
        line["toolchain"]["torch"] == "2.13.0" and line["machine"]["CPU"] == "Some CPU"
    )
    facts = line["cases"][CASE]
    assert facts["first_quartile_s"] < facts["median_s"] < facts["third_quartile_s"]
    assert (
        facts["peak_bytes"] == 4096
        and facts["error_of_tolerance"] == 0.1
        and facts["clock"] == "host"
    )
    assert list(line["cases"]) == [CASE]  # the other was not timed


def test_a_run_without_a_time_adds_nothing(tmp_path):
    stored = document()
    stored["batchline"]["cases"][0]["status"] = "wrong"
    assert history.append(run_json.parse(stored), tmp_path) is None and not list(
        tmp_path.iterdir()
    )


def test_a_torn_line_spoils_no_other(tmp_path, capsys):
    path = history.append(run(1), tmp_path)
    with path.open("ab") as file:
        file.write(path.read_bytes()[:40])  # a killed writer
    history.append(run(2), tmp_path)
    entries, damaged = history.read(path)
    assert [entry.commit for entry in entries] == [
        "000000001ff",
        "000000002ff",
    ] and damaged == [2]
    assert print_histories(folder=tmp_path) == 0
    assert "line 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", [b"[]", b"7", b"\xff\xfe", b"{}", b"null", b'{"format": 99}', b"[" * 100000]
)
def test_a_damaged_line_is_counted_and_passed_over(tmp_path, line):
    path = history.append(run(1), tmp_path)
    path.write_bytes(line + b"\n" + path.read_bytes() + b"\n\n")
    entries, damaged = history.read(path)
    assert len(entries) == 1 and damaged == [1]


@pytest.mark.parametrize(
    "damage",
    [
        {"when": "yesterday"},
        {"commit": 7},
        {"machine": "x"},
        {"cases": {"a": {}}},
        {"cases": {CASE: {"clock": "host"}}},
        {"cases": {CASE: {"clock": "host", "median_s": -1}}},
        {"cases": {CASE: {"clock": "host", "median_s": "1"}}},
    ],
)
def test_a_line_of_the_wrong_content_is_damaged(tmp_path, damage):
    path = history.append(run(1), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert history.read(path) == ([], [1])


def _append_some(folder, first):
    for day in range(first, first + 10):
        history.append(run(day), folder)


def test_runs_that_end_together_keep_all_their_lines(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_append_some, args=(tmp_path, first))
        for first in (0, 10, 20)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    entries, damaged = history.read(tmp_path / "some-cpu.jsonl")
    assert len(entries) == 30 and not damaged


def test_a_folder_that_cant_be_written_is_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't add the run .* the run is stored"):
        history.append(run(), tmp_path / "file")


def test_no_history_is_a_line_and_3(tmp_path, capsys):
    assert print_histories(folder=tmp_path / "none") == ExitCode.NOT_MEASURED
    assert capsys.readouterr().out.count("\n") == 1


def test_a_history_without_a_line_that_can_be_read_is_none(tmp_path, capsys):
    (tmp_path / "some-cpu.jsonl").write_text("{}\n\n")
    assert print_histories(folder=tmp_path) == ExitCode.NOT_MEASURED
    assert "passed over what can't be read: line 1" in capsys.readouterr().out


def test_another_device_or_no_matching_case_is_refused(tmp_path):
    history.append(run(), tmp_path)
    with pytest.raises(UsageError, match="it has some-cpu"):
        print_histories("nvidia-h200", folder=tmp_path)
    with pytest.raises(UsageError, match="-k 'triton' matches none of the 1 cases in "):
        print_histories(k="triton", folder=tmp_path)


def test_few_runs_are_said_to_be_too_few(tmp_path, capsys):
    filled(tmp_path, days=4)
    assert print_histories(folder=tmp_path) == 0
    assert "4 runs; too few to see a change: it takes 10" in capsys.readouterr().out


def test_what_changed_when_and_by_how_much_is_the_first_line(tmp_path, capsys):
    filled(tmp_path)
    assert print_histories("some-cpu", out=tmp_path / "out", folder=tmp_path) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert output.startswith(
        f"some-cpu, smoke: 30 runs, 1 of 1 case changed: {CASE} +20."
    )
    assert "at 00000000f (2026-01-16), last before it 00000000e (2026-01-15)" in output
    place = tmp_path / "out" / "some-cpu" / "smoke"
    svg = ElementTree.parse(place / "bmm-torch_bmm-tiny_16-float32.svg").getroot()
    words = "".join(svg.itertext())
    assert "00000000f" in words and "B4 +20." in words


def test_a_flat_history_shows_no_change(tmp_path, capsys):
    filled(tmp_path, step_at=99)
    print_histories(folder=tmp_path)
    assert "no change in 1 case" in capsys.readouterr().out


def test_machines_and_profiles_are_series_of_their_own():
    runs = [
        run(day, 1.5 if day % 2 else 1.0, cpu="Other" if day % 2 else "Some CPU")
        for day in range(30)
    ]
    runs += [run(day, 9.0, profile="full") for day in range(3)]
    groups = across_runs.groups(map(history.entry_of, runs))
    assert sorted(len(group.entries) for group in groups) == [3, 15, 15]
    assert not any(group.changed for group in groups)


def test_clocks_are_series_of_their_own(tmp_path):
    path = filled(tmp_path, days=2)
    entries, _ = history.read(path)
    entries[1].cases[CASE]["clock"] = "host_cold"
    assert [series.clock for series in across_runs.groups(entries)[0].series] == [
        "host",
        "host_cold",
    ]


def test_a_new_torch_is_named_where_the_latency_changed(tmp_path, capsys):
    for day in range(24):
        history.append(
            run(day, 1.3 if day >= 12 else 1.0, "2.14.0" if day >= 12 else "2.13.0"),
            tmp_path,
        )
    print_histories(folder=tmp_path)
    output = " ".join(capsys.readouterr().out.split())
    assert "toolchain at 00000000c (2026-01-13): torch 2.13.0 → 2.14.0" in output
    assert "00000000b (2026-01-12): toolchain (torch 2.13.0 → 2.14.0)" in output
    svg = (
        tmp_path / "some-cpu" / "smoke" / "bmm-torch_bmm-tiny_16-float32.svg"
    ).read_text()
    assert "torch 2.13.0 → 2.14.0" in svg


def test_otava_gets_a_full_table_a_set_of_runs(tmp_path):
    entries = [history.entry_of(run(day)) for day in range(12)]
    other = CASE.replace("B4", "B8")
    for entry in entries:
        entry.cases[other.replace("B8", "B16")] = entry.cases[CASE]
    for entry in entries[4:]:
        entry.cases[other] = entry.cases[CASE]
    over_time.write_otava(across_runs.groups(entries)[0], tmp_path)
    tests = json.loads((tmp_path / over_time.OTAVA_CONFIG).read_text())["tests"]
    assert {name: list(test["metrics"]) for name, test in tests.items()} == {
        "bmm-torch_bmm-tiny_16-float32": ["B4_host_s", "B16_host_s"],
        "bmm-torch_bmm-tiny_16-float32-2": ["B8_host_s"],
    }
    for test, count in zip(tests.values(), (12, 8)):
        assert test["type"] == "csv"
        rows = list(csv.DictReader((tmp_path / test["file"]).open()))
        assert len(rows) == count and all(
            float(row[name]) > 0 for row in rows for name in test["metrics"]
        )
        assert (
            rows[-1]["commit"] == "00000000bff"
            and rows[-1]["time"] == "2026-01-12T03:04:05+00:00"
        )


def test_names_that_matplotlib_would_take_for_mathematics_are_drawn(tmp_path):
    for day in range(12):
        history.append(run(day, commit="$\\bad{$"), tmp_path)
    assert print_histories(folder=tmp_path) == 0
