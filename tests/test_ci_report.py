"""What GitHub is shown: annotations, the step's summary and its limit, and both of an
ordinary run.
"""

import html
import re
from dataclasses import replace

import pytest

from batchline.bench.commands import regress as regress_command
from batchline.bench.report import (
    RunReport,
    of_commands,
    of_run,
    regression,
)
from batchline.bench.report.document import Place
from batchline.bench.report.render import github
from batchline.bench.report.render.escaping import markdown
from batchline.bench.statuses import FAILED, WRONG
from batchline.bench.texts import one_line
from tests.comparisons import (
    BROKEN_CASES,
    BUSY_CASE,
    HOSTILE,
    IMPOSSIBLE,
    comparison,
    hostile_comparison,
    judged,
    run,
)
from tests.test_compiled_changes import moved


def in_ci(a_run):
    """The summary of the step for a run, and its problems."""
    return github.render(RunReport(a_run).document(Place.CI)), list(
        of_run.problems(a_run)
    )


def undone(command):
    """(level, title, message) as GitHub's runner reads a workflow command."""
    level, title, message = re.fullmatch(
        r"::(\w+) title=([^:,]*)::([^\r\n]*)", command
    ).groups()
    for code, character in (
        ("%2C", ","),
        ("%3A", ":"),
        ("%0A", "\n"),
        ("%0D", "\r"),
        ("%25", "%"),
    ):
        title, message = title.replace(code, character), message.replace(
            code, character
        )
    return level, title, message


def test_an_annotation_says_what_it_was_given():
    (command,) = github.annotations(
        "warning", [("REGRESSED: a, b", "100%\nof it: ::error::")]
    )
    assert command == "::warning title=REGRESSED%3A a%2C b::100%25%0Aof it: ::error::"
    assert undone(command) == ("warning", "REGRESSED: a, b", "100%\nof it: ::error::")


def test_text_of_others_is_text_in_a_workflow_command():
    problems = [
        *regression.problems(hostile_comparison()),
        *of_run.problems(run(("other", 4, FAILED, HOSTILE))),
        (HOSTILE, HOSTILE),
    ]
    for command, (title, message) in zip(
        github.annotations("error", problems), problems, strict=True
    ):
        level, shown_title, shown = undone(command)
        assert (
            level == "error"
            and one_line(title) == one_line(shown_title)
            and one_line(message) == one_line(shown)
        )
        assert command.isprintable() and "<script>" in shown


@pytest.mark.parametrize(
    "count, last", [(9, "8"), (10, "9"), (11, "and 2 more"), (300, "and 291 more")]
)
def test_ten_annotations_at_most_and_the_last_says_how_many_more(count, last):
    shown = [
        undone(command)[1]
        for command in github.annotations(
            "error", [(str(i), "why") for i in range(count)]
        )
    ]
    assert (
        len(shown) == min(count, github.MOST) and shown[0] == "0" and shown[-1] == last
    )


def test_an_unknown_level_is_refused():
    with pytest.raises(
        ValueError, match="unknown level 'fatal': choose from error, warning, notice"
    ):
        github.annotations("fatal", [])


def test_annotations_are_printed_where_github_reads_them_only(monkeypatch, capsys):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    github.announce("error", [("a", "b")])
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    github.announce("error", [("a", "b")])
    assert capsys.readouterr().out == "::error title=a::b\n"


def test_the_summary_is_appended_to_the_steps_file(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    github.step_summary("nowhere")
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    github.step_summary("# one\n")
    github.step_summary("two ≤")
    assert path.read_text(encoding="utf-8") == "# one\n\ntwo ≤\n\n"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    github.step_summary("lost")  # costs a line, not the verdict
    assert "can't write the step's summary (Is a directory)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "before", [0, 5000, github.SUMMARY_BYTES - 10, github.SUMMARY_BYTES + 10]
)
def test_a_summary_over_github_s_limit_is_cut_at_a_line_and_says_so(
    monkeypatch, tmp_path, before
):
    path = tmp_path / "summary.md"
    path.write_bytes(b"x" * before)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    line = "| ≤ a row |"
    github.step_summary(
        "<details><summary>s</summary>\n\n" + f"{line}\n" * 80000 + "</details>"
    )
    written = path.read_bytes()
    assert len(written) <= max(before, github.SUMMARY_BYTES)
    if before < github.SUMMARY_BYTES - 10:
        text = written.decode("utf-8")[before:]
        assert len(written) > github.SUMMARY_BYTES - 200 and text.rstrip().endswith(
            "among the run's files."
        )
        assert text.count("<details>") == text.count("</details>") == 1
        assert set(text.splitlines()[2:-4]) == {line}


def test_markdown_shows_a_cell_as_it_is():
    assert (
        markdown("a|b\n<i>_x_ y_z *k*")
        == "a&#124;b &lt;i&gt;&#95;x&#95; y_z &#42;k&#42;"
    )


def test_a_clean_run_has_a_summary_and_no_problem():
    shown, problems = in_ci(
        run(
            audit=[
                IMPOSSIBLE | {"whose": "control"},
                IMPOSSIBLE | {"impossible": False},
            ]
        )
    )
    assert problems == []
    assert shown.startswith(
        "**2 cases: 1 measured, 1 not timed here; profile smoke on Some CPU**\n"
    )
    assert (
        "| 4 " in shown
        and "2.50 µs" in shown
        and "needs CUDA" in shown
        and "20.0 GB/s" in shown
    )
    assert shown.count("<details>") == shown.count("</details>") == 3
    assert re.findall("^#.*", shown, re.MULTILINE) == ["### Which wins where"]


def test_a_runs_problems_are_one_a_variant_and_reason_the_worst_first():
    shown, problems = in_ci(run(*BROKEN_CASES, audit=[IMPOSSIBLE]))
    assert problems == [
        ("wrong: bmm/off", "bmm/off/tiny_16/float32/B4: on ragged: no"),
        ("failed: bmm/bad", "bmm/bad/tiny_16/float32/B4 and 1 more: ValueError: B"),
        ("hung: bmm/slow", "bmm/slow/tiny_16/float32/B4: not done after 20 s"),
        (
            "not reached: bmm/late",
            "bmm/late/tiny_16/float32/B4: the run ended before it",
        ),
        (
            "impossible statistics: grad_stats/rounded",
            "bfloat16, large mean: n is negative in 7 of 16",
        ),
    ]
    above, folded = shown.split("<details>", 1)
    assert all(
        word in above
        for word in ("ValueError: B", "not done after 20 s", "n is negative in 7 of 16")
    )
    assert (
        "float16 only" in folded
        and "float16 only" not in above
        and "ValueError" not in folded
    )


def test_a_machine_that_was_busy_is_no_problem_of_a_variant():
    shown, problems = in_ci(run(BUSY_CASE))
    assert (
        problems == []
        and "other processes took 43% of the cores" in shown.partition("<details>")[2]
    )


def test_a_run_that_was_stopped_or_measured_nothing_is_a_problem():
    assert in_ci(run(partial=True))[1][0][0] == "Stopped before the end"
    measured = run()
    nothing = replace(measured, ceilings=None, records=measured.records[1:])
    assert in_ci(nothing)[1] == [
        ("Nothing was measured", "1 cases: 1 not timed here; profile smoke on Some CPU")
    ]


def test_text_of_others_is_text_in_a_runs_summary():
    timed = run().records[0]
    assert (
        "<b>" not in in_ci(replace(run(), records=(replace(timed, variant="<b>"),)))[0]
    )
    shown, _ = in_ci(
        run(("<b>x|`y`", 4, WRONG, HOSTILE), audit=[IMPOSSIBLE | {"failed": HOSTILE}])
    )
    assert set(re.findall(r"<[^>]*>", shown)) == {
        "<details>",
        "<summary>",
        "</summary>",
        "</details>",
    }
    assert "<b>x|`y`" not in shown and "bmm/<b>x|`y`" in html.unescape(shown)
    assert (
        html.unescape(shown).count(
            "<script>alert(\"1\")</script> 'q' & | `c` **b** [l](http://x) @all"
        )
        == 2
    )
    widths = [
        len({line.count("|") for line in block.splitlines()})
        for block in shown.split("\n\n")
        if block[0] == "|"
    ]
    assert widths and set(widths) == {1}


def test_what_moved_in_the_compiled_code_is_an_annotation():
    (command,) = github.annotations(
        "error", of_commands.move_annotations([moved(registers=168)])
    )
    assert (
        undone(command)[1].startswith("codegen: bmm/triton_tiled _kernel")
        and "registers 110 → 168" in command
    )


def test_a_regression_is_an_annotation_that_names_the_case_and_the_change():
    (command,) = github.annotations(
        "error",
        regression.problems(comparison(judged("REGRESSED"), judged("NEW", 2))),
    )
    assert undone(command)[1:] == (
        "REGRESSED bmm/tiled/tiny_16/float16/B1",
        "20.0 µs → 22.0 µs; " "+10.0% (+9.0% to +11.0%); floor 1.5% (A/A); 10 pairs",
    )


def test_a_comment_is_no_longer_than_github_takes():
    body = github.comment(
        "<details><summary>s</summary>\n\n" + "| ≤ a row |\n" * 9000 + "</details>"
    )
    assert github.COMMENT_BYTES - 200 < len(body.encode()) <= github.COMMENT_BYTES
    assert body.count("<details>") == body.count("</details>") == 1
    assert github.comment("whole\n") == "whole\n"


def test_a_comparison_is_stored_with_a_body_for_a_pull_request(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    regress_command._publish(comparison(judged("REGRESSED")), tmp_path)
    body = (tmp_path / regress_command.COMMENT_NAME).read_text(encoding="utf-8")
    assert body.startswith("## Regressions\n\n**1 of 1 case REGRESSED: ")
    assert body.rstrip() == (tmp_path / "summary.md").read_text("utf-8").rstrip()
    assert (
        f"gh pr comment --body-file {tmp_path / regress_command.COMMENT_NAME}"
        in capsys.readouterr().out
    )
