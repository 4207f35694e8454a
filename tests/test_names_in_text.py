"""Every module, class and function that a docstring, a comment or a document names by its
dotted name is there.
"""

import ast
import importlib
import io
import re
import tokenize
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = re.compile(r"(?<![\w/.])(?:batchline\.)?((?:bench|kernels)(?:\.[a-zA-Z_]\w*)+)")
# What CONTRIBUTING adds, and what others call so.
ELSEWHERE = {
    "kernels.row_scale",
    "kernels.my_op",
    "bench.register",
    "bench.run_all_benchmarks",
}
SOURCES = [
    path
    for folder in ("batchline", "bench", "kernels")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "reports" / "methodology").glob("*.md")),
]


def texts_of(path):
    """The comments and docstrings of a source; the whole of a document."""
    text = path.read_text(encoding="utf-8")
    if not NAME.search(text):
        return  # most name nothing, and to parse each takes long
    if path.suffix == ".md":
        yield text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def is_there(name):
    """Whether a name below `batchline` can be imported, or looked up in what can."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            place = importlib.import_module(f"batchline.{'.'.join(parts[:count])}")
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(place, part):
                return False
            place = getattr(place, part)
        return True
    return False


@pytest.mark.parametrize(
    "path",
    [*DOCUMENTS, *SOURCES],
    ids=lambda path: path.relative_to(REPOSITORY).as_posix(),
)
def test_what_a_text_names_is_there(path):
    names = {name for text in texts_of(path) for name in NAME.findall(text)}
    # `bench.py` and the like are files.
    missing = [
        name
        for name in sorted(names - ELSEWHERE)
        if not name.endswith((".py", ".md")) and not is_there(name)
    ]
    assert missing == []


def test_a_name_that_is_gone_is_seen():
    assert is_there("bench.cases.plan") and is_there("kernels.op")
    assert not is_there("bench.no_such") and not is_there("bench.cases.no_such")
