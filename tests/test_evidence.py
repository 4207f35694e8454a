"""Evidence: each part is shown, one that fails, hangs or is cut is said to, and another
call goes on where it ended.
"""

import contextlib
import gzip
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from batchline.bench.commands import _evidence_parts as parts
from batchline.bench.commands import evidence as command
from batchline.bench.commands._evidence_parts import PARTS, Part, PartSection
from batchline.bench.errors import UsageError
from batchline.bench.measure import stand_in


def _show(asked):
    return PartSection(
        (asked.work / "out").read_text(), files={"out": asked.work / "out"}
    )


def _part(name, program, show=_show, limit_s=20.0, **settings):
    return Part(
        name,
        f"Part {name}",
        {"cpu": limit_s, "cuda": limit_s},
        lambda asked: [sys.executable, "-S", "-c", program, str(asked.work / "out")],
        show,
        **settings,
    )


WRITES = "import sys; open(sys.argv[1], 'w').write('figures')"
STALLS = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    time.sleep(60)
except KeyboardInterrupt:
    open(sys.argv[1], 'w').write('half of it')
"""
HANGS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], 'w').write(str(child.pid))
time.sleep(600)
"""
COUNTS = "import sys; open(sys.argv[1], 'w').write(__import__('uuid').uuid4().hex)"


@pytest.fixture
def collect(tmp_path, monkeypatch):
    """Takes parts in a folder; returns the exit code and the README."""

    def take(*chosen, **asked):
        monkeypatch.setattr(parts, "PARTS", chosen)
        code = command.collect("cpu", tmp_path / "made", **asked)
        return code, (tmp_path / "made" / "README.md").read_text()

    return take


def test_every_part_is_shown_on_its_machine_and_nothing_unfinished_stays(
    collect, tmp_path, capfd
):
    code, text = collect(_part("first", WRITES), _part("second", WRITES))
    assert code == 0 and text.startswith("# Evidence from ") and "torch 2." in text
    titles = [
        line.partition(" (")[0] for line in text.splitlines() if line.startswith("## ")
    ]
    assert titles == ["## Part first", "## Part second"]
    assert (
        text.count("figures") == 2
        and "Not to its end" not in text
        and "Partial" not in text
    )
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "README.md",
        "evidence.json",
        "out",
    ]
    plan = capfd.readouterr().err
    assert (
        plan.index("in all") < plan.index("evidence: Part first") and "0.7 min" in plan
    )


def test_it_goes_on_when_a_part_fails_and_says_so(collect):
    code, text = collect(_part("fails", "raise SystemExit(3)"), _part("good", WRITES))
    assert code == 1 and "**Not to its end: exit code 3.**" in text
    assert "Nothing to show: FileNotFoundError" in text and text.endswith("figures\n")


def test_a_part_that_takes_too_long_is_stopped_and_what_it_had_is_kept(collect):
    code, text = collect(_part("stalls", STALLS, limit_s=4.0), _part("good", WRITES))
    assert (
        code == 1
        and "stopped after 2 s, its limit; what it had by then is below" in text
    )
    assert "half of it" in text and "figures" in text


def test_a_part_that_does_not_end_is_killed_at_its_limit_with_what_it_has_started(
    collect,
):
    started_s = time.monotonic()
    _, text = collect(_part("hangs", HANGS, limit_s=4.0))
    assert time.monotonic() - started_s < 120
    child = int(text.splitlines()[-1])
    for _ in range(1200):  # until it is reaped by whoever has inherited it
        if (
            not Path(f"/proc/{child}").exists()
            or " Z " in Path(f"/proc/{child}/stat").read_text()
        ):
            return
        time.sleep(0.05)
    pytest.fail("what the part had started is still there")


STOPS_US = f"import os, signal; os.kill(os.getppid(), signal.SIGINT)\n{STALLS}"


@pytest.fixture
def heard():
    """Ctrl-C raises, also where a shell has told this session to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_what_there_is_and_another_call_takes_the_rest(
    collect, capfd, heard
):
    code, text = collect(
        _part("first", COUNTS), _part("stopped", STOPS_US), _part("last", WRITES)
    )
    assert (
        code == 130
        and "> **Partial.** 2 of 3 parts are missing: stopped, last." in text
    )
    assert "half of it" in text and "Not to its end: stopped by Ctrl-C" in text
    assert (
        "stopped in the part stopped; `batchline evidence --into "
        in capfd.readouterr().err
    )
    first = text.partition("## Part stopped")[0].splitlines()[-2]
    code, text = collect(
        _part("first", COUNTS), _part("stopped", WRITES), _part("last", WRITES)
    )
    assert (
        code == 0
        and "Partial" not in text
        and first in text
        and text.count("figures") == 2
    )


def test_a_part_that_was_cut_is_kept_and_taken_again_when_it_is_named(collect):
    cut = _part("cut", STALLS, limit_s=1.0)
    collect(cut, _part("good", WRITES))
    assert collect(_part("cut", WRITES), _part("good", "raise SystemExit(1)"))[0] == 0
    code, text = collect(
        _part("cut", WRITES), _part("good", "raise SystemExit(1)"), names=("cut",)
    )
    assert code == 0 and "half of it" not in text and text.count("figures") == 2


def test_what_a_killed_call_had_is_shown_by_the_next_one(collect, tmp_path):
    killed = os.fork()
    if killed == 0:
        with contextlib.suppress(BaseException):
            collect(
                _part(
                    "torn",
                    "import os, signal, sys; open(sys.argv[1], 'w').write('half of it'); "
                    "os.kill(os.getppid(), signal.SIGKILL)",
                ),
                _part("last", WRITES),
            )
        os._exit(1)
    os.waitpid(killed, 0)
    assert json.loads((tmp_path / "made" / "evidence.json").read_text())["parts"] == {
        "torn": {"begun": True}
    }
    code, text = collect(_part("torn", "raise SystemExit(1)"), _part("last", WRITES))
    assert code == 0 and "its process ended in the middle of it" in text
    assert "half of it" in text and "figures" in text


def test_no_part_is_begun_that_does_not_fit(collect, capfd):
    code, text = collect(
        _part("short", WRITES), _part("long", WRITES, limit_s=600), minutes=5
    )
    printed = capfd.readouterr()
    assert code == 0 and "1 of 2 parts are missing: long" in text
    assert "long may take 10.0 min, and that is more than is left of 5" in printed.err
    assert "goes on" in printed.out
    code, text = collect(
        _part("short", "raise SystemExit(1)"),
        _part("long", WRITES, limit_s=600),
        minutes=11,
    )
    assert code == 0 and "Partial" not in text


def test_evidence_of_elsewhere_is_not_gone_on_with(collect, tmp_path):
    collect(_part("first", WRITES))
    path = tmp_path / "made" / "evidence.json"
    kept = json.loads(path.read_text())
    for change, why in (
        ({"device": "cuda"}, "another device"),
        ({"machine": kept["machine"] | {"device_name": "H200"}}, "another machine"),
        (
            {"machine": kept["machine"] | {"revision": {"commit": "b" * 40}}},
            "another revision",
        ),
    ):
        path.write_text(json.dumps(kept | change))
        with pytest.raises(UsageError, match=why):
            collect(_part("first", WRITES))
    path.write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        collect(_part("first", WRITES))
    path.unlink()
    with pytest.raises(
        UsageError,
        match="has files and no evidence.json: name another folder with --into",
    ):
        collect(_part("first", WRITES))


def test_among_the_committed_stands_only_what_is_whole(tmp_path, monkeypatch, heard):
    monkeypatch.chdir(tmp_path)
    for chosen, code, kept in (
        ([_part("stopped", STOPS_US)], 130, 0),
        ([_part("first", WRITES)], 0, 1),
    ):
        monkeypatch.setattr(parts, "PARTS", chosen)
        assert command.collect("cpu", None) == code
        assert len(list(tmp_path.glob("reports/evidence/*/README.md"))) == kept
    (unfinished,) = tmp_path.glob("reports/runs/*")
    assert "half of it" in (unfinished / "README.md").read_text()
    assert command.collect("cpu", unfinished.relative_to(tmp_path)) == 0
    assert (
        len(list(tmp_path.glob("reports/evidence/*/README.md"))) == 2
        and not unfinished.exists()
    )


def test_what_was_made_up_is_no_evidence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stand_in, "is_on", lambda: True)
    monkeypatch.setattr(parts, "PARTS", (_part("first", WRITES),))
    with pytest.raises(
        UsageError, match="no time here was measured: it is no evidence"
    ):
        command.collect("cpu", Path("reports", "evidence", "made"))
    assert command.collect("cpu", None) == 0
    assert not list(tmp_path.glob("reports/evidence/*"))
    (folder,) = tmp_path.glob("reports/runs/*")
    assert stand_in.WORDS in (folder / "README.md").read_text()
    assert stand_in.WORDS in (folder / "evidence.json").read_text()


def test_what_needs_a_gpu_is_left_out_without_one_and_is_no_failure(collect):
    code, text = collect(
        _part("tests", "raise SystemExit(3)", needs_gpu="They run it.")
    )
    assert code == 0 and "Left out: there is no GPU here. They run it." in text


def test_a_wrong_call_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="can't write to /dev/null/made"):
        command.collect("cpu", Path("/dev/null/made"))
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        command.collect("tpu", None)
    with pytest.raises(
        UsageError, match="there is no part 'clock': use clocks, tests,"
    ):
        command.collect("cpu", tmp_path / "made", names=("clock",))
    assert not (tmp_path / "made").exists()


def test_the_parts_keep_their_promises():
    files = {name for part in PARTS for name in part.files} | {
        "README.md",
        "evidence.json",
    }
    assert len(files) <= 8
    assert all(part.limit_s["cuda"] <= 9 * 60 for part in PARTS)
    assert sum(part.limit_s["cuda"] for part in PARTS) <= 30 * 60
    assert [part.name for part in PARTS] == [
        "clocks",
        "tests",
        "sanitizer",
        "cases",
        "noise",
        "dispatch",
    ]


def test_a_file_that_is_too_large_is_compressed_or_cut_and_said_to_be(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(command, "MOST_BYTES", 3000)
    (tmp_path / "plain.txt").write_bytes(b"line\n" * 1000)
    (tmp_path / "random.txt").write_bytes(content := os.urandom(10_000))
    (tmp_path / "small.txt").write_bytes(b"line")
    (tmp_path / "run.json").write_bytes(b"{}")
    plain, random, run = command.shrink(tmp_path)
    assert (
        plain.startswith("plain.txt had")
        and "gunzip plain.txt.gz" in plain
        and "cut" not in plain
    )
    assert "cut after its first" in random
    assert "gunzip run.json.gz" in run  # whatever its size: it is committed so
    assert gzip.decompress((tmp_path / "plain.txt.gz").read_bytes()) == b"line\n" * 1000
    assert content.startswith(
        gzip.decompress((tmp_path / "random.txt.gz").read_bytes())
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "plain.txt.gz",
        "random.txt.gz",
        "run.json.gz",
        "small.txt",
    }
    assert all(path.stat().st_size <= 3000 for path in tmp_path.iterdir())


def test_what_a_part_prints_is_in_its_log_also_where_it_is_cut(tmp_path):
    program = "import time; print('a line'); time.sleep(60)"
    ended = parts.run_part([sys.executable, "-c", program], 4.0, tmp_path / "log")
    assert ended.startswith("stopped after 2 s") and (
        tmp_path / "log"
    ).read_text().startswith("a line\n")


def test_clocks_beside_nvbench():
    row = parts.clocks_table(
        {
            "torch.bmm": {
                "device_cold": {"median_s": 1e-5},
                "device_hot": {"median_s": 8e-6},
                "graph": {"error": "no"},
                "host": {"median_s": 3e-5},
                "nvbench": {"cold_s": 1.01e-5, "hot_s": None},
            }
        },
        "cuda",
    ).splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "torch.bmm",
        "10.0 µs",
        "8.00 µs",
        "no",
        "30.0 µs",
        "10.1 µs",
        "not measured",
    ]


SHARED = """
scheduling tests via LoadScheduling

tests/test_a.py::test_one[mma-float16 x]\x20
tests/test_a.py::test_two[b]\x20
[gw1] [  1%] PASSED tests/test_a.py::test_one[mma-float16 x]\x20
[gw0] [  2%] FAILED tests/test_a.py::test_two[b]\x20
  tests/test_a.py::test_two[b]: wrong: on ragged
tests/test_a.py::test_three\x20
"""
ALONE = """
tests/test_a.py::test_one[mma-float16 x] PASSED                          [ 33%]
tests/test_a.py::test_two[b] FAILED                                      [ 66%]
  tests/test_a.py::test_two[b]: wrong: on ragged
tests/test_a.py::test_three\x20"""


@pytest.mark.parametrize("lines", [SHARED, ALONE], ids=["shared", "alone"])
def test_of_tests_that_were_cut_each_is_known(lines):
    tests = parts.read_tests(lines.splitlines())
    assert tests.outcomes == {
        "tests/test_a.py::test_one[mma-float16 x]": "PASSED",
        "tests/test_a.py::test_two[b]": "FAILED",
    }
    assert tests.unended == ("tests/test_a.py::test_three",)
    assert tests.reasons == {"tests/test_a.py::test_two[b]": "wrong: on ragged"}
