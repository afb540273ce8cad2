import math

import numpy as np
import pytest

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.results import Row
from dropkey_cli.ablation.statistics import CellSummary, Outcome, better_sign, compare, holm, mean_of, summarize

NONE, DROPKEY, DROPOUT = Cell(), Cell("dropkey", 0.3, "decreasing", structure="element"), Cell("attention_dropout", 0.1)
# Student (1908), The probable error of a mean: additional hours of sleep gained by ten patients with two drugs
FIRST = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
SECOND = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))


def rows(cell: Cell, values: dict[int, float], metric: str = "test/acc1") -> list[Row]:
    return [Row(cell, seed, {metric: value}) for seed, value in values.items()]


def summary(found: list[CellSummary], cell: Cell) -> CellSummary:
    return next(each for each in found if each.cell == cell)


def test_student_s_sleep_data() -> None:
    found = compare(FIRST, SECOND)
    assert found.pairs.count == 10
    assert found.pairs.mean == pytest.approx(-1.58)
    assert found.pairs.mean / found.pairs.error == pytest.approx(-4.0621, abs=5e-5)  # type: ignore[operator]
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.interval == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)


def test_the_mean_and_its_error_of_four_numbers() -> None:
    found = mean_of([2, 4, 4, 6])
    assert (found.count, found.mean) == (4, 4)
    assert found.error == pytest.approx(math.sqrt((4 + 0 + 0 + 4) / 3 / 4))


def test_only_seeds_of_both_sides_are_compared() -> None:
    found = compare({1: 1.0, 2: 3.0, 9: 100.0}, {2: 1.0, 1: 0.0, 8: -100.0})
    assert (found.pairs.count, found.pairs.mean, found.pairs.error) == (2, 1.5, 0.5)
    # Student's t with 1 degree of freedom is Cauchy's: 97.5 % lies below tan(0.475 π)
    assert found.interval == pytest.approx((1.5 - 0.5 * math.tan(0.475 * math.pi), 1.5 + 0.5 * math.tan(0.475 * math.pi)))
    assert found.p == pytest.approx(1 - 2 * math.atan(3) / math.pi)


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_the_same_values_differ_by_nothing(noise: float) -> None:
    found = compare({1: 0.9 + noise, 2: 0.8, 3: 0.7}, {1: 0.9, 2: 0.8, 3: 0.7})
    assert (found.pairs.mean, found.pairs.error, found.interval, found.p) == (0.0, 0.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize(("pairs", "p"), [(2, 0.5), (5, 0.0625), (20, 2 / 2**20)])
def test_differences_without_spread_are_judged_by_their_sign(pairs: int, p: float) -> None:
    found = compare(
        {seed: float(np.float32(0.3 + seed / 30)) for seed in range(pairs)}, {seed: seed / 30 for seed in range(pairs)}
    )
    assert found.pairs.mean == pytest.approx(0.3)
    assert found.interval is None
    assert found.p == pytest.approx(p)


def test_holm_by_hand() -> None:
    # Sorted: 0.005 · 4 = 0.02, 0.01 · 3 = 0.03, 0.03 · 2 = 0.06, and 0.04 · 1 = 0.04, which may not fall below the one before
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(0.02, 0.03, (600, 5)).tolist()
    intervals = [compare(dict(enumerate(sample)), dict.fromkeys(range(5), 0.0)).interval for sample in samples]
    covered = sum(interval is not None and interval[0] <= 0.02 <= interval[1] for interval in intervals)
    assert abs(covered / 600 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 600)  # a normal interval would cover 88 %


def test_no_test_of_a_table_without_differences_is_positive_more_often_than_said() -> None:
    generator = np.random.default_rng(0)
    cells = [Cell("attention_dropout", (place + 1) / 20) for place in range(8)]
    wrong = 0
    for _ in range(100):
        values = generator.normal(0.9, 0.01, (9, 6)).tolist()
        table = [row for cell, each in zip([NONE, *cells], values, strict=True) for row in rows(cell, dict(enumerate(each)))]
        wrong += any(each.outcome in ("better", "worse") for each in summarize(table, "test/acc1", baseline=NONE))
    assert wrong <= 10  # without a correction: about 25 of 100


@pytest.mark.parametrize(
    ("metric", "gain", "said"),
    [
        ("test/acc1", 0.1, "better"),
        ("test/acc1", -0.1, "worse"),
        ("test/loss", -0.1, "better"),
        ("test/hamming_loss", 0.1, "worse"),
        ("test/attention_entropy", 0.1, "higher"),
        ("test/attention_top_key", -0.1, "lower"),
        ("test/acc1", 0.001, "within noise"),
    ],
)
def test_the_metric_says_which_side_is_better(metric: str, gain: float, said: Outcome) -> None:
    shaken = {seed: 0.5 + gain + 0.002 * (-1) ** seed for seed in range(6)}
    table = [*rows(NONE, dict.fromkeys(range(6), 0.5), metric), *rows(DROPKEY, shaken, metric)]
    found = summarize(table, metric, baseline=NONE)
    assert [each.outcome for each in found] == ["baseline", said]
    assert found[0].comparison is None


def test_noise_is_decided_with_all_comparisons_of_the_table() -> None:
    generator = np.random.default_rng(1)
    base = dict(enumerate(generator.normal(0.9, 0.01, 8).tolist()))
    spread = [-0.01, 0.01, -0.01, 0.01, -0.01, 0.01, -0.01, 0.01]
    cell = {seed: base[seed] + 0.01 + spread[seed] for seed in base}
    alone = summarize([*rows(NONE, base), *rows(DROPKEY, cell)], "test/acc1", baseline=NONE)
    assert summary(alone, DROPKEY).outcome == "better"
    others = [row for ratio in range(1, 9) for row in rows(Cell("attention_dropout", ratio / 10), base)]
    many = summary(summarize([*rows(NONE, base), *rows(DROPKEY, cell), *others], "test/acc1", baseline=NONE), DROPKEY)
    assert many.outcome == "within noise"
    assert many.comparison == summary(alone, DROPKEY).comparison
    assert many.comparison is not None and many.comparison.p is not None
    assert many.adjusted_p == pytest.approx(9 * many.comparison.p)


def test_failed_rows_are_left_out_and_counted() -> None:
    table = [
        *rows(NONE, {1: 0.5, 2: 0.6, 3: 0.7}),
        Row(DROPKEY, 1, error="out of memory"),
        *rows(DROPKEY, {2: 0.65, 3: math.nan, 4: 0.9}),
        Row(DROPKEY, 5, {"val/acc1": 0.9}),
    ]
    found = summary(summarize(table, "test/acc1", baseline=NONE), DROPKEY)
    assert (found.values.count, found.failed, found.outcome) == (2, 3, "one seed")
    assert found.values.mean == pytest.approx(0.775)
    assert found.comparison is not None
    assert (found.comparison.pairs.count, found.comparison.p, found.adjusted_p) == (1, None, None)
    assert found.comparison.pairs.mean == pytest.approx(0.05)


def test_a_seed_that_was_trained_again_has_not_failed() -> None:
    again = [Row(DROPKEY, 1, error="killed"), *rows(DROPKEY, {1: 0.5})]
    assert summary(summarize(again, "test/acc1", baseline=NONE), DROPKEY).failed == 0


def test_cells_without_a_common_seed_or_a_value_say_so() -> None:
    table = [*rows(NONE, {1: 0.5}), *rows(DROPKEY, {2: 0.6}), Row(DROPOUT, 1, error="killed")]
    found = summarize(table, "test/acc1", baseline=NONE)
    assert [(each.cell, each.outcome, each.failed) for each in found] == [
        (NONE, "baseline", 0),
        (DROPKEY, "no seeds", 0),
        (DROPOUT, "no seeds", 1),
    ]
    assert summary(found, DROPOUT).values.mean is None


def test_calibration_error_is_better_where_it_is_less() -> None:
    assert [better_sign(name) for name in ("val/acc1", "val/calibration_error", "train/loss", "test/map")] == [1, -1, -1, 1]
