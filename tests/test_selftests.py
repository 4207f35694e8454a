"""The gate's self-test: what it plants, what it counts, what it keeps, and what its
exit says.
"""

import json

import pytest

from batchline import own_ops
from batchline.bench import folders, selection
from batchline.bench.commands import selftest
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure.worker.task import Outcome
from batchline.bench.regress import pairs as gate
from batchline.bench.report import of_commands as report
from batchline.bench.statuses import MEASURED
from batchline.bench.store import selftests
from batchline.bench.store.files import SealBroken
from batchline.bench.store.regressions import (
    EQUIVALENT,
    IMPROVED,
    INCONCLUSIVE,
    REGRESSED,
)
from batchline.bench.store.selftests import Finding, Selftest
from tests.documents import on_terminal
from tests.fake_pairs import FakePairs

CASE, OTHER = "bmm/a/tiny_16/float32/B1", "bmm/a/tiny_16/float32/B3"
MACHINE = {"device_name": "Some CPU", "cpu": "Some CPU", "cpu_cores": 2}
ABOUT = {
    "machine": MACHINE,
    "profile": "smoke",
    "selection": "",
    "started": "",
    "seconds": 120.0,
    "ended": "",
}


class Planted(FakePairs):
    """Head takes what is planted, and each case a constant share more."""

    def __init__(self, more=0.0):
        super().__init__({})
        self.more = more

    def pair(self, entries, number):
        self.ratios = {
            entry.label: lambda number, share=entry.planted: (1 + share + self.more)
            * (1 + 0.001 * (-1) ** number)
            for entry in entries
        }
        return super().pair(entries, number)


def finding(share, verdict, effect=0.0, session=0, case=CASE):
    return Finding(session, case, share, verdict, effect, 5, 1e-3)


@pytest.fixture
def baselines(monkeypatch, tmp_path):
    monkeypatch.setenv(folders.VARIABLE, str(tmp_path))
    return tmp_path / "baselines"


def test_every_second_session_plants_and_all_have_an_a_a():
    findings = []
    assert selftest._sessions(Planted(), [CASE, OTHER], 3, findings) == ""
    shares = [
        sorted({one.share for one in findings if one.session == session})
        for session in range(3)
    ]
    assert shares == [[0.0, *selftest.SHARES], [0.0], [0.0, *selftest.SHARES]]
    assert {one.verdict for one in findings if one.share == 0} == {EQUIVALENT}
    assert all(one.seen for one in findings if one.share >= 0.02) and not any(
        one.alarm for one in findings
    )


def test_a_machine_that_finds_changes_in_identical_code_is_told():
    findings = []
    selftest._sessions(Planted(more=0.2), [CASE], 1, findings)
    assert [one.alarm for one in findings if one.share == 0] == [True]


@pytest.mark.parametrize(
    "found, code",
    [
        ([finding(0, EQUIVALENT), finding(0.1, REGRESSED)], ExitCode.CLEAN),
        ([finding(0, REGRESSED), finding(0.1, REGRESSED)], ExitCode.FAULT),
        ([finding(0, IMPROVED), finding(0.1, REGRESSED)], ExitCode.FAULT),
        ([finding(0, INCONCLUSIVE), finding(0.1, INCONCLUSIVE)], ExitCode.FAULT),
        (
            [
                finding(0, EQUIVALENT),
                finding(0.02, INCONCLUSIVE),
                finding(0.1, REGRESSED),
            ],
            ExitCode.CLEAN,
        ),
        (
            [finding(0, EQUIVALENT), finding(0.05, IMPROVED), finding(0.1, REGRESSED)],
            ExitCode.FAULT,
        ),
        ([], ExitCode.NOT_MEASURED),
    ],
)
def test_the_exit_code_says_whether_it_can_be_believed(found, code, baselines, capsys):
    assert selftest._publish(Selftest(ABOUT, tuple(found)), None) == code
    assert not baselines.exists()  # one session is too few for a noise


@pytest.mark.parametrize(
    "machine, kept", [({}, True), ({"stand_in": "no time here was measured"}, False)]
)
def test_noise_is_kept_where_it_was_measured(machine, kept, baselines):
    sessions = [finding(0, EQUIVALENT, session=session) for session in range(10)]
    selftest._publish(
        Selftest(ABOUT | {"machine": MACHINE | machine}, tuple(sessions)), None
    )
    assert baselines.exists() is kept


def test_an_interrupted_one_shows_what_it_has(baselines, capsys):
    ended = ABOUT | {"ended": gate.INTERRUPTED}
    assert (
        selftest._publish(Selftest(ended, (finding(0, EQUIVALENT),)), None)
        == ExitCode.STOPPED
    )
    assert "Ended early: stopped by Ctrl-C." in capsys.readouterr().out


def test_the_table_counts_by_case_the_shortest_first():
    slow = [
        Finding(session, CASE, share, verdict, 0.002 * session, 5 + session, 2e-3)
        for session, share, verdict in (
            (0, 0.0, EQUIVALENT),
            (1, 0.0, REGRESSED),
            (0, 0.05, REGRESSED),
            (1, 0.05, INCONCLUSIVE),
        )
    ]
    quick = [Finding(0, OTHER, 0.0, EQUIVALENT, -0.03, 20, 1e-5)]
    found = Selftest(ABOUT, (*slow, *quick))
    lines = on_terminal(report.selftest_table(found)).splitlines()
    assert lines[0].split() == [
        "case",
        "median",
        "A/A",
        "alarms",
        "A/A",
        "change,",
        "99%",
        "+5%",
        "pairs,",
        "A/A",
    ]
    assert lines[2].split() == [
        OTHER,
        "10.0",
        "µs",
        "0",
        "of",
        "1",
        "3.0%",
        "20",
        "to",
        "20",
    ]
    assert lines[3].split() == [
        CASE,
        "2.00",
        "ms",
        "1",
        "of",
        "2",
        "0.2%",
        "1",
        "of",
        "2",
        "5",
        "to",
        "6",
    ]
    assert report.summarize_selftest(found) == (
        "1 false alarms in 2 A/A sessions of 2 cases; planted slow-downs called REGRESSED: "
        "+5% in 1 of 2. Profile smoke on Some CPU, 2 min."
    )


def test_the_noise_is_the_99th_percentile_of_the_changes():
    assert report.noise_of_cases([]) is None
    assert (
        report.noise_of_cases(
            [finding(0, EQUIVALENT, -0.02), finding(0, EQUIVALENT, 0.01)]
        )
        == 0.02
    )
    assert (
        report.noise_of_cases(
            [finding(0, EQUIVALENT, number / 1000) for number in range(200)]
        )
        == 0.197
    )


def test_what_is_stored_is_read_again_and_an_edit_is_refused(tmp_path):
    found = Selftest(ABOUT, (finding(0, EQUIVALENT), finding(0.1, REGRESSED, 0.1)))
    path = selftests.save(tmp_path, found)
    assert selftests.load(tmp_path) == found
    path.write_text(
        path.read_text()
        .replace("INCONCLUSIVE", "REGRESSED")
        .replace("EQUIVALENT", "REGRESSED")
    )
    with pytest.raises(SealBroken, match="not as it was written"):
        selftests.load(tmp_path)
    with pytest.raises(ValueError, match="no self-test in"):
        selftests.load(tmp_path / "nowhere")


def test_noise_is_kept_for_this_machine(baselines):
    assert gate.load_noise(MACHINE) == {}
    gate.save_noise(MACHINE, "smoke", 20, {CASE: 0.02})
    assert gate.load_noise(MACHINE) == {CASE: 0.02}


DAMAGES = {
    "cut": (lambda text: text[: len(text) // 2], "is damaged"),
    "edited": (lambda text: text.replace("0.02", "0.9"), "not as it was written"),
    "of another version": (
        lambda text: text.replace('"format": 1', '"format": 9'),
        "of format 9, and this Batchline",
    ),
    "no object": (lambda text: "[]", "of format 'none'"),
    "of another machine": (None, r"of another machine \(cpu_cores 4, here 2\)"),
}


@pytest.mark.parametrize("damage, words", DAMAGES.values(), ids=DAMAGES)
def test_noise_that_cannot_be_believed_is_a_line_and_no_pass(
    baselines, damage, words, capsys
):
    from batchline.__main__ import main

    path = gate.save_noise(
        MACHINE | ({} if damage else {"cpu_cores": 4}), "smoke", 20, {CASE: 0.02}
    )
    if damage:
        path.write_text(damage(path.read_text()))
    with pytest.raises(SealBroken, match=words) as refused:
        gate.load_noise(MACHINE)
    assert "`batchline selftest` measures it anew" in str(
        refused.value
    ) and "\n" not in str(refused.value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "batchline.bench.measure.machine.environment.machine",
            lambda device: MACHINE,
        )
        assert main(["regress", "--base", "HEAD", "--device", "cpu"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("batchline: ")


def test_a_stored_selftest_names_nothing_but_json(tmp_path):
    document = json.loads(selftests.save(tmp_path, Selftest(ABOUT, ())).read_text())
    assert set(document) == {"format", "digest", "about", "findings"}


class StoppedAfterOne(Planted):
    """Pairs of a machine whose user presses Ctrl-C in the second session."""

    def pair(self, entries, number):
        if (
            any(entry.label == f"{CASE} +0%" for entry in entries)
            and self.sessions
            and number == 0
        ):
            raise KeyboardInterrupt
        self.sessions += number == 0
        return super().pair(entries, number)

    sessions = 0

    def first(self, side, entries):
        return {entry.label: Outcome(MEASURED) for entry in entries}


@pytest.mark.parametrize("sessions_before, kept", [(0, True), (1, False)])
def test_ctrl_c_keeps_the_sessions_that_are_done(
    sessions_before, kept, tmp_path, monkeypatch, capsys
):
    pairs = StoppedAfterOne()
    pairs.sessions = sessions_before
    monkeypatch.setattr(gate, "Pairs", lambda *_: pairs)
    monkeypatch.setattr(selection, "selected", lambda *_: [CASE])
    assert (
        selftest.selftest("smoke", "cpu", CASE, 3, tmp_path / "out") == ExitCode.STOPPED
    )
    assert (tmp_path / "out" / selftests.FILE_NAME).exists() is kept
    if kept:
        assert {one.session for one in selftests.load(tmp_path / "out").findings} == {0}
        assert "stopped by Ctrl-C" in capsys.readouterr().out
    else:
        assert not (tmp_path / "out").exists()


def test_of_another_repository_it_asks_for_the_cases(tmp_path, monkeypatch):
    monkeypatch.setenv(own_ops.VARIABLE, str(tmp_path))
    with pytest.raises(UsageError, match="say which few cases of your ops: -k"):
        selftest.selftest("smoke", "cpu", "", 3)
