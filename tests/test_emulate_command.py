"""`batchline emulate` executes what is named, says what is wrong with it and where, and
refuses what it doesn't know in a line.
"""

from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import pytest

from batchline.bench import commands
from batchline.bench.commands import _emulation_choice as choice
from batchline.bench.commands import _emulation_tables as show
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.emulated import mutant_table
from batchline.bench.measure.emulated.executed import Executed, Fault
from batchline.bench.measure.emulator.counts import Counts, LineCounts
from batchline.bench.measure.emulator.subjects import Subject

pytestmark = pytest.mark.commands

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
    row = Executed(SUBJECT, None, (RACE,), ("late", "early"), COUNTS)
    assert not row.is_right
    (table,) = show.tables([row])
    assert "shared-race" in table and "1.50x" in table and "2.00x" in table
    (said,) = show.wrong([row], each=True)
    assert said.endswith("[late only]") and said.startswith(str(SUBJECT))
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


def test_the_same_finding_of_many_probes_is_said_once():
    rows = [
        Executed(replace(SUBJECT, probe=f"probe_{number}"), None, (RACE,), ("late",))
        for number in range(9)
    ]
    (said,) = show.wrong(rows, each=False)
    assert said.count("shared-race") == 1 and "[late only]" not in said
    assert "9 subjects (probe_0 float16 sm_90, " in said and "probe_3" not in said
    assert len(list(show.wrong(rows, each=True))) == 9


def test_wrong_results_are_named_up_to_a_few():
    rows = [Executed(SUBJECT, f"off by {number}") for number in range(5)]
    (said,) = show.wrong(rows, each=False)
    assert "ragged float16 sm_90: off by 0" in said and "off by 3" not in said
    assert "and 2 more with a wrong result" in said


def test_speed_is_of_one_process_and_of_all():
    done = [Executed(SUBJECT, instructions=3_000_000, machine_s=1.0)] * 2
    said = " ".join(show.speeds_table({"a grid": done}, 2).split())
    assert "one process" in said and "all 2" in said
    assert "6,000,000 2.00 3.0 M 6.0 M" in said


FOUND = SimpleNamespace(
    ops={
        "bmm": SimpleNamespace(
            name="bmm", scenarios={"a": SimpleNamespace(sizes={"M": 1, "N": 1, "K": 1})}
        ),
        "multi": SimpleNamespace(
            name="multi",
            scenarios={
                "a": SimpleNamespace(sizes={"w": 1}),
                "b": SimpleNamespace(sizes={"x": 1, "y": 1}),
            },
        ),
    }
)


def sizes_of(shape, op="bmm", **options):
    options = {"what": [], "probe": None, "dtype": None} | options
    variant = SimpleNamespace(id=f"{op}/it", op=op, dtypes=("float16",))
    return choice.sizes_asked_for(FOUND, Namespace(shape=shape, **options), [variant])


def test_sizes_have_the_names_of_the_op():
    assert sizes_of("M=3, B=2,N=0,K=5") == "M=3,B=2,N=0,K=5"
    assert sizes_of("B=2,w=7,b=9", "multi") == "B=2,w=7,b=9"
    assert sizes_of(None) is None


@pytest.mark.parametrize(
    "shape, options, line",
    [
        ("B=1,M=2,N=3,Q=4", {}, "dimensions of bmm are B, M, N, K: not Q"),
        ("B=1,M=2,N=3", {}, "dimensions of bmm are B, M, N, K: no K is given"),
        ("B=1,M=-1,N=3,K=4", {}, "M=-1: a size is 0 or more"),
        ("B=1,M=2.5,N=3,K=4", {}, "'M=2.5' is no size"),
        ("8", {}, "'8' is no size: B=4 is one"),
        ("B=1,B=2", {}, "gives B twice"),
        ("B=1", {"op": "multi"}, "B and a size for each parameter"),
        ("B=1,M=2,N=3,K=4", {"probe": "ragged"}, "give one of them"),
        ("B=1,M=2,N=3,K=4", {"what": ["bmm/it/a/float16/B8"]}, "its own shape"),
        ("B=1,M=2,N=3,K=4", {"dtype": "int8"}, "bmm/it takes float16"),
    ],
)
def test_what_is_no_shape_is_a_line(shape, options, line):
    with pytest.raises(UsageError, match=line):
        sizes_of(shape, **options)


@compiled_with
def test_mutants_of_a_kernel_are_kept_in_the_table(tmp_path, monkeypatch, capsys):
    pinned = tmp_path / "reports" / "baselines" / "mutants.json"
    monkeypatch.setattr(mutant_table, "PINNED", pinned)
    code = emulate("grad_reduce/triton_one_launch", "--mutants", "1", "--pin")
    said = capsys.readouterr().out
    assert code == ExitCode.CLEAN, said
    assert "reports/baselines/mutants.json has 2 of these 2 subjects" in said
    names = [part.subjects for part in mutant_table.read().parts]
    assert sorted(names) == [
        (f"grad_reduce/triton_one_launch float16 ragged sm_{architecture}",)
        for architecture in (80, 90)
    ]


class OnePool:
    """Does each job at once, in this process."""

    def each(self, work, jobs):
        return {job: work(*job) for job in jobs}, []


@compiled_with
def test_a_shape_that_is_too_large_is_a_line():
    variant = SimpleNamespace(id="bmm/triton_tiled", backend="triton")
    options = Namespace(arch=[90], dtype=None, probe=None)
    with pytest.raises(UsageError, match="B=9,M=4096,N=4096,K=64 is .* are emulated"):
        choice.choose(OnePool(), options, [variant], {}, "B=9,M=4096,N=4096,K=64")
