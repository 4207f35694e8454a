"""What the documents say is there: links, anchors, commands and settings; and their
figures are those of the stored runs.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from batchline.bench import commands
from batchline.bench.commands import load, names, readme
from batchline.bench.errors import ExitCode
from batchline.bench.store import run_json, selftests

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        *(REPOSITORY / "reports" / "methodology").glob("*.md"),
    ]
)
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
TARGETS = set(
    re.findall(r"^([a-z][a-z-]*)(?: [a-z- ]+)?:(?!=)", MAKEFILE, re.MULTILINE)
)
SETTINGS = set(re.findall(r"^([A-Z_]+) +\?=", MAKEFILE, re.MULTILINE))


def each_document(test):
    return pytest.mark.parametrize(
        "document",
        DOCUMENTS,
        ids=[path.relative_to(REPOSITORY).as_posix() for path in DOCUMENTS],
    )(test)


def text_of(document):
    return document.read_text(encoding="utf-8")


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(document):
    """What GitHub makes of a document's headings."""
    headings = re.findall(
        r"^#+ (.+)$", without_code(text_of(document)), flags=re.MULTILINE
    )
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def shell_lines(text):
    """The lines of the blocks of shell, without comments."""
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield from (words for line in block.splitlines() if (words := split(line)))


def inline_commands(text):
    """The commands that stand in the text between backticks."""
    found = re.findall(r"`((?:make|batchline) [a-z][^`\n]*)`", without_code(text))
    yield from map(split, found)


def split(line):
    return shlex.split(line, comments=True)


def parser_of(command):
    """The parser of one command, or None."""
    return (
        commands.command_parser(command, load(command)) if command in names() else None
    )


def wrong_with(words):
    """Why a command can't be called so, or None."""
    program, *rest = words
    if program == "make":
        return wrong_with_make(rest)
    if program == "batchline":
        parser = parser_of(rest[0])
        if parser is None:
            return f"there is no command {rest[0]}"
        known = parser._option_string_actions
        unknown = [
            word
            for word in rest
            if re.fullmatch(r"-[a-z]|--[a-z-]+", word) and word not in known
        ]
        return f"{rest[0]} has no {unknown[0]}" if unknown else None
    return f"{program} is no command of ours"


def wrong_with_make(words):
    for word in words:
        setting, equals, _ = word.partition("=")
        if equals and setting not in SETTINGS:
            return f"the Makefile has no setting {setting}"
        if not equals and word not in TARGETS:
            return f"the Makefile has no target {word}"


@each_document
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(document))):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


def added_files(text):
    """The files that a document's own blocks add."""
    return set(re.findall(r"^```python\n# ([\w/.]+)", text, flags=re.MULTILINE))


@each_document
def test_every_command_is_one(document):
    text = text_of(document)
    added = {
        Path(file).stem.replace("_", "-")
        for file in added_files(text)
        if file.startswith("bench/commands/")
    }
    calls = [
        words
        for words in (*shell_lines(text), *inline_commands(text))
        if words[1] not in added
    ]
    wrong = {" ".join(words): why for words in calls if (why := wrong_with(words))}
    assert not wrong


@each_document
def test_whole_calls_are_parsed(document):
    for words in shell_lines(text_of(document)):
        if words[0] == "batchline":
            parser_of(words[1]).parse_args(words[2:])


@pytest.mark.parametrize(
    "line, why",
    [
        ("make bench PROFILE=smoke K=my", None),
        ("make dance", "no target dance"),
        ("make bench COLOUR=red", "no setting COLOUR"),
        ("batchline list --profile smoke", None),
        ("batchline dance", "no command dance"),
        ("batchline list --colour", "list has no --colour"),
        ("rm -rf /", "rm is no command of ours"),
    ],
)
def test_what_is_no_command_is_seen(line, why):
    said = wrong_with(split(line))
    assert said is None if why is None else why in said


def test_there_are_commands_to_test():
    readme_text = text_of(REPOSITORY / "README.md")
    assert len(list(shell_lines(readme_text))) >= 8
    assert ["make", "bench", "VENV="] in list(inline_commands(readme_text))


def with_folders(file):
    """The file and the folders that it lies in."""
    return [file, *(parent.as_posix() for parent in Path(file).parents)]


@each_document
def test_files_named_in_the_text_exist(document):
    named = re.findall(
        r"`((?:bench|kernels|tests|batchline)/[\w/.]*\w)`",
        without_code(text_of(document)),
    )
    added = {
        part for file in added_files(text_of(document)) for part in with_folders(file)
    }
    missing = [name for name in named if not (REPOSITORY / name).exists()]
    assert not [name for name in missing if name not in added]


def test_every_setting_of_the_makefile_is_said():
    formats = text_of(REPOSITORY / "reports" / "methodology" / "formats.md")
    table = formats.partition("## Settings of make")[2].partition("\n## ")[0]
    assert not [name for name in SETTINGS if f"`{name}`" not in table]


def test_the_readme_is_short_and_in_order():
    text = text_of(REPOSITORY / "README.md")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "One picture",
        "Three commands",
        "Your kernel",
        "Did it get slower?",
        "What batch size?",
        "Links",
    ]
    assert len(text.split()) < 2000


def test_each_part_of_the_methodology_begins_with_its_question_and_its_words():
    index = text_of(REPOSITORY / "reports" / "methodology" / "README.md")
    for document in (REPOSITORY / "reports" / "methodology").glob("[a-z]*.md"):
        title, question, words, *_ = text_of(document).split("\n\n")
        assert title.startswith("# ")
        assert re.fullmatch(r"\*\*[^*]+\?\*\*", question), document.name
        assert question.strip("*") in index
        assert words.startswith("Words that this document uses")


@each_document
def test_the_gpu_half_is_never_said_to_run(document):
    assert not re.search(
        r"GPU kernels? (runs?|ran)\b|runs? on (a|every) GPU and", text_of(document)
    )


def test_the_figures_are_those_of_the_stored_runs(capsys):
    assert readme.readme(check=True) == ExitCode.CLEAN, capsys.readouterr().out


def marks():
    for document in DOCUMENTS:
        for kind, folder in re.findall(
            r"^<!-- shown: (\w+) ([^ ;]+)", text_of(document), re.MULTILINE
        ):
            yield kind, REPOSITORY / folder


def test_what_the_marks_name_is_of_clean_checkouts():
    folders = {folder for kind, folder in marks() if kind in ("problem", "machine")}
    assert folders
    for folder in folders:
        assert run_json.load(folder).machine["revision"]["dirty"] is False
    for folder in {folder for kind, folder in marks() if kind == "same_code"}:
        stored = json.loads(
            (folder / selftests.A_A_FILE_NAME).read_text(encoding="utf-8")
        )
        assert stored["machine"]["revision"]["dirty"] is False


def test_the_self_test_is_of_a_clean_checkout_and_whole():
    folders = {folder for kind, folder in marks() if kind == "selftest"}
    assert len(folders) == 1
    stored = selftests.load(folders.pop())
    assert stored.about["machine"]["revision"]["dirty"] is False
    assert stored.sessions == 20 and not stored.about["ended"]


@each_document
def test_tables_of_figures_stand_between_marks(document):
    """A table with a time, a speed-up or a share is copied: it needs a mark."""
    text = re.sub(
        r"<!-- shown: .*?<!-- end -->", "", text_of(document), flags=re.DOTALL
    )
    copied = [
        line
        for line in without_code(text).splitlines()
        if line.startswith("|") and re.search(r"\d (µs|ms)\b|\d\.\d+x|\d\.\d+%", line)
    ]
    assert not copied
    blocks = re.findall(r"^```text\n.*?^```$", text, re.MULTILINE | re.DOTALL)
    assert not blocks
