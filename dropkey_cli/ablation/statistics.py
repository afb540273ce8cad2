"""What an ablation's numbers say: means, paired comparisons on the same seeds, and how many of those differ by chance."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.results import Row

CONFIDENCE = 0.95
"""Of an interval; one less this is the level of the tests."""
_ROUNDING = 1e-6
"""Relative: accuracies are measured in float32, so that the same difference comes out slightly different."""

Outcome = Literal["baseline", "better", "worse", "higher", "lower", "within noise", "one seed", "no seeds"]


@dataclass(frozen=True)
class Mean:
    """Of the values of several seeds.

    Args:
        count: How many there are.
        mean: Their mean; None where there is none.
        error: Its standard error, from the sample's variance (ddof 1); None below two.
    """

    count: int
    mean: float | None
    error: float | None


@dataclass(frozen=True)
class Comparison:
    """Of two cells, on the seeds that both have.

    Args:
        pairs: The differences of these seeds.
        interval: 95 % confidence interval of their mean (Student's t); None below two pairs, and where all differences are
            the same but not 0: nothing is known of their spread then.
        p: Of a mean difference of 0, two-sided: Student's t; where all differences are the same, the sign test. None below
            two pairs.
    """

    pairs: Mean
    interval: tuple[float, float] | None
    p: float | None


@dataclass(frozen=True)
class CellSummary:
    """A cell, and how it compares with the baseline.

    Args:
        cell: The cell.
        values: Of its seeds.
        failed: Its seeds that gave no finite value.
        comparison: With the baseline; None for the baseline itself.
        adjusted_p: The comparison's p after Holm's correction for all comparisons of the table.
        outcome: By ``adjusted_p``.
    """

    cell: Cell
    values: Mean
    failed: int
    comparison: Comparison | None
    adjusted_p: float | None
    outcome: Outcome


def mean_of(values: Iterable[float]) -> Mean:
    """The mean and its standard error."""
    values = list(values)
    count = len(values)
    if not count:
        return Mean(0, None, None)
    mean = math.fsum(values) / count
    if count < 2:
        return Mean(count, mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Mean(count, mean, math.sqrt(variance / count))


def compare(values: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison:
    """Values minus the baseline's, paired.

    Args:
        values: By seed.
        baseline: By seed; a seed that only one side has is left out.
    """
    seeds = sorted(values.keys() & baseline.keys())
    differences = [values[seed] - baseline[seed] for seed in seeds]
    if len(seeds) < 2:
        return Comparison(mean_of(differences), None, None)
    rounding = _ROUNDING * max(abs(side[seed]) for side in (values, baseline) for seed in seeds)
    if max(differences) - min(differences) <= rounding:
        return _without_spread(differences, rounding)
    test = stats.ttest_1samp(differences, 0.0)
    lower, upper = test.confidence_interval(CONFIDENCE)
    return Comparison(mean_of(differences), (float(lower), float(upper)), float(test.pvalue))


def _without_spread(differences: list[float], rounding: float) -> Comparison:
    """Of differences that are all the same: t is infinite, and two of them are not enough to believe that."""
    count, difference = len(differences), math.fsum(differences) / len(differences)
    if abs(difference) <= rounding:
        return Comparison(Mean(count, 0.0, 0.0), (0.0, 0.0), 1.0)
    return Comparison(Mean(count, difference, 0.0), None, 2 * 0.5**count)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values (Holm 1979): reject those below α, and any false rejection has at most probability α.

    Args:
        p_values: One per comparison; None where there is no test, which counts as none.
    """
    places = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(places):
        highest = max(highest, min(1.0, (len(places) - rank) * p))
        adjusted[place] = highest
    return adjusted


def better_sign(metric: str) -> Literal[-1, 0, 1]:
    """1 where more is better, −1 where less is (losses, errors), 0 where neither is (what attention looks like)."""
    name = metric.rpartition("/")[2]
    if name.startswith("attention_"):
        return 0
    return -1 if name.endswith(("loss", "error")) else 1


def by_seed(rows: Iterable[Row], metric: str) -> dict[Cell, dict[int, float | None]]:
    """The values of every cell in the order of the rows; None where a training failed or the value is not finite."""
    found: dict[Cell, dict[int, float | None]] = {}
    for row in rows:
        value = None if row.error else row.metrics.get(metric)
        found.setdefault(row.cell, {})[row.seed] = value if value is not None and math.isfinite(value) else None
    return found


def present(values: Mapping[int, float | None]) -> dict[int, float]:
    """Without the seeds that have no value."""
    return {seed: value for seed, value in values.items() if value is not None}


def values_of(rows: Iterable[Row], metric: str) -> dict[Cell, dict[int, float]]:
    """By cell and seed; cells without a value are left out."""
    return {cell: values for cell, each in by_seed(rows, metric).items() if (values := present(each))}


def summarize(rows: Iterable[Row], metric: str, *, baseline: Cell) -> list[CellSummary]:
    """One summary per cell, in the order of the rows.

    Args:
        rows: Of the table.
        metric: Its name, e.g. test/acc1.
        baseline: What the others are compared with, on the seeds that both have.
    """
    cells = by_seed(rows, metric)
    found = {cell: present(values) for cell, values in cells.items()}
    reference = found.get(baseline, {})
    comparisons = {cell: compare(values, reference) for cell, values in found.items() if cell != baseline}
    adjusted = dict(zip(comparisons, holm([each.p for each in comparisons.values()]), strict=True))
    return [
        CellSummary(
            cell,
            mean_of(values.values()),
            len(cells[cell]) - len(values),
            comparisons.get(cell),
            adjusted.get(cell),
            outcome(comparisons.get(cell), adjusted.get(cell), metric),
        )
        for cell, values in found.items()
    ]


def outcome(comparison: Comparison | None, adjusted_p: float | None, metric: str) -> Outcome:
    """What a comparison says.

    Args:
        comparison: None of the baseline with itself.
        adjusted_p: Decides, instead of the comparison's own p.
        metric: Says which side is better.
    """
    if comparison is None:
        return "baseline"
    difference = comparison.pairs.mean
    if difference is None:
        return "no seeds"
    if adjusted_p is None:
        return "one seed"
    if adjusted_p >= 1 - CONFIDENCE:
        return "within noise"
    if not (sign := better_sign(metric)):
        return "higher" if difference > 0 else "lower"
    return "better" if sign * difference > 0 else "worse"
