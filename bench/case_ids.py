"""The id of a case, `op/variant/scenario/dtype/B8`: readable and stable, for a change of
it loses the case's history.
"""

from __future__ import annotations


def case_id(op: str, variant: str, scenario: str, dtype: str, batch: int) -> str:
    """The id of the case with these parts."""
    return f"{op}/{variant}/{scenario}/{dtype}/B{batch}"


def parse_case_id(name: str) -> dict:
    """The parts of a case id, by the names of `case_id`'s parameters.

    Raises:
        ValueError: if it is no case id.
    """
    op, variant, scenario, dtype, batch = name.split("/")
    return {
        "op": op,
        "variant": variant,
        "scenario": scenario,
        "dtype": dtype,
        "batch": int(batch.removeprefix("B")),
    }
