"""`batchline advise --train`: what a user's training gives, and what is said of one that
can't be trained.
"""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchline.__main__ import main
from batchline.bench import own_study
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure.machine.state import NoGuard
from batchline.bench.measure.worker.task import WorkerLost
from batchline.bench.noise import advisor
from batchline.bench.noise.experiments import all_reduce, own_survey, own_training
from batchline.bench.own_study import Asked, Effort
from batchline.bench.statuses import CRASHED
from batchline.bench.store import run_json
from tests import digits_by_convolution, own_trainings
from tests.test_noise_ranks import timed

FILE = Path(own_trainings.__file__)
SMALL = Effort((0, 4), 4, 0.01, 1.0, 2)


class InThisProcess:
    """Answers as a worker does, without one."""

    def call(self, method, function, train, *arguments):
        module, _, name = function.partition(":")
        call = getattr(importlib.import_module(module), name)
        answer = call(train, *arguments, "cpu", NoGuard(), lambda what: None)
        return json.loads(json.dumps(answer))

    def close(self):
        """Nothing is to be ended."""


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Each test makes its trainings anew, and leaves the interpreter as it was."""
    argv, path = list(sys.argv), list(sys.path)
    yield
    sys.argv[:], sys.path[:] = argv, path
    for function in (own_training.load, own_survey._stepping, own_survey._looked):
        function.cache_clear()


@pytest.fixture
def here(monkeypatch):
    """The command's worker is this process, and little is looked at."""
    from batchline.bench.measure.worker import isolation

    monkeypatch.setattr(isolation, "Isolation", lambda *_: InThisProcess())
    monkeypatch.setitem(own_study.EFFORTS, "smoke", SMALL)


def asked(name):
    return Asked(InThisProcess(), f"{FILE}:{name}")


def measured(name, effort=SMALL, batch=None):
    return own_study.measure(asked(name), effort, batch, lambda line: None)


def advise_command(name, tmp_path, *options):
    return main(
        [
            *("advise", "--train", f"{FILE}:{name}", "--profile", "smoke"),
            *("--device", "cpu", "--out", str(tmp_path), *options),
        ]
    )


def test_a_training_of_the_users_is_advised_on_and_kept(here, tmp_path, capsys):
    assert advise_command("make", tmp_path, "--batch", "16") == ExitCode.CLEAN
    printed = capsys.readouterr()
    assert "Sequential of own_trainings.py:make, SGD" in printed.out
    assert re.search(r"Train at batch \d+ \(95% interval|No batch size", printed.out)
    assert "200" in printed.out and "16 (current)" in printed.out
    folder = re.search(r"^stored: (\S+)$", printed.err, re.MULTILINE)[1]
    assert main(["advise", "--run", folder, "--batch", "16"]) == ExitCode.CLEAN
    again = capsys.readouterr().out
    assert again == printed.out


@pytest.mark.parametrize("name", own_trainings.WRONG)
def test_what_can_not_be_trained_is_one_line(here, tmp_path, capsys, name):
    assert advise_command(name, tmp_path) == ExitCode.USAGE
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if "Warning" not in line]
    assert "Traceback" not in printed.err and not printed.out
    function = getattr(own_trainings, name, None)
    line = function.__code__.co_firstlineno + 1 if function else ""
    assert own_trainings.WRONG[name].format(line=line) in said[-1]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--train", "nowhere.py:make"], "there is no file nowhere.py"),
        (["--train", "make"], "as my_script.py:make, not 'make'"),
        (["--train", f"{FILE}:make", "--run", "x"], "leave --run out"),
        (["--ranks", "4"], "--ranks is of a training of your own"),
        (["--validate"], "--validate is of a training of your own"),
        (["--train", f"{FILE}:make", "--batch", "201"], "more than the 200 samples"),
        (["--train", f"{FILE}:make", "--profile", "evidence"], "has the profiles"),
    ],
)
def test_bad_options_are_one_line(here, capsys, options, words):
    assert main(["advise", "--device", "cpu", *options]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("text", ["import nowhere_at_all", "def make(:", "1 / 0"])
def test_a_file_that_can_not_be_imported_is_one_line(here, tmp_path, capsys, text):
    (tmp_path / "broken.py").write_text(text)
    train = f"{tmp_path / 'broken.py'}:make"
    assert main(["advise", "--train", train, "--device", "cpu"]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "importing broken.py failed" in line


@pytest.mark.parametrize(
    "name", ["with_adam", "of_a_function", "of_a_list", "of_a_dict", "with_dropout"]
)
def test_any_kind_of_data_gives_steps_and_noise(name):
    found = measured(name, Effort((0, 4), 4, 0.005, 0.002, 1))
    assert found["notes"] == [] and len(found["steps"]) >= 3
    points = [point["updates"] for point in found["points"]]
    assert points == ([0, 4] if name == "with_adam" else [0])
    assert found["samples"] == (None if name == "of_a_function" else 200)
    assert found["train_batch"] == (16 if name == "with_adam" else 32)


def test_what_is_assumed_of_a_loss_is_said():
    (mask,) = asked("with_mask").whole("describe")["notes"]
    assert "is not the mean of its samples' own losses" in mask
    (random,) = asked("drawing").whole("describe")["notes"]
    assert "draws random numbers" in random
    (unseen,) = asked("of_unseen_batches").whole("describe")["notes"]
    assert "no tensors with one row per sample" in unseen
    assert asked("of_encodings").whole("describe")["notes"] == []


def test_what_a_user_vouches_for_is_measured_and_said():
    loss, model = asked("by_row_on_my_word").whole("describe")["notes"]
    assert "a mean over independent samples, though a batch twice over" in loss
    assert "samples_apart=True says so, though 2 is given other values for" in model


@pytest.mark.parametrize("file", [FILE, Path(digits_by_convolution.__file__)])
def test_the_noise_is_that_of_a_loop_over_samples_in_fp64(file):
    train = f"{file}:make"
    answer = Asked(InThisProcess(), train).whole("look", 3, 16, 32, 4)
    training = own_training.load(train, "cpu")
    looked = own_survey._looked(training, 16)
    model = looked.trainee.model.double()
    pairs = []
    for number in range(4):
        x, y = training.draw(32, 1000 + 3 * 4 + number)
        gradients = []
        for place in range(32):
            model.zero_grad()
            one = slice(place, place + 1)
            training.loss(model, (x[one].double(), y[one])).backward()
            rows = [p.grad.flatten() for p in model.parameters()]
            gradients.append(torch.cat(rows))
        gradients = torch.stack(gradients)
        n, m = gradients.square().sum(1).mean(), gradients.mean(0).square().sum()
        pairs.append((float(n - m) * 32 / 31, float(32 * m - n) / 31))
    assert answer["estimate"]["pairs"] == [
        pytest.approx(pair, rel=1e-4, abs=1e-6) for pair in pairs
    ]


def test_looking_changes_nothing_of_the_training():
    weights = []
    for points in ((0, 2, 6), (6,)):
        own_training.load.cache_clear()
        for updates in points:
            asked("make").whole("look", updates, 16, 8, 2)
        training = own_training.load(f"{FILE}:make", "cpu")
        model = own_survey._looked(training, 16).trainee.model
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*weights)


def test_the_users_model_is_left_as_it_was():
    training = own_training.load(f"{FILE}:make", "cpu")
    before = [one.detach().clone() for one in training.model.parameters()]
    measured("make")
    asked("make").whole("train", 16, 2.0, 0, 0.5, 20, 64)
    for was, one in zip(before, training.model.parameters()):
        assert torch.equal(was, one) and one.grad is None
    assert not training.optimizer.state


def test_the_wall_is_found_by_halving_and_no_larger_batch_is_advised():
    found = measured("up_to_20")
    assert found["largest_fit"] == 20
    assert [row["batch"] for row in found["not_run"]] == [32, 24, 22]
    assert all("does not fit" in row["why"] for row in found["not_run"])
    advice = advisor.advice(found, advisor.middle(found))
    assert advice.largest_that_fits == 20 and (advice.best_batch or 0) <= 20


class LosingWorkers(InThisProcess):
    """Is killed by each batch above 20, as by a container's limit."""

    def call(self, method, function, train, *arguments):
        if function.endswith(":try_batch") and arguments[0] > 20:
            raise WorkerLost(
                CRASHED, "its process was ended by SIGKILL", "", "a step of 32"
            )
        return super().call(method, function, train, *arguments)


def test_a_process_that_is_killed_is_a_row():
    ask = Asked(LosingWorkers(), f"{FILE}:make")
    found = own_study.measure(ask, SMALL, None, lambda line: None)
    assert found["largest_fit"] == 20
    first, *_ = found["not_run"]
    assert first["batch"] == 32 and "SIGKILL (a step of 32)" in first["why"]
    assert [row["batch"] for row in found["steps"]] == [1, 2, 4, 8, 16, 20]


class StoppingAtSecondLook(InThisProcess):
    def call(self, method, function, train, *arguments):
        if function.endswith(":look") and arguments[0]:
            raise KeyboardInterrupt
        return super().call(method, function, train, *arguments)


def test_what_was_measured_before_ctrl_c_is_kept():
    ask = Asked(StoppingAtSecondLook(), f"{FILE}:make")
    found = own_study.measure(ask, SMALL, None, lambda line: None)
    assert [point["updates"] for point in found["points"]] == [0]
    assert own_study.was_stopped(found)


def test_it_is_validated_and_ranks_are_counted(here, tmp_path, capsys, monkeypatch):
    effort = Effort((0, 30), 4, 0.005, 1.0, 2)
    monkeypatch.setitem(own_study.EFFORTS, "smoke", effort)
    monkeypatch.setattr(all_reduce, "measure", lambda *_: timed())
    options = ("--validate", "--ranks", "8")
    assert advise_command("make", tmp_path, *options) == ExitCode.CLEAN
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "times the optimizer's own" in text and "over 8 ranks is not measured" in text
    )
    (study,) = tmp_path.glob("*/study.json")
    sweep = json.loads((study.parent / own_study.SWEEP_FILE_NAME).read_text())
    (found,) = run_json.load_study(study.parent).noise.workloads.values()
    target = sweep["grid"]["target_loss"]
    assert target == found["points"][-1]["train_loss"]
    batches = {run["batch"] for run in sweep["runs"]}
    assert batches == {2, 8, 32, 128} and not sweep["partial"]
    reached = [run for run in sweep["runs"] if run["curve"]["train_loss"][-1] <= target]
    assert {run["batch"] for run in reached} == batches


class StoppingAtBatch8(InThisProcess):
    def call(self, method, function, train, *arguments):
        if arguments[0] == 8:
            raise KeyboardInterrupt
        return super().call(method, function, train, *arguments)


def test_the_batches_that_were_trained_before_ctrl_c_are_kept():
    found = measured("make", Effort((0, 20), 2, 0.005, 1.0, 1))
    ask = Asked(StoppingAtBatch8(), f"{FILE}:make")
    sweep = own_study.train_to_target(ask, found, None, SMALL, lambda line: None)
    assert sweep["partial"] and {run["batch"] for run in sweep["runs"]} == {2}


def test_ranks_that_can_not_be_timed_leave_the_rest(
    here, tmp_path, capsys, monkeypatch
):
    def fail(*_):
        raise UsageError("the all-reduce could not be timed over gloo: no network")

    monkeypatch.setattr(all_reduce, "measure", fail)
    assert advise_command("make", tmp_path, "--ranks", "8") == ExitCode.CLEAN
    text = " ".join(capsys.readouterr().out.split())
    assert "No advice on ranks: the all-reduce could not be timed over gloo" in text


def test_a_validation_needs_an_optimizer_and_a_loss_to_reach():
    with pytest.raises(UsageError, match="without an optimizer"):
        own_study.train_to_target(
            asked("with_mask"), {"has_optimizer": False}, None, SMALL, print
        )
    at_once = {
        "has_optimizer": True,
        "points": [{"updates": 0, "train_loss": 1.0}],
    }
    with pytest.raises(UsageError, match="is 1 already"):
        own_study.train_to_target(asked("make"), at_once, 2.0, SMALL, print)


@pytest.mark.slow
def test_the_whole_way_with_workers_that_are_killed(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "batchline", "advise", "--device", "cpu"),
            *("--train", f"{FILE}:killed_above_20", "--profile", "smoke"),
            *("--out", str(tmp_path)),
        ],
        cwd=FILE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "batch 32: does not fit: its process was ended by SIGKILL" in done.stderr
    assert "The largest batch that fits is 20" in done.stdout
    assert list(tmp_path.glob("*/study.json"))
