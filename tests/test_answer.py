"""The answer: what it says, and when it says what is new."""

from dataclasses import replace

from batchline.bench.report.findings import Findings
from batchline.bench.report.sections import choices
from batchline.bench.statuses import FAILED, INVALID
from batchline.bench.store.records import Record
from tests.noise_evidence import noise, point, workload
from tests.pages import a_run, everything, timed, with_records


def _answer(run, previous=None):
    answer = choices.summarize(run, Findings(run), previous)
    return [(subject, list(sentences)) for subject, sentences in answer.items]


def test_the_answer_says_what_is_new_only_against_a_run_of_the_same_machine_and_profile():
    run = a_run()
    slower = replace(
        run, records=(replace(run.records[0], samples_s=(9e-6,) * 9), *run.records[1:])
    )
    assert [lead for lead, _ in _answer(run, slower)][-1] == "Against the last run"
    other_machine = replace(
        run, machine={**run.machine, "device_name": "Other CPU", "cpu": "Other CPU"}
    )
    for previous in (None, a_run(profile="full"), other_machine):
        assert "Against the last run" not in [
            lead for lead, _ in _answer(run, previous)
        ]


def test_the_answer_names_the_crossover_the_batch_the_claims_and_what_broke():
    said = dict(_answer(everything()))
    assert "fast overtakes torch_bmm at B = " in said["From which batch"][0]
    assert said["Batch size for digits"][0].startswith("Train at batch")
    assert [words.count("“") for words in said["The article's claims"]] == [1] * 4
    assert said["Broken"] == ["bmm/broken (failed)"]


def test_only_a_change_of_the_choice_is_told():
    """Of two that are slower than the third at every batch it does not matter where
    they cross.
    """
    run = with_records(
        a_run(),
        *(
            timed(name, batch, median_s)
            for name, times in (
                ("torch_bmm", (1e-6, 1e-6)),
                ("slow", (5e-6, 9e-6)),
                ("slower", (9e-6, 5e-6)),
            )
            for batch, median_s in zip((8, 16), times)
        ),
    )
    assert "From which batch" not in dict(_answer(run))


def test_the_first_are_named_and_the_rest_counted():
    failed = [
        Record("bmm", f"broken_{number}", "tiny_16", "float32", 4, FAILED)
        for number in range(5)
    ]
    assert dict(_answer(with_records(a_run(), *failed)))["Broken"][2:] == [
        "bmm/broken_2 (failed)",
        "And 2 more.",
    ]


def test_a_busy_machine_is_said_and_breaks_nobody():
    busy = Record(
        "bmm",
        "fast",
        "tiny_16",
        "float32",
        4,
        INVALID,
        "the machine was busy: others took 43% of the cores",
    )
    said = dict(_answer(with_records(a_run(), busy)))
    assert "Broken" not in said and said["The machine"][0].startswith(
        "It was busy or throttled during 1 of "
    )


def test_a_workload_without_an_advice_says_why():
    unmeasured = noise(digits=workload([point(0, 0, 10.0)], steps=[]) | {"steps": []})
    assert dict(_answer(a_run(noise=unmeasured, sweep=None)))["Batch size for digits"][
        0
    ].startswith("No advice: ")
