"""`batchline readme`: figures between marks come from stored runs; what is stale, or can't
be made, is said.
"""

import struct
import zlib

import pytest

from batchline.bench import readme as command
from batchline.bench import records
from batchline.bench.errors import UsageError
from batchline.bench.report import shown
from tests.test_records import document

TABLE = "<!-- shown: problem reports/evidence/run; bmm/tiny_16/float32 -->\n{}<!-- end -->\n"


def png():
    def chunk(name, data):
        return (
            struct.pack(">I", len(data))
            + name
            + data
            + struct.pack(">I", zlib.crc32(name + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def root(tmp_path):
    run = tmp_path / "reports" / "evidence" / "run"
    run.mkdir(parents=True)
    records.save(run, document())
    (tmp_path / "reports" / "METHODOLOGY.md").write_text("nothing shown\n")
    (tmp_path / "README.md").write_text(f"# before\n\n{TABLE.format('old')}\nafter\n")
    return tmp_path


def test_a_figure_is_written_and_then_up_to_date(root, capsys):
    assert command.readme(check=True, root=root) == command.STALE
    assert "README.md: not up to date: run `make readme`" in capsys.readouterr().out
    assert "old" in (root / "README.md").read_text()
    assert command.readme(check=False, root=root) == command.CLEAN
    text = (root / "README.md").read_text()
    assert (
        "| batch " in text
        and "old" not in text
        and text.startswith("# before\n")
        and text.endswith("\nafter\n")
    )
    assert command.readme(check=True, root=root) == command.CLEAN
    (root / "README.md").write_text(text.replace("µs", "ns"))
    assert command.readme(check=True, root=root) == command.STALE


@pytest.mark.parametrize(
    "mark, words",
    [
        (
            "<!-- shown: problem reports/evidence/run; bmm/other/float32 -->\n<!-- end -->",
            "no 'bmm/other/float32'",
        ),
        (
            "<!-- shown: problem nowhere; bmm/tiny_16/float32 -->\n<!-- end -->",
            "no run in",
        ),
        (
            "<!-- shown: portrait reports/evidence/run -->\n<!-- end -->",
            "'portrait' is none of problem, ladder",
        ),
        (
            "<!-- shown: plot reports/evidence/run; bmm/tiny_16/float32 -->\n<!-- end -->",
            "has no bmm-tiny_16-float32.png",
        ),
        (
            "<!-- shown: screenshot reports/evidence/run -->\n<!-- end -->",
            "page.png is missing or of another run",
        ),
        (
            "<!-- shown: ladder reports/evidence/run; bmm: torch_bmm, gone -->\n<!-- end -->",
            "has not all of torch_bmm",
        ),
        (
            "<!-- shown: problem reports/evidence/run; bmm/tiny_16/float32 -->\n",
            "a mark without its end",
        ),
    ],
)
def test_what_can_not_be_made_is_said(root, mark, words):
    (root / "README.md").write_text(mark)
    with pytest.raises(UsageError, match=words):
        command.readme(check=True, root=root)


def test_a_screenshot_is_of_its_run_or_taken_again(root, monkeypatch):
    taken = []
    monkeypatch.setattr(
        command, "_screenshot", lambda folder: taken.append(folder) or png()
    )
    (root / "README.md").write_text(
        "<!-- shown: screenshot reports/evidence/run -->\n<!-- end -->\n"
    )
    assert (
        command.readme(check=False, root=root)
        == command.readme(check=True, root=root)
        == command.CLEAN
    )
    assert (
        "![the page of the run](reports/evidence/run/page.png)"
        in (root / "README.md").read_text()
    )
    command.readme(check=False, root=root)
    assert len(taken) == 1
    path = root / "reports" / "evidence" / "run" / records.FILE_NAME
    path.write_text(path.read_text() + " ")
    with pytest.raises(UsageError, match="of another run"):
        command.readme(check=True, root=root)
    assert command.readme(check=False, root=root) == command.CLEAN and len(taken) == 2


def test_the_stamp_is_a_chunk_that_readers_skip(tmp_path):
    path = tmp_path / "page.png"
    path.write_bytes(png())
    assert shown.run_of(path) is None
    path.write_bytes(shown.stamped(png(), "0123456789abcdef"))
    assert shown.run_of(path) == "0123456789abcdef"
    from matplotlib.image import imread

    assert imread(path).shape == (1, 1)
    with pytest.raises(ValueError, match="this is none"):
        shown.stamped(b"GIF89a", "0" * 16)


def test_links_of_a_document_in_a_folder_start_there(root):
    run = root / "reports" / "evidence" / "run"
    (run / "bmm-tiny_16-float32.png").write_bytes(png())
    mark = (
        "<!-- shown: plot reports/evidence/run; bmm/tiny_16/float32 -->\n<!-- end -->\n"
    )
    (root / "reports" / "METHODOLOGY.md").write_text(mark)
    command.readme(check=False, root=root)
    assert (
        "](evidence/run/bmm-tiny_16-float32.png)"
        in (root / "reports" / "METHODOLOGY.md").read_text()
    )
