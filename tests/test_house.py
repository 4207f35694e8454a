"""The house stays one that can be read: how much a line of code holds, by tests.house."""

import pytest

from tests import house

MOST_TOKENS_PER_LINE = {"bench": 8.0}


@pytest.mark.parametrize("folder", MOST_TOKENS_PER_LINE)
def test_a_line_of_code_holds_no_more_than(folder):
    assert house.folder_size(folder).density <= MOST_TOKENS_PER_LINE[folder]


def test_tokens_are_counted_without_comments_docstrings_and_layout():
    source = (
        '"""Of the module."""\n\n# a comment\nx = 1\n'
        'def f():\n    """Of f."""\n    return (\n        x\n    )\n'
    )
    # x = 1 | def f ( ) : | return ( | x | )
    assert house.count_tokens(source) == (3 + 5 + 2 + 1 + 1, 5)


def test_a_string_over_lines_counts_each_of_them():
    assert house.count_tokens('text = """a\nb\nc"""\n') == (3, 3)


def test_who_imports_what(tmp_path):
    files = {
        "bench/__init__.py": "",
        "bench/alone.py": "",
        "bench/once.py": "from batchline.bench import alone\n",
        "bench/twice.py": "import batchline.bench.once\n",
        "kernels/third.py": "from batchline.bench.once import alone, twice\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert house.single_importers(tmp_path) == {"bench.alone": "bench.once"}
    assert house.folder_size("bench", tmp_path).files == 4


@pytest.mark.slow
def test_what_it_prints_has_every_folder(capsys):
    house.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == list(house.FOLDERS)
    assert any("with a single importer:" in line for line in lines)
