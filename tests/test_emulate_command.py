"""`batchline emulate` executes what is named, says what is wrong with it and where, and
refuses what it doesn't know in a line.
"""

import pytest

from batchline.bench import commands
from batchline.bench.commands import _emulation_tables as show
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.emulated.executed import Executed, Fault
from batchline.bench.measure.emulator.counts import Counts, LineCounts
from batchline.bench.measure.emulator.subjects import Subject

KERNEL = "grad_reduce/triton_two_stage"
SUBJECT = Subject(KERNEL, "float16", "ragged", 90)
COUNTS = Counts(100, {"float": 60, "load": 40}, 30, 20, 8, 8, 640, 320, 0)
RACE = Fault("shared-race", "a.py:7", "shared-race at a.py:7: …", True, ("late",))
compiled_with = pytest.mark.skipif(
    why_cannot_compile("triton") is not None, reason="there is no Triton"
)


def emulate(*words):
    _, module, options = commands.parse(["emulate", *words])
    return module.run(options)


@compiled_with
def test_one_subject_is_executed_with_its_lines(capsys):
    code = emulate(
        KERNEL, "--arch", "90", "--dtype", "float16", "--probe", "ragged", "--lines"
    )
    said = capsys.readouterr().out
    assert code == ExitCode.CLEAN, said
    assert f"{KERNEL} float16 sm_90\n" in said
    assert "ragged" in said and " right " in said
    assert "instructions" in said and ".py:" in said
    assert "not right" not in said


@compiled_with
def test_a_case_is_executed_by_its_id_and_a_declined_one_says_why(capsys):
    case = "bmm/triton_warp_specialized/tiny_4/float16/B2"
    assert emulate(case, "--arch", "80") == ExitCode.NOT_MEASURED
    said = capsys.readouterr().out
    assert "1 declined: " in said and "1 subject: 1 declined" in said


@pytest.mark.parametrize(
    "words, line",
    [
        (["bmm/trition_tiled"], r"did you mean bmm/triton_tiled\?"),
        (["bmm/torch_bmm"], "its backend is torch"),
        (["bmm/triton_tiled/square_12/float16/B8"], "no scenario 'square_12'"),
        (["bmm/triton_tiled/square_128/int8/B8"], "not that dtype"),
        (["bmm/triton_tiled/square_128/float16/eight"], "is no case id"),
        ([KERNEL, "--probe", "raged"], r"no probe 'raged' \(did you mean ragged\?\)"),
        ([KERNEL, "--dtype", "int8"], "no dtype 'int8' here: float"),
    ],
    ids=["a name", "no kernel", "scenario", "dtype", "batch", "probe", "no dtype"],
)
@compiled_with
def test_what_is_not_known_is_a_line(words, line):
    with pytest.raises(UsageError, match=line):
        emulate(*words)


def test_a_fault_is_shown_with_the_schedules_that_show_it():
    row = Executed(SUBJECT, None, (RACE,), COUNTS)
    assert not row.is_right
    (table,) = show.tables([row])
    assert "shared-race" in table and "1.50x" in table and "2.00x" in table
    (said,) = show.wrong([row], 3)
    assert said.endswith("[late]") and said.startswith(str(SUBJECT))
    assert "0 of 1 right" in " ".join(show.summary([row]).split())


def test_a_row_of_the_summary_has_the_worst_of_its_subjects():
    other = Executed(SUBJECT, counts=COUNTS + COUNTS, seconds=1.0)
    table = show.summary([Executed(SUBJECT, counts=COUNTS), other])
    assert "2 right" in table and "300" in table and "1.50x" in table


def test_lines_have_their_share():
    table = show.lines_table(
        [LineCounts("a.py:7", 75, 8, 4, 0, 0), LineCounts("a.py:9", 25, 0, 0, 6, 2)]
    )
    assert "75.0%" in table and "2.00x" in table and "3.00x" in table
