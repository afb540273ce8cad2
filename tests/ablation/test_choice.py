import math

import pytest

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.choice import Choice, Question, best_of_each_kind, questions
from dropkey_cli.ablation.results import Row
from dropkey_cli.ablation.statistics import summarize

NONE = Cell()


def dropkey(ratio: float, schedule: str = "decreasing", structure: str = "element", **more: object) -> Cell:
    return Cell("dropkey", ratio, schedule, structure=structure, **more)  # type: ignore[arg-type]


def rows(cell: Cell, val: list[float], test: list[float] | None = None) -> list[Row]:
    pairs = enumerate(zip(val, test or val, strict=True))
    return [Row(cell, seed, {"val/acc1": one, "test/acc1": two}) for seed, (one, two) in pairs]


def best(table: list[Row], selection_metric: str = "val/acc1") -> Choice:
    return best_of_each_kind(table, selection_metric)["dropkey"]


def asked(table: list[Row]) -> dict[tuple[str, str], Question]:
    found = questions(table, "test/acc1", selection_metric="val/acc1")
    return {(each.first.cell.name, each.second.cell.name): each for each in found}


def test_the_choice_does_not_look_at_the_test() -> None:
    table = [*rows(dropkey(0.1), [0.8, 0.9], [0.1, 0.1]), *rows(dropkey(0.3), [0.7, 0.8], [0.9, 0.9])]
    assert best(table) == Choice(dropkey(0.1), candidates=2)
    assert best(table, "test/acc1").cell == dropkey(0.3)


def test_less_is_better_for_a_loss() -> None:
    table = [Row(dropkey(ratio), 1, {"val/loss": loss}) for ratio, loss in ((0.1, 2.0), (0.3, 1.0), (0.5, 3.0))]
    assert best(table, "val/loss").cell.ratio == 0.3


def test_every_kind_has_its_own_choice_among_all_but_its_remedies() -> None:
    cells = {NONE: 0.1, Cell("attention_dropout", 0.1): 0.2, Cell("attention_dropout", 0.3): 0.1}
    cells |= {dropkey(0.1): 0.1, dropkey(0.1, "constant"): 0.2, dropkey(0.1, structure="key"): 0.3}
    cells |= {dropkey(0.1, remedy="finish"): 0.9}
    assert best_of_each_kind([row for cell, value in cells.items() for row in rows(cell, [value])], "val/acc1") == {
        "none": Choice(NONE, candidates=1),
        "attention_dropout": Choice(Cell("attention_dropout", 0.1), candidates=2),
        "dropkey": Choice(dropkey(0.1, structure="key"), candidates=3),
    }


def test_a_ratio_does_not_gain_by_failing_on_a_hard_seed() -> None:
    failed = [Row(dropkey(0.5), 0, error="loss is nan"), *rows(dropkey(0.5), [0.0, 0.9])[1:]]
    assert best([*rows(dropkey(0.1), [0.5, 0.95]), *failed]).cell.ratio == 0.1


@pytest.mark.parametrize("value", [0.6, 0.99])
def test_a_ratio_that_mostly_fails_neither_wins_nor_decides_which_seeds_count(value: float) -> None:
    table = [*rows(dropkey(0.1), [0.5, 0.6, 0.7]), *rows(dropkey(0.3), [0.7, 0.7, 0.6])]  # on seed 2 alone, 0.1 is better
    table += [Row(dropkey(0.9), seed, error="loss is nan") for seed in (0, 1)] + rows(dropkey(0.9), [0, 0, value])[2:]
    assert best(table).cell.ratio == 0.3


def test_a_ratio_that_always_fails_is_no_candidate() -> None:
    assert best([*rows(dropkey(0.1), [0.5]), Row(dropkey(0.9), 0, error="loss is nan")]) == Choice(dropkey(0.1), candidates=1)
    assert best_of_each_kind([Row(dropkey(0.9), 0, error="loss is nan")], "val/acc1") == {}


@pytest.mark.parametrize("order", [1, -1])
def test_at_a_tie_the_smaller_ratio_is_chosen(order: int) -> None:
    table = [*rows(dropkey(0.1), [0.3]), *rows(dropkey(0.3), [0.1 + 0.2])]  # a last digit more
    assert best(table[::order]).cell.ratio == 0.1


def test_the_best_of_each_kind_meet_on_the_test() -> None:
    table = [
        *rows(NONE, [0.5, 0.5, 0.5], [0.50, 0.51, 0.52]),
        *rows(Cell("attention_dropout", 0.1), [0.6, 0.6, 0.6], [0.61, 0.60, 0.62]),
        *rows(Cell("attention_dropout", 0.3), [0.7, 0.7, 0.7], [0.70, 0.71, 0.73]),
        *rows(dropkey(0.1), [0.8, 0.8, 0.8], [0.70, 0.72, 0.72]),
        *rows(dropkey(0.3, "constant"), [0.7, 0.7, 0.7], [0.99, 0.99, 0.99]),
    ]
    found = asked(table)
    best, dropout = "dropkey_decreasing_0.1_element", "attention_dropout_0.3"
    assert list(found)[:3] == [(best, "none"), (best, dropout), (dropout, "none")]
    assert [found[pair].outcome for pair in list(found)[:3]] == ["better", "within noise", "better"]
    assert found[best, dropout].comparison.pairs.mean == pytest.approx((0.0 + 0.01 - 0.01) / 3)
    assert (found[best, dropout].first.candidates, found[best, dropout].second.candidates) == (2, 2)


def test_schedules_and_structures_are_asked_at_the_best_of_the_ratios_of_both() -> None:
    table = [
        *rows(dropkey(0.1), [0.5, 0.6]),
        *rows(dropkey(0.3), [0.6, 0.7]),
        *rows(dropkey(0.1, "increasing"), [0.5, 0.6]),
        *rows(dropkey(0.3, "increasing"), [0.4, 0.5]),
        *rows(dropkey(0.1, structure="block", window_size=2), [0.5, 0.6]),
        *rows(dropkey(0.2, structure="cross"), [0.5, 0.6]),  # no ratio of both
        *rows(dropkey(0.1, "constant", structure="key"), [0.5, 0.6]),  # nothing to compare it with
    ]
    assert list(asked(table)) == [
        ("dropkey_decreasing_0.3_element", "dropkey_increasing_0.1_element"),
        ("dropkey_decreasing_0.1_element", "dropkey_decreasing_0.1_block2"),  # the one ratio that both were tried at
    ]


def test_schedules_of_the_same_mean_are_compared_with_each_other() -> None:
    cells = [dropkey(0.3, schedule, match_mean=mean) for schedule in ("decreasing", "increasing") for mean in (False, True)]
    table = [row for cell in [*cells, dropkey(0.3, "constant")] for row in rows(cell, [0.5, 0.6])]
    assert list(asked(table)) == [
        ("dropkey_decreasing_0.3_element", "dropkey_increasing_0.3_element"),
        ("dropkey_decreasing_0.3_element", "dropkey_constant_0.3_element"),
        ("dropkey_decreasing_mean_0.3_element", "dropkey_increasing_mean_0.3_element"),
        ("dropkey_decreasing_mean_0.3_element", "dropkey_constant_0.3_element"),  # its mean is its ratio
    ]


def test_a_remedy_is_asked_of_the_best_training_that_had_it() -> None:
    table = [
        *rows(dropkey(0.1), [0.5, 0.6], [0.5, 0.6]),
        *rows(dropkey(0.3), [0.9, 0.9], [0.9, 0.9]),
        *rows(dropkey(0.1, remedy="finish"), [0.1, 0.1], [0.6, 0.7]),
        *rows(dropkey(0.1, "constant"), [0.4, 0.4]),
        *rows(dropkey(0.1, "constant", remedy="finish"), [0.99, 0.99]),
    ]
    found = asked(table)
    pair = ("dropkey_decreasing_0.1_element_finish", "dropkey_decreasing_0.1_element")
    assert [first for first, _ in found if first.endswith("finish")] == [pair[0]]
    assert found[pair].comparison.pairs.mean == pytest.approx(0.1)


def test_holm_counts_each_comparison_in_one_place() -> None:
    noisy, other = [0.51, 0.52, 0.54, 0.55], [0.5, 0.49, 0.52, 0.5]
    table = [*rows(NONE, [0.5] * 4), *rows(Cell("attention_dropout", 0.1), noisy), *rows(dropkey(0.1), noisy)]
    table += [*rows(dropkey(0.1, "increasing"), other), *rows(dropkey(0.1, structure="key"), other)]
    found = questions(table, "test/acc1", selection_metric="val/acc1")
    assert [each.outcome for each in found] == ["within noise"] * 5
    x = 0.03 / math.sqrt(10e-4 / 3 / 4) / math.sqrt(3)  # t/√3; below, the distribution of t with 3 degrees of freedom
    p = 1 - 2 / math.pi * (math.atan(x) + x / (1 + x * x))
    assert p < 0.05
    assert found[0].comparison.p == pytest.approx(p)
    assert [found[0].adjusted_p, found[2].adjusted_p] == pytest.approx([4 * p] * 2)  # of the four cells beside none
    of_table = {each.cell: each.adjusted_p for each in summarize(table, "test/acc1", baseline=NONE)}
    assert [found[0].adjusted_p, found[2].adjusted_p] == [of_table[found[0].first.cell], of_table[found[2].first.cell]]
    raw = [found[place].comparison.p or 0 for place in (1, 3, 4)]  # DropKey and attention dropout, schedule, structure
    assert [found[place].adjusted_p for place in (1, 3, 4)] == pytest.approx([1.0, 3 * raw[1], 3 * raw[2]])
