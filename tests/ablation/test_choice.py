import math
from dataclasses import replace

import pytest

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.choice import Question, best_of, questions
from dropkey_cli.ablation.results import Row

NONE = Cell()


def dropkey(ratio: float, schedule: str = "decreasing", structure: str = "element", **more: object) -> Cell:
    return Cell("dropkey", ratio, schedule, structure=structure, **more)  # type: ignore[arg-type]


def rows(cell: Cell, val: list[float], test: list[float] | None = None) -> list[Row]:
    pairs = enumerate(zip(val, test or val, strict=True))
    return [Row(cell, seed, {"val/acc1": one, "test/acc1": two}) for seed, (one, two) in pairs]


def asked(table: list[Row]) -> dict[tuple[str, str], Question]:
    found = questions(table, "test/acc1", selection_metric="val/acc1")
    return {(each.first.cell.name, each.second.cell.name): each for each in found}


def test_the_choice_does_not_look_at_the_test() -> None:
    table = [*rows(dropkey(0.1), [0.8, 0.9], [0.1, 0.1]), *rows(dropkey(0.3), [0.7, 0.8], [0.9, 0.9])]
    (choice,) = best_of(table, "val/acc1")
    assert (choice.cell, choice.candidates, choice.seeds) == (dropkey(0.1), 2, 2)
    (other,) = best_of(table, "test/acc1")
    assert other.cell == dropkey(0.3)


def test_less_is_better_for_a_loss() -> None:
    table = [Row(dropkey(ratio), 1, {"val/loss": loss}) for ratio, loss in ((0.1, 2.0), (0.3, 1.0), (0.5, 3.0))]
    assert [choice.cell.ratio for choice in best_of(table, "val/loss")] == [0.3]


def test_every_method_has_its_own_choice() -> None:
    methods = [dropkey(0.1), dropkey(0.1, "constant"), dropkey(0.1, match_mean=True), dropkey(0.1, structure="key")]
    methods += [dropkey(0.1, remedy="finish"), Cell("attention_dropout", 0.1)]
    better = [replace(cell, ratio=0.3) for cell in methods]
    chosen = best_of([row for cell in (NONE, *methods, *better) for row in rows(cell, [cell.ratio])], "val/acc1")
    assert [choice.cell for choice in chosen] == [NONE, *better]
    assert [choice.candidates for choice in chosen] == [1, *[2] * len(methods)]


def test_a_ratio_does_not_gain_by_failing_on_a_hard_seed() -> None:
    failed = [Row(dropkey(0.5), 0, error="loss is nan"), *rows(dropkey(0.5), [0.0, 0.9])[1:]]
    (choice,) = best_of([*rows(dropkey(0.1), [0.5, 0.95]), *failed], "val/acc1")
    assert (choice.cell.ratio, choice.seeds) == (0.1, 1)


def test_a_ratio_that_always_fails_is_no_candidate() -> None:
    (choice,) = best_of([*rows(dropkey(0.1), [0.5]), Row(dropkey(0.9), 0, error="loss is nan")], "val/acc1")
    assert (choice.cell.ratio, choice.candidates) == (0.1, 1)
    assert best_of([Row(dropkey(0.9), 0, error="loss is nan")], "val/acc1") == []


@pytest.mark.parametrize("order", [1, -1])
def test_at_a_tie_the_smaller_ratio_is_chosen(order: int) -> None:
    table = [*rows(dropkey(0.1), [0.3]), *rows(dropkey(0.3), [0.1 + 0.2])]  # a last digit more
    assert best_of(table[::order], "val/acc1")[0].cell.ratio == 0.1


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
        *rows(dropkey(0.3, match_mean=True), [0.6, 0.7]),
        *rows(dropkey(0.1, structure="block", window_size=2), [0.5, 0.6]),
        *rows(dropkey(0.1, "constant", structure="key"), [0.5, 0.6]),  # nothing to compare it with
    ]
    best = "dropkey_decreasing_0.3_element"
    assert list(asked(table)) == [
        (best, "dropkey_increasing_0.1_element"),
        (best, "dropkey_decreasing_mean_0.3_element"),
        ("dropkey_decreasing_0.1_element", "dropkey_decreasing_0.1_block2"),  # the one ratio that both were tried at
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


def test_holm_counts_all_questions() -> None:
    noisy = [0.51, 0.52, 0.54, 0.55]
    table = [*rows(NONE, [0.5] * 4), *rows(Cell("attention_dropout", 0.1), noisy), *rows(dropkey(0.1), noisy)]
    found = questions(table, "test/acc1", selection_metric="val/acc1")
    assert [each.outcome for each in found] == ["within noise"] * 3
    x = 0.03 / math.sqrt(10e-4 / 3 / 4) / math.sqrt(3)  # t/√3; below, the distribution of t with 3 degrees of freedom
    p = 1 - 2 / math.pi * (math.atan(x) + x / (1 + x * x))
    assert p < 0.05
    assert found[0].comparison.p == pytest.approx(p)
    assert found[0].adjusted_p == pytest.approx(3 * (found[0].comparison.p or 0))
