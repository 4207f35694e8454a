"""Text and tables as blocks."""

from batchline.bench.report.blocks import Bullets, Table, blocks


def test_text_becomes_blocks_and_tables_keep_their_cells():
    cells = [["a|b", "c\n\nd"]]
    found = blocks(
        lambda style: "\n\n".join(
            [
                "before",
                style.render(["x", ""], cells),
                "- one\n- two",
                style.best.format(7),
            ]
        )
    )
    assert found == [
        "before",
        Table(("x", ""), (("a|b", "c\n\nd"),)),
        Bullets(("one", "two")),
        "7 ★",
    ]
    assert blocks(lambda style: None) == []
