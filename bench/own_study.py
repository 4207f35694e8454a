"""A training of the user's own, looked at and trained: what `batchline advise --train`
measures (bench.noise.experiments.own_survey), piece by piece in a worker.

A batch that ends the worker, or for which memory runs out, is one row. The largest that
fits is found by doubling, and then by halving what is between one that fits and one
that does not.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.folders import new_folder, remove_if_empty
from batchline.bench.noise import advisor
from batchline.bench.noise.rank_scaling import all_reduce_of
from batchline.bench.noise.ranks import AllReduce, Ranks, advise_ranks
from batchline.bench.noise.step_time import StepTimes
from batchline.bench.stats import fits
from batchline.bench.stats.noise_scale import BOUNDED
from batchline.bench.statuses import HUNG, OUT_OF_MEMORY
from batchline.bench.stopping import put_off
from batchline.bench.store import files, rank_times, run_json
from batchline.bench.store.records import Noise, Study

Say = Callable[[str], None]
SWEEP_FILE_NAME = "trained-to-target.json"
_STOPPED = "stopped by Ctrl-C"
_FUNCTIONS = "batchline.bench.noise.experiments.own_survey:"
_DEADLINE_S = 300  # for each step that a worker tells
_USUAL_BATCH = 32
_MOST_BATCH = 2**20
_FIRST_FAILURES = 3  # of batches of 1, 2 and 4: some models take no batch so small
_FEWEST_BATCHES = 3  # from which memory's law follows, however slow they are
_NEAR_WALL = 8  # halving ends where what is left is this share of what fits
_NOISE_BATCH, _METERED_S = 256, 0.25  # the most, and the longest plain step of one
_LEAST_NOISE_BATCH = 4


@dataclass(frozen=True)
class Effort:
    """How much to look at.

    Args:
        updates: the points of training at which the noise is taken.
        batches: independent batches at each of them.
        timed_s: for how long each batch's step is timed.
        longest_s: a larger batch is not tried where a step takes longer.
        seeds: of each batch that is trained to a target.
    """

    updates: tuple[int, ...]
    batches: int
    timed_s: float
    longest_s: float
    seeds: int


EFFORTS = {
    "smoke": Effort((0, 10), 8, 0.05, 0.2, 1),
    "quick": Effort((0, 30, 120, 300), 16, 0.4, 2.0, 3),
    "full": Effort((0, 100, 400, 1600), 32, 2.0, 10.0, 5),
}


class Asked:
    """The functions of the worker, for one training.

    Args:
        isolation: has `call`, as bench.measure.worker.isolation.Isolation.
    """

    def __init__(self, isolation, train: str):
        self._isolation = isolation
        self._train = train

    def __call__(self, function: str, *arguments) -> dict:
        """What the function returns; "out_of_memory" or "failed" say why it did not,
        where the worker was lost.

        Raises:
            UsageError: where the user's code is at fault.
        """
        answer = self.attempt(function, *arguments)
        if "refused" in answer:
            raise UsageError(answer["refused"])
        return answer

    def attempt(self, function: str, *arguments) -> dict:
        """The same, with "refused" where the user's code is at fault."""
        from batchline.bench.measure.worker.isolation import WorkerLost

        try:
            return self._isolation.call(
                "experiment", f"{_FUNCTIONS}{function}", self._train, *arguments
            )
        except WorkerLost as lost:
            # A kill that nobody owns up to is mostly a container's limit.
            killed = lost.status == OUT_OF_MEMORY or "SIGKILL" in lost.reason
            kind = "out_of_memory" if killed else "failed"
            kind = "hung" if lost.status == HUNG else kind
            return {kind: f"{lost.reason} ({lost.step})"}
        except RuntimeError as error:
            return {"failed": str(error)}

    def whole(self, function: str, *arguments) -> dict:
        """The same where there is no going on without it."""
        answer = self(function, *arguments)
        for kind in ("out_of_memory", "failed", "hung"):
            if kind in answer:
                raise UsageError(f"{self._train}: {answer[kind]}")
        return answer


@contextlib.contextmanager
def asked(train: str, device: str) -> Iterator[Asked]:
    """A worker for the training on "cpu" or "cuda"."""
    from batchline.bench.measure.worker.isolation import Isolation

    with contextlib.closing(Isolation(device, _DEADLINE_S)) as isolation:
        yield Asked(isolation, train)


def measure(ask: Asked, effort: Effort, batch: int | None, say: Say) -> dict:
    """The noise, the step times and the memory, as a workload of
    bench.noise.experiments.survey has them.

    Also: trained_batch (of the training that was looked at: the one in use, if it fits),
    notes (what was assumed, sentences), not_run ({"batch" or "updates", "why"}),
    largest_fit (None: no batch was too large), optimizer_s, gradient_bytes, and
    has_optimizer. Ctrl-C after the first look at the noise leaves the later ones out.

    Args:
        batch: in use; None: the DataLoader's, or 32.

    Raises:
        UsageError: where the user's code is at fault.
    """
    about = ask.whole("describe")
    samples = about["samples"]
    in_use = batch or about["batch"] or min(_USUAL_BATCH, samples or _USUAL_BATCH)
    if samples and in_use > samples:
        raise UsageError(f"a batch of {in_use} is more than the {samples} samples")
    tried, not_run, largest = _try_batches(
        ask, min(samples or _MOST_BATCH, _MOST_BATCH), effort, say
    )
    steps, timing = _time(ask, tried, effort, say)
    noise_batch = _noise_batch(tried, in_use, samples)
    updates = effort.updates if about["has_optimizer"] else (0,)
    trained = min(in_use, largest or in_use)
    points, why_no_more = _look(ask, updates, (trained, noise_batch), effort, say)
    return {
        "title": about["title"],
        "samples": samples,
        "parameters": about["parameters"],
        "gradient_bytes": about["gradient_bytes"],
        "has_optimizer": about["has_optimizer"],
        "notes": about["notes"],
        "train_batch": in_use,
        "trained_batch": trained,
        "noise_batch": points[-1]["estimate"]["batch"],
        "points": points,
        "steps": steps,
        "not_run": [*not_run, *why_no_more],
        "why_not_timed": timing["why_not_timed"],
        "optimizer_s": timing["optimizer_s"],
        "limit_bytes": tried[-1]["room_bytes"],
        "largest_fit": largest,
    }


def _try_batches(
    ask: Asked, most: int, effort: Effort, say: Say
) -> tuple[list[dict], list[dict], int | None]:
    """The batches that were run, by size; those that were not, and why; and the largest
    that fits, None where none was too large.
    """
    tried: list[dict] = []
    not_run: list[dict] = []
    batch = 1
    too_large = None
    while too_large is None:
        say(f"a step of {batch}")
        row = ask.attempt("try_batch", batch)
        if "out_of_memory" in row:
            too_large = batch
        elif "step_s" in row:
            tried.append(row)
        if "step_s" not in row:
            not_run.append({"batch": batch, "why": _why(row)})
            if tried or batch >= 2**_FIRST_FAILURES:
                break
        is_slow = "step_s" in row and row["step_s"] > effort.longest_s
        if batch == most or is_slow and len(tried) >= _FEWEST_BATCHES:
            break
        batch = min(2 * batch, most)
    if not tried:
        raise UsageError(f"no batch could be run: {not_run[-1]['why']}")
    if too_large is None:
        return tried, not_run, None
    fits_at = tried[-1]["batch"]
    while too_large - fits_at > max(1, fits_at // _NEAR_WALL):
        middle = (fits_at + too_large) // 2
        say(f"a step of {middle}: {fits_at} fits, {too_large} does not")
        row = ask.attempt("try_batch", middle)
        if "step_s" in row:
            fits_at = middle
            tried.append(row)
        else:
            too_large = middle
            not_run.append({"batch": middle, "why": _why(row)})
    return tried, not_run, fits_at


def _why(row: Mapping) -> str:
    if "out_of_memory" in row:
        return f"does not fit: {row['out_of_memory']}"
    return next(iter(row.values()))


def _time(
    ask: Asked, tried: Sequence[Mapping], effort: Effort, say: Say
) -> tuple[list[dict], dict]:
    """The rows of `steps`, and what else the timing says. The largest batches are let
    go of where all together do not fit.
    """
    batches = sorted(row["batch"] for row in tried)
    while len(batches) >= 2:
        say(f"steps of {batches[0]} to {batches[-1]}, in turns")
        timing = ask("time_steps", batches, effort.timed_s)
        if "samples_s" in timing:
            samples_s = dict(zip(batches, timing["samples_s"]))
            return [
                {
                    "batch": row["batch"],
                    "samples_s": samples_s[row["batch"]],
                    "peak_bytes": row["peak_bytes"],
                    "memory_method": row["memory_method"],
                }
                for row in tried
                if row["batch"] in samples_s
            ], timing
        if "out_of_memory" not in timing:
            raise UsageError(f"the steps could not be timed: {_why(timing)}")
        batches = batches[:-1]
    raise UsageError(
        f"step times are needed at two batch sizes, and of these only {len(batches)} could be timed"
    )


def _noise_batch(tried: Sequence[Mapping], in_use: int, samples: int | None) -> int:
    """The batch whose noise is taken: larger than the one in use where that is cheap,
    so that a large noise scale is told from an unbounded one.
    """
    largest = max(row["batch"] for row in tried)
    half = largest // 2  # the meter needs memory of its own
    most = min(_NOISE_BATCH, max(half, min(in_use, largest)), samples or _NOISE_BATCH)
    cheap = [
        row["batch"]
        for row in tried
        if row["batch"] <= most and row["step_s"] <= _METERED_S
    ]
    return max([_LEAST_NOISE_BATCH, min(in_use, most), *cheap])


def _look(
    ask: Asked,
    updates: Sequence[int],
    batches: tuple[int, int],
    effort: Effort,
    say: Say,
) -> tuple[list[dict], list[dict]]:
    """The points of training, and why there are no more of them.

    Args:
        batches: the one that is trained with, and the one whose noise is taken.
    """
    points: list[dict] = []
    trained, noise_batch = batches
    for done in updates:
        say(
            f"the noise after {done} updates, {effort.batches} batches of {noise_batch}"
        )
        try:
            point = ask.attempt("look", done, trained, noise_batch, effort.batches)
            while "out_of_memory" in point and noise_batch >= 2 * _LEAST_NOISE_BATCH:
                noise_batch //= 2
                say(f"the same, of {noise_batch}: memory ran out")
                point = ask.attempt("look", done, trained, noise_batch, effort.batches)
        except KeyboardInterrupt:
            if not points:
                raise
            return points, [{"updates": done, "why": _STOPPED}]
        if "estimate" not in point:
            if not points:
                raise UsageError(_why(point))
            return points, [{"updates": done, "why": _why(point)}]
        points.append(point)
    return points, []


_APART = 4  # times one batch is the next that is trained
_EITHER_WAY = 2  # so many of them below the batch in use, and above it
_STEP = 2.0  # from one learning rate to the next
_MOST_RATES = 8  # of one batch
_PATIENCE = 4  # times the updates that the law of linear scaling gives
_WIDENED = 4  # times that a neighbour may turn out to be better with all seeds
_CUT = 1.5  # times the best rate's updates: a rate that takes more is not the best


def train_to_target(
    ask: Asked,
    measured: Mapping,
    target_loss: float | None,
    effort: Effort,
    say: Say,
) -> dict:
    """A sweep as bench.noise.time_to_target.compare takes one: each batch trained to
    the target at its best rate, by factors of two around the rate in use.

    The best is looked for from that of the batch before, with one seed; it and its
    neighbours are then trained with all. Ctrl-C leaves out the batch at hand and those
    after it, and `partial` says so.

    Args:
        target_loss: None: that of the last point of the survey.

    Raises:
        UsageError: without an optimizer, whose rate is what is tuned.
    """
    if not measured["has_optimizer"]:
        raise UsageError(
            "without an optimizer there is no training to validate: return (model, loss, data, optimizer)"
        )
    from batchline.bench.measure.machine import state

    last = measured["points"][-1]
    target = last["train_loss"] if target_loss is None else target_loss
    if not target < measured["points"][0]["train_loss"]:
        raise UsageError(
            f"the untrained model's loss is {measured['points'][0]['train_loss']:.4g} already: validate at a "
            f"lower one than {target:.4g}"
        )
    before = state.read()
    record = {
        "workload": measured["title"],
        "grid": {"target_loss": target},
        "runs": [],
        "not_run": [],
        "partial": False,
    }
    factor = 1.0
    for batch in _to_train(measured):
        if record["partial"]:
            break
        most = math.ceil(
            _PATIENCE
            * max(last["updates"], 1)
            * max(1.0, measured["train_batch"] / batch)
        )
        train = _Runs(ask, record, target, measured["noise_batch"], say)
        try:
            runs = _tuned(train, batch, factor, most, effort)
        except KeyboardInterrupt:
            record["partial"] = True
            continue
        record["runs"] += runs
        factor = fits.best_rate({"runs": runs}, batch, target) or factor
    return record | {"why_busy": state.why_too_busy(before, state.read())}


def _to_train(measured: Mapping) -> list[int]:
    most = max(step["batch"] for step in measured["steps"])
    in_use = min(measured["train_batch"], most)
    wanted = {
        round(in_use * _APART**power)
        for power in range(-_EITHER_WAY, _EITHER_WAY + 1)
        if 1 <= in_use * _APART**power <= most
    }
    return sorted(wanted)


@dataclass(frozen=True)
class _Runs:
    """Trains to the target."""

    ask: Asked
    record: dict
    target: float
    evaluated: int
    say: Say

    def __call__(self, batch: int, factor: float, seed: int, most: int) -> dict | None:
        self.say(f"training at batch {batch}, {factor:g} times the rate, seed {seed}")
        answer = self.ask.attempt(
            "train", batch, factor, seed, self.target, most, self.evaluated
        )
        if "curve" in answer:
            return answer
        self.record["not_run"].append(
            {"batch": batch, "learning_rate": factor, "why": _why(answer)}
        )
        return None

    def updates(self, run: Mapping | None) -> float:
        reached = run and fits.first_reach(run, self.target)
        return reached[0] if reached else math.inf


def _tuned(
    train: _Runs, batch: int, start: float, most: int, effort: Effort
) -> list[dict]:
    """The runs of one batch: down and up from the first rate as long as it gets
    better, then the seeds.
    """
    runs = {start: train(batch, start, 0, most)}
    for step in (1 / _STEP, _STEP):
        for power in itertools.count(1):
            factor = start * step**power
            best = min(map(train.updates, runs.values()))
            limit = most if math.isinf(best) else min(most, math.ceil(_CUT * best))
            runs[factor] = train(batch, factor, 0, limit)
            is_better = train.updates(runs[factor]) < best
            if len(runs) >= _MOST_RATES or not is_better and not math.isinf(best):
                break
            if math.isinf(best) and power >= _MOST_RATES // 2:
                break
    best = min(runs, key=lambda factor: train.updates(runs[factor]))
    return _replicated(
        train, batch, best, {(one, 0): runs[one] for one in runs}, most, effort
    )


def _replicated(
    train: _Runs,
    batch: int,
    best: float,
    runs: dict[tuple[float, int], dict | None],
    most: int,
    effort: Effort,
) -> list[dict]:
    """All runs of the batch, with all seeds at the best rate and its neighbours, until
    no neighbour is the best.
    """
    every = dict(runs)
    for _ in range(_WIDENED):
        near = {best / _STEP, best, best * _STEP} if effort.seeds > 1 else set()
        wanted = [(rate, seed) for seed in range(effort.seeds) for rate in sorted(near)]
        for job in wanted:
            if job not in every:
                every[job] = train(batch, *job, most)
        record = {"runs": [run for run in every.values() if run]}
        found = fits.best_rate(record, batch, train.target)
        if found in (None, best):
            break
        best = found
    return record["runs"]


def measure_ranks(
    measured: Mapping,
    device: str,
    most_ranks: int,
    cost_cap: float | None,
    reduces: AllReduce | None = None,
) -> Ranks:
    """How many ranks are worth having, at the noise in the middle of training; where
    that is not bounded, at its low end. `reduces`: the all-reduce, where it was timed
    before.

    Raises:
        UsageError: without a noise scale, and where no all-reduce can be timed.
    """
    moment = advisor.middle(measured)
    noise = moment.estimate
    scale = noise.scale.simple if noise.answer == BOUNDED else noise.simple.low
    if not scale > 0:
        raise UsageError(f"no number of ranks can be advised: {noise.answer}")
    if reduces is None:
        reduces = _time_all_reduce(measured["gradient_bytes"], most_ranks, device)
    fits_at = advisor.advice(measured, moment).largest_that_fits
    return advise_ranks(
        StepTimes.of(measured["steps"]).curve(),
        scale,
        reduces,
        measured["gradient_bytes"],
        most_ranks,
        most=math.inf if fits_at is None else fits_at,
        cap=math.inf if cost_cap is None else (cost_cap - 1) * scale,
    )


def _time_all_reduce(gradient_bytes: int, most_ranks: int, device: str) -> AllReduce:
    from batchline.bench.measure.machine import state
    from batchline.bench.noise.experiments import all_reduce

    before = state.read()
    found = all_reduce.measure(gradient_bytes, most_ranks, device)
    found["why_busy"] = state.why_too_busy(before, state.read())
    return AllReduce.of(found)


def stored_all_reduce(path: Path, device_name: str) -> AllReduce:
    """The all-reduce that `batchline all-reduce --to` has written, to a file or into the
    folder of a run.

    Raises:
        UsageError: if it can't be read, or was timed on another device than this one.
    """
    times = rank_times.load(path)
    other = times.machine["device_name"]
    if other != device_name:
        raise UsageError(
            f"{path} was measured on {other}, and this is {device_name}: run "
            "`batchline all-reduce` here"
        )
    with files.blamed_on(path):
        return all_reduce_of(times)


def store(train: str, measured: Mapping, profile: str, device: str, out: Path) -> Path:
    """Keep what was measured as a study in a dated folder of its own under `out`, for
    `batchline advise --run`; its path is told.
    """
    from batchline.bench.measure.machine import environment

    machine = environment.machine(device)
    folder = new_folder(out, machine["device_name"])
    study = Study(
        machine=machine,
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(
            timespec="seconds"
        ),
        profile=profile,
        noise=Noise({name_of(train): measured}),
        partial=was_stopped(measured),
    )
    with put_off():
        folder = files.save_or_rescue(
            lambda place: run_json.save_study(place, study), folder, "advise --run"
        )
    remove_if_empty(folder)
    print(f"stored: {folder}", file=sys.stderr)
    return folder


def name_of(train: str) -> str:
    """The file's name, of FILE:FUNCTION."""
    return Path(train.rpartition(":")[0]).name


def store_sweep(folder: Path, sweep: Mapping) -> None:
    """Keep the runs to the target beside the study, as SWEEP_FILE_NAME."""
    with put_off():
        files.save_or_rescue(
            lambda place: files.write_json(place / SWEEP_FILE_NAME, sweep), folder
        )


def was_stopped(measured: Mapping) -> bool:
    """Whether Ctrl-C has left points of training out."""
    return any(row["why"] == _STOPPED for row in measured["not_run"])


def describe_not_run(measured: Mapping) -> list[str]:
    """A sentence for each batch and each point of training that is missing."""
    lines = []
    for row in measured["not_run"]:
        what = (
            f"batch {row['batch']:,}"
            if "batch" in row
            else (f"the noise after {row['updates']} updates")
        )
        lines.append(f"Not measured: {what}: {row['why']}")
    return lines
