"""Evidence: each part is shown, one that fails, hangs or shows nothing is said to, and nothing is overwritten."""
import signal
import sys

import pytest

from bench import evidence
from bench.errors import UsageError
from bench.evidence import _Part


def _part(title, program, show=lambda folder, device: (folder / "out").read_text(), limit_s=20.0, **settings):
    return _Part(title, {"cpu": limit_s, "cuda": limit_s},
                 lambda folder, device, profile: [sys.executable, "-c", program, str(folder / "out")], show, **settings)


WRITES = "import sys; open(sys.argv[1], 'w').write('figures')"
STALLS = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    time.sleep(60)
except KeyboardInterrupt:
    open(sys.argv[1], 'w').write('half of it')
"""


def _collect(tmp_path, monkeypatch, *parts):
    monkeypatch.setattr(evidence, "_PARTS", parts)
    code = evidence.collect("cpu", tmp_path / "made", "smoke")
    return code, (tmp_path / "made" / "README.md").read_text()


def test_every_part_is_shown_on_its_machine(tmp_path, monkeypatch):
    code, text = _collect(tmp_path, monkeypatch, _part("First", WRITES), _part("Second", WRITES))
    assert code == 0 and text.startswith("# Evidence from ") and "torch 2." in text
    titles = [line.partition(" (")[0] for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## First", "## Second"]
    assert text.count("figures") == 2 and "Not to its end" not in text


def test_it_goes_on_when_a_part_fails_and_says_so(tmp_path, monkeypatch):
    code, text = _collect(tmp_path, monkeypatch, _part("Fails", "raise SystemExit(3)"), _part("Good", WRITES))
    assert code == 1 and "**Not to its end: exit code 3.**" in text
    assert "Nothing to show: FileNotFoundError" in text and text.endswith("figures\n")


def test_a_part_that_takes_too_long_is_stopped_and_what_it_had_is_kept(tmp_path, monkeypatch):
    code, text = _collect(tmp_path, monkeypatch, _part("Stalls", STALLS, limit_s=1.0), _part("Good", WRITES))
    assert code == 1 and "stopped after 1 s; what it had by then is below" in text
    assert "half of it" in text and "figures" in text


STOPS_US = f"import os, signal; os.kill(os.getppid(), signal.SIGINT)\n{STALLS}"


@pytest.fixture
def heard():
    """Ctrl-C raises, also where a shell has told this session to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_the_parts_that_are_done_and_what_the_running_one_has(tmp_path, monkeypatch, capfd, heard):
    parts = _part("First", WRITES), _part("Stopped", STOPS_US), _part("Never", WRITES)
    code, text = _collect(tmp_path, monkeypatch, *parts)
    assert code == 130 and "> **Partial.** 1 of 3 parts are missing." in text
    assert "figures" in text and "half of it" in text and "Not to its end: stopped by Ctrl-C" in text
    assert f"stopped after 2 of 3 parts: {tmp_path / 'made'}" in capfd.readouterr().err


def test_among_the_committed_stands_only_what_is_whole(tmp_path, monkeypatch, heard):
    monkeypatch.chdir(tmp_path)
    for parts, code, kept in (([_part("Stopped", STOPS_US)], 130, 0), ([_part("First", WRITES)], 0, 1)):
        monkeypatch.setattr(evidence, "_PARTS", parts)
        assert evidence.collect("cpu", None, "smoke") == code
        assert len(list(tmp_path.glob("reports/evidence/*/README.md"))) == kept
    (unfinished,) = tmp_path.glob("reports/runs/*")
    assert "half of it" in (unfinished / "README.md").read_text()


def test_what_needs_a_gpu_is_left_out_without_one_and_is_no_failure(tmp_path, monkeypatch):
    code, text = _collect(tmp_path, monkeypatch, _part("Tests", "raise SystemExit(3)", needs_gpu="They run it."))
    assert code == 0 and "Left out: there is no GPU here. They run it." in text


def test_evidence_is_not_overwritten(tmp_path, monkeypatch):
    _collect(tmp_path, monkeypatch, _part("First", WRITES))
    with pytest.raises(UsageError, match="holds evidence already: name another folder with OUT="):
        evidence.collect("cpu", tmp_path / "made", "smoke")


def test_a_folder_that_can_not_be_written_and_an_unknown_device_are_one_line():
    from pathlib import Path

    with pytest.raises(UsageError, match="can't write to /dev/null/made"):
        evidence.collect("cpu", Path("/dev/null/made"), "smoke")
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        evidence.collect("tpu", None, "smoke")


def test_the_parts_keep_their_promises():
    assert len(evidence._FILES) <= 8
    assert sum(part.limit_s["cuda"] for part in evidence._PARTS) < 9 * 60


def test_clocks_beside_nvbench(tmp_path):
    (tmp_path / "clocks.json").write_text(
        '{"torch.bmm": {"device_cold": {"median_s": 1e-5}, "device_hot": {"median_s": 8e-6}, "graph": {"error": "no"},'
        ' "host": {"median_s": 3e-5}, "nvbench": {"cold_s": 1.01e-5, "hot_s": null}}}')
    row = evidence._show_clocks(tmp_path, "cuda").splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "torch.bmm", "10.0 µs", "8.00 µs", "no", "30.0 µs", "10.1 µs", "not measured"]
