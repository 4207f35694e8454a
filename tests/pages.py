"""Runs whose page is tested, with text that means to be more than text, and pages taken
apart.
"""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from batchline.bench.statuses import FAILED, MEASURED
from batchline.bench.store import run_json
from batchline.bench.store.records import Record
from tests import comparisons
from tests.about import about_of
from tests.claims_evidence import sweep
from tests.noise_evidence import noise
from tests.runs import changed
from tests.test_records import document

HOSTILE = f"</script><!-- <b>bold</b> {comparisons.HOSTILE} {{{{ 1 + 1 }}}}"
_VOID = {"meta", "link", "br", "hr", "img", "input"}
_FACTS = document()["benchmarks"][0]["extra_info"]


class Tree(HTMLParser):
    """The elements of a page, each with its attributes and text; wrong nesting is an
    error.
    """

    def __init__(self, html):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append({"tag": tag, "attributes": dict(attributes), "text": ""})
        if tag not in _VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]

    def text(self, tag):
        return [element["text"] for element in self.all(tag)]

    def by_id(self, name):
        return next(
            element
            for element in self.elements
            if element["attributes"].get("id") == name
        )

    @property
    def data(self):
        return json.loads(self.by_id("data")["text"], parse_constant=pytest.fail)


def a_run(**about):
    """A run of one measured case and one that can't run here; `about` replaces what its
    own says.
    """
    run = run_json.parse(document())
    return changed(run, **about)


def invariance(variant, differs_at=(), **changes):
    """What a run found of one variant's bits over the batch, on tiny_16."""
    return {
        "op": "bmm",
        "variant": variant,
        "scenario": "tiny_16",
        "dtype": "float32",
        "batches": [1, 16, 256],
        "rows": not differs_at,
        "differs_at": list(differs_at),
        "repeats": True,
        "digest": "0",
        "failed": None,
        **changes,
    }


def with_scenario(run, name, title):
    scenarios = about_of(run)["scenarios"]["bmm"]
    return changed(run, scenarios={"bmm": {**scenarios, name: title}})


def with_records(run, *added):
    return replace(run, records=(*run.records, *added))


def timed(variant, batch, median_s, scenario="tiny_16", dtype="float32", **facts):
    """A measured case of bmm whose samples are within 1% of its median."""
    return Record(
        "bmm",
        variant,
        scenario,
        dtype,
        batch,
        MEASURED,
        "",
        tuple(median_s * (1 + k / 500) for k in range(-4, 5)),
        2,
        _FACTS | facts,
    )


def everything():
    """A run that has all that a page can show: two scenarios, a crossover, a failure,
    bits, noise, and a sweep.
    """
    run = a_run(
        noise=noise(),
        sweep=sweep(),
        invariance=[invariance("torch_bmm"), invariance("fast", [1])],
    )
    run = with_scenario(run, "tiny_32", "many 32x32 matrices")
    return with_records(
        run,
        *(
            timed(variant, batch, launch_s * (1 + batch / saturated))
            for batch in (1, 16, 256)
            for variant, launch_s, saturated in (
                ("torch_bmm", 1e-6, 8),
                ("fast", 3e-6, 99),
            )
        ),
        *(
            timed("fast", batch, 2e-6 * batch, "tiny_32", dtype)
            for batch in (4, 8)
            for dtype in ("float32", "float16")
        ),
        Record("bmm", "broken", "tiny_16", "float32", 4, FAILED, "ValueError: no"),
    )


def hostile():
    """A run in which a variant, a scenario, a failure, an idea and a workload are
    called HOSTILE.
    """
    bits = [
        invariance(HOSTILE, [1], scenario=HOSTILE),
        invariance("torch_bmm", failed=HOSTILE, rows=None),
    ]
    run = with_records(
        a_run(
            noise=noise(**{HOSTILE: noise()["workloads"]["digits"]}),
            sweep=None,
            invariance=bits,
        ),
        timed(HOSTILE, 4, 1e-6, HOSTILE),
        Record("bmm", "torch_bmm", "tiny_16", "float32", 8, FAILED, HOSTILE),
    )
    run = with_scenario(run, HOSTILE, HOSTILE)
    variants = about_of(run)["variants"]
    called_so = {**variants["bmm/torch_bmm"], "idea": HOSTILE}
    return changed(run, variants={**variants, f"bmm/{HOSTILE}": called_so})


def a_large_run():
    """A run of one op with 20 scenarios of 10 variants at 13 batches, all timed."""

    def named(count, what):
        return [f"a_rather_long_name_of_{what}_{number}" for number in range(count)]

    run = replace(
        a_run(),
        records=tuple(
            timed(variant, 2**k, 1e-6 * 2**k, scenario)
            for scenario in named(20, "scenario")
            for variant in named(10, "variant")
            for k in range(13)
        ),
    )
    for name in named(20, "scenario"):
        run = with_scenario(run, name, "")
    return run
