"""Runs made of what a run of format 1 said of itself, and documents stored as they are."""

import json
from dataclasses import replace

from batchline.bench.store import run_json
from batchline.bench.store.formats import field_types, from_json, run_parts
from batchline.bench.store.records import Run
from tests.about import about_of

NO_CEILINGS = {
    "copy_bytes_per_s": 0.0,
    "read_bytes_per_s": 0.0,
    "cache_bytes_per_s": 0.0,
    "cache_bytes": 0,
    "matmul_flops_per_s": {},
    "fma_flops_per_s": {},
    "launch_s": {},
    "best": {},
}


def run_of(about=None, machine=None, records=()):
    """A run of these records; `about` is as our part of format 1, as much as is needed."""
    return Run(machine=machine or {}, records=tuple(records), **_parts(about or {}))


def changed(run, **about):
    """The run with parts replaced that `about` names by their keys in format 1."""
    return replace(run, **_parts({**about_of(run), **about}))


def save_document(folder, document):
    """Write a document of any format as it is."""
    path = run_json.path_in(folder)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _parts(about):
    kinds = field_types(Run)
    if about.get("ceilings"):
        about = {**about, "ceilings": {**NO_CEILINGS, **about["ceilings"]}}
    return {
        name: from_json(kinds[name], value) for name, value in run_parts(about).items()
    }
