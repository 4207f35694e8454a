"""The compiled facts of GPU variants, those of other repositories among them: nothing of
these is pinned, and all is compiled.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from batchline.bench.measure.compiled import compile_pool, static_facts
from batchline.bench.measure.compiled.pins import Job
from batchline.bench.measure.compiled.static_facts import Facts


def facts(wanted: Sequence[Job], own: Container[str]) -> Facts:
    """The rows of the wanted jobs: first of Batchline's own ops, then of those that
    `own` names.
    """
    others = [job for job in wanted if job[0].partition("/")[0] in own]
    known = static_facts.facts([job for job in wanted if job not in others])
    if not others:
        return known
    rows, problems = compile_pool.each(rows_of, others)
    notes = "; ".join(note for note in (known.incomplete, *problems) if note)
    return Facts(
        [*known.rows, *(row for job in others for row in rows.get(job, ()))],
        known.pinned,
        known.compiled + len(rows),
        notes or None,
    )


def rows_of(variant_id: str, dtype: str) -> list[dict]:
    """A job's rows, in a process that may import the variant's file."""
    return static_facts.rows_of(static_facts.variant_of(variant_id), dtype)
