"""A history as Apache Otava reads it, for who wants its change points beside ours.

Relied on (apache-otava 0.8.0, otava/importer.py and otava/test_config.py): a test of
type `csv` names a file with a header row, its time column (ISO 8601), attributes that
are copied, and metrics, each with its column and a direction (-1: less is better). A
cell that is empty stops its import, so the cases of one file are those that the same
runs have timed. Its paths are taken from where it is started: start it in the folder of
these files.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from batchline.bench.verdicts.across_runs import Group, Series

CONFIG = "otava.yaml"


def write(group: Group, folder: Path) -> list[Path]:
    """Write a CSV a kernel (medians in seconds, a column a batch) and otava.yaml;
    returns the files.
    """
    tests, written = {}, []
    for name, series in _files(group).items():
        path = folder / f"{name}.csv"
        columns = [f"{one.batch}_{one.clock}_s" for one in series]
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["time", "commit", *columns])
            for index, entry in enumerate(series[0].entries):
                rows.writerow(
                    [
                        entry.when,
                        entry.commit,
                        *(one.medians_s[index] for one in series),
                    ]
                )
        tests[name] = {
            "type": "csv",
            "file": path.name,
            "time_column": "time",
            "attributes": ["commit"],
            "metrics": {
                column: {"column": column, "direction": -1, "scale": 1}
                for column in columns
            },
        }
        written.append(path)
    config = folder / CONFIG
    config.write_text(
        json.dumps({"tests": tests}, indent=1) + "\n", encoding="utf-8"
    )  # YAML 1.2 contains JSON
    return [*written, config]


def _files(group: Group) -> dict[str, list[Series]]:
    """File name → its series: those of one kernel that the same runs have timed."""
    together: dict[tuple, list[Series]] = {}
    for series in group.series:
        together.setdefault((series.kernel, tuple(map(id, series.entries))), []).append(
            series
        )
    named: dict[str, list[Series]] = {}
    for (kernel, _), series in together.items():
        name = kernel.replace("/", "-")
        number = sum(one[0].kernel == kernel for one in named.values()) + 1
        named[name if number == 1 else f"{name}-{number}"] = series
    return named
