"""Two plans beside each other: what is compared, what is new, missing or the same, and
which controls are measured.
"""

from batchline.bench.commands.regress import Matching, match, union
from batchline.bench.store.regressions import IDENTICAL, MISSING, NEW


def case(variant, batch=1, scenario="tiny_16"):
    return f"bmm/{variant}/{scenario}/float32/B{batch}"


def planned(code, refusal=None):
    return {"code": code, "refusal": refusal}


def test_each_case_has_one_place():
    base = {
        case("a"): planned("1"),
        case("b"): planned("1"),
        case("c"): planned("1"),
        case("gone"): planned("1"),
        case("taken_back"): planned("1"),
        case("late"): planned("1", ("unsupported", "not yet")),
        case("never"): planned("1", ("not timed here", "needs CUDA")),
    }
    head = {
        case("a"): planned("1"),
        case("b"): planned("2"),
        case("c"): planned("1"),
        case("fresh"): planned("1"),
        case("taken_back"): planned("2", ("unsupported", "no more")),
        case("late"): planned("2"),
        case("never"): planned("2", ("not timed here", "needs CUDA")),
    }
    found = match(base, head, union(list(base), list(head)))
    assert (found.changed, found.same) == ((case("b"),), (case("a"), case("c")))
    assert found.new == {
        case("fresh"): "at the base: not there",
        case("late"): "at the base: not yet",
    }
    assert found.missing == {
        case("gone"): "now: not there",
        case("taken_back"): "now: no more",
    }
    assert [row.verdict for row in found.unmeasured()] == [MISSING] * 2 + [NEW] * 2 + [
        IDENTICAL
    ] * 2


def test_only_what_is_chosen_is_matched():
    both = {case("a"): planned("1"), case("b"): planned("1")}
    assert match(both, both, [case("b")]).same == (case("b"),)


def test_a_union_keeps_the_heads_order():
    assert union(["a", "x", "b"], ["b", "c", "a"]) == ["b", "c", "a", "x"]


def test_controls_are_of_the_changed_problems_and_the_baseline_first():
    same = (case("other"), case("torch_bmm"), case("torch_bmm", 64), case("third"))
    found = Matching((case("mine"),), same, {}, {})
    assert found.controls({"bmm": "torch_bmm"}) == (
        case("torch_bmm"),
        case("other"),
        case("third"),
    )


def test_controls_come_from_elsewhere_where_the_changed_problems_have_none_and_are_eight_at_most():
    same = tuple(case("torch_bmm", batch) for batch in range(2, 14))
    found = Matching((case("mine"),), same, {}, {})
    assert found.controls({"bmm": "torch_bmm"}) == same[:8]


def test_nothing_changed_needs_no_control():
    assert Matching((), (case("a"),), {}, {}).controls({"bmm": "a"}) == ()
