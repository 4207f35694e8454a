"""The formats of the stored documents: their numbers, how an older document becomes one
of the present format, and how records become JSON and back.

A document without a number is of format 1. Each step takes a document of one format and
returns one of the next, so a document goes through all steps from its own format on.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass

from batchline.bench.errors import UsageError
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record

Step = Callable[[Mapping], dict]
OURS = "batchline"  # in format 1 our part of pytest-benchmark's document


@dataclass(frozen=True)
class Format:
    """A kind of document: its present number, and the step that leaves each older one.

    `advice` says what to do with a document of a newer format.
    """

    number: int
    steps: Mapping[int, Step]
    advice: str = "use a newer one"

    def upgrade(self, document: Mapping, name: object) -> dict:
        """The document in the present format; `name` is what errors call it.

        Raises:
            UsageError: if it is of a newer format.
            ValueError, KeyError, TypeError, AttributeError: if it is damaged.
        """
        number = document.get("format", 1)
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"its format is {number!r}")
        if number > self.number:
            raise UsageError(
                f"{name} is of format {number}, and this Batchline reads {self.number}: {self.advice}"
            )
        for older in range(number, self.number):
            document = self.steps[older](document)
        return dict(document)


def upgrade_run_1_to_2(document: Mapping) -> dict:
    """From pytest-benchmark's document with our part in it to a run's own fields."""
    about, machine = document[OURS], document["machine_info"]
    rounds = {bench["param"]: bench for bench in document["benchmarks"]}
    confirmed = about.get("confirmed", {})
    header = _those(document, "commit_info", "datetime", "version")
    header["machine_info"] = {
        name: value for name, value in machine.items() if name != OURS
    }
    return {
        "format": 2,
        **run_parts(about),
        "machine": machine[OURS],
        "benchmark_header": header,
        "records": [
            _record(case, rounds.get(case["id"]), confirmed.get(case["id"]))
            for case in about["cases"]
        ],
    }


def run_parts(about: Mapping) -> dict:
    """What our part of format 1 said of a run, as fields of format 2. Its older runs
    lack some of its keys.
    """
    plan = _those(about, "profile", "selection", "limits", "effort", "left_out")
    return {
        **_those(about, "started", "seconds", "partial", "along", "forecast"),
        **_those(about, "ceilings", "why_no_ceilings", "audit", "invariance"),
        **_those(about, "noise", "sweep", "waves", "compiled_ahead"),
        **_those(about, "variants", "broken_files"),
        "plan": plan,
        "ops": _ops(about),
        "capacity": {
            "room_bytes": about.get("room_bytes"),
            "trials": about.get("capacity", []),
        },
        "compiled": {
            "kernels": about.get("compiled", []),
            "incomplete": about.get("not_compiled"),
        },
    }


def _those(document: Mapping, *names: str) -> dict:
    return {name: document[name] for name in names if name in document}


def _ops(about: Mapping) -> dict:
    """The ops of a run of format 1, which had a table a property."""
    signatures, baselines = about.get("signatures", {}), about.get("baselines", {})
    titles, sizes = about.get("scenarios", {}), about.get("sizes", {})
    tuning = about.get("tuning", {})
    ops = {}
    for name in {**signatures, **baselines, **titles, **sizes, **tuning}:
        ops[name] = {
            "signature": signatures.get(name, ""),
            "baseline": baselines.get(name, ""),
            "scenarios": {
                scenario: {
                    "title": title,
                    "sizes": sizes.get(name, {}).get(scenario, {}),
                }
                for scenario, title in titles.get(name, {}).items()
            },
            "tuning": tuning.get(name),
        }
    return ops


def _record(
    case: Mapping, rounds: Mapping | None, confirmation: Mapping | None
) -> dict:
    """A record of format 2. Whatever pytest-benchmark kept of a case that was not
    measured is no time.
    """
    record = {name: case[name] for name in ("id", "status", "reason")}
    if case["status"] == MEASURED:
        record["samples_s"] = rounds["stats"]["data"]
        record["iterations"] = rounds["stats"]["iterations"]
        record["facts"] = rounds["extra_info"]
    if confirmation is None:
        return record
    return Record.from_json(record).confirmed_by(confirmation).to_json()


def upgrade_study_1_to_2(document: Mapping) -> dict:
    """A study of before was never stopped, or did not say so."""
    return {"partial": False, **document, "format": 2}


RUN = Format(2, {1: upgrade_run_1_to_2})
STUDY = Format(2, {1: upgrade_study_1_to_2})
REGRESSION = Format(1, {}, "run `make regress` again")
SELFTEST = Format(1, {})
JOURNAL = Format(2, {})
ACCEPTED = Format(1, {})
RANK_TIMES = Format(1, {}, "run `batchline all-reduce` again")


def to_json(value):
    """A record, or what is in one, as JSON has it. Fields that have their default are
    left out.
    """
    if isinstance(value, Record):
        return value.to_json()
    if is_dataclass(value):
        return {
            one.name: to_json(getattr(value, one.name))
            for one in fields(value)
            if getattr(value, one.name) != _default(one)
        }
    if isinstance(value, Mapping):
        return {name: to_json(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    return value


def _default(field):
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def from_json(kind, value):
    """What `to_json` made of a value of the type `kind`: a dataclass, a tuple, a Mapping
    or a plain type, each also `| None`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if the value is none.
    """
    if kind is Record:
        return Record.from_json(value)
    if is_dataclass(kind):
        return _dataclass_from(kind, value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else from_json(arguments[0], value)
    if origin is tuple:
        return _tuple_from(arguments, value)
    if origin is not None:
        _require(Mapping, value)
        return {name: from_json(arguments[1], entry) for name, entry in value.items()}
    _require(kind, value)
    return value


def _dataclass_from(kind, value):
    if isinstance(value, kind):
        return value
    _require(Mapping, value)
    hints = field_types(kind)
    if unknown := value.keys() - hints.keys():
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(
        **{name: from_json(hints[name], entry) for name, entry in value.items()}
    )


def _tuple_from(kinds: tuple, value) -> tuple:
    _require((list, tuple), value)
    if kinds[-1] is Ellipsis:
        return tuple(from_json(kinds[0], entry) for entry in value)
    if len(value) != len(kinds):
        raise ValueError(f"{len(kinds)} parts expected, and there are {len(value)}")
    return tuple(map(from_json, kinds, value))


def _require(kind, value) -> None:
    """Raise TypeError if the value is not of the kind. Of numbers any does, for JSON
    does not keep them apart.
    """
    if kind in (int, float):
        kind = (int, float)
    if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
        raise TypeError(f"{value!r:.80} is of the type {type(value).__name__}")


@functools.cache
def field_types(kind: type) -> dict[str, object]:
    """The types of a dataclass's fields, by name."""
    return typing.get_type_hints(kind)
