"""The fair choice of a ratio by one split, reported on another, and the paper's questions asked of what was chosen."""

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.results import Row
from dropkey_cli.ablation.statistics import (
    Comparison,
    Outcome,
    better_sign,
    compare,
    holm,
    mean_of,
    outcome,
    summarize,
    values_of,
)


@dataclass(frozen=True)
class Choice:
    """The best of several cells.

    Args:
        cell: The chosen one.
        candidates: How many there were, itself included.
    """

    cell: Cell
    candidates: int


@dataclass(frozen=True)
class Question:
    """Which of two chosen cells is better, on the seeds that both have?

    Args:
        first: Whose values count positive.
        second: Whose values are subtracted.
        comparison: By the reported metric.
        adjusted_p: After Holm's correction: of a comparison with no dropping, that of the table, in which it stands too; of
            the others, for all others.
        outcome: Of the first.
    """

    first: Choice
    second: Choice
    comparison: Comparison
    adjusted_p: float | None
    outcome: Outcome


def best_of_each_kind(rows: Iterable[Row], selection_metric: str) -> dict[str, Choice]:
    """DropKey, attention dropout and none, each the best of all that was tried.

    The choice is among cells without a remedy: attention dropout may not have been offered one.

    Args:
        rows: Of the table.
        selection_metric: What the choice looks at.
    """
    cells = values_of(rows, selection_metric)
    plain = {cell: cell.what for cell in cells if cell.remedy == "none"}
    return {choice.cell.what: choice for choice in _best(plain, cells, selection_metric)}


def questions(rows: Iterable[Row], metric: str, *, selection_metric: str) -> list[Question]:
    """What the paper asks, as far as the table can answer: does it help, and which schedule, structure and remedy.

    Args:
        rows: Of the table.
        metric: What is compared.
        selection_metric: What chooses.
    """
    rows = list(rows)
    found = values_of(rows, metric)
    pairs = [*_kinds(rows, selection_metric), *_variants(rows, selection_metric)]
    comparisons = [compare(found.get(one.cell, {}), found.get(other.cell, {})) for one, other in pairs]
    with_none = {each.cell: each.adjusted_p for each in summarize(rows, metric, baseline=Cell())}
    others = iter(holm([each.p for each, (_, other) in zip(comparisons, pairs, strict=True) if other.cell != Cell()]))
    adjusted = [with_none[one.cell] if other.cell == Cell() else next(others) for one, other in pairs]
    return [
        Question(*pair, each, p, outcome(each, p, metric)) for pair, each, p in zip(pairs, comparisons, adjusted, strict=True)
    ]


def _kinds(rows: Iterable[Row], selection_metric: str) -> Iterator[tuple[Choice, Choice]]:
    """DropKey, attention dropout and none against each other; then what each remedy changes."""
    cells = values_of(rows, selection_metric)
    best = best_of_each_kind(rows, selection_metric)
    for one, other in (("dropkey", "none"), ("dropkey", "attention_dropout"), ("attention_dropout", "none")):
        if one in best and other in best:
            yield best[one], best[other]
    for remedy in dict.fromkeys(cell.remedy for cell in cells if cell.remedy != "none"):
        offered = {cell: cell.what for cell in cells if cell.remedy == "none" and replace(cell, remedy=remedy) in cells}
        for choice in _best(offered, cells, selection_metric):
            yield replace(choice, cell=replace(choice.cell, remedy=remedy)), choice


def _variants(rows: Iterable[Row], selection_metric: str) -> Iterator[tuple[Choice, Choice]]:
    """The paper's schedule against the others, its structure against the others, at the best of the ratios that both have.

    Schedules are compared from the same highest ratio, or of the same mean, which a constant one is both.
    """
    values = values_of(rows, selection_metric)
    methods: dict[Cell, list[Cell]] = {}
    for cell in values:
        if cell.what == "dropkey" and cell.remedy == "none":
            methods.setdefault(replace(cell, ratio=0.0), []).append(cell)
    elements = [method for method in methods if method.structure == "element"]
    against = [
        (one, other)
        for one, other in itertools.product(elements, repeat=2)
        if one.schedule == "decreasing" != other.schedule
        if other.schedule == "constant" or other.match_mean == one.match_mean
    ]
    against += [(replace(method, structure="element", window_size=None), method) for method in methods]
    for one, other in against:
        if one in methods and one != other:
            yield from _at_the_same_ratios(methods[one], methods[other], values, selection_metric)


def _at_the_same_ratios(
    first: list[Cell], second: list[Cell], values: Mapping[Cell, dict[int, float]], metric: str
) -> Iterator[tuple[Choice, Choice]]:
    """The best of each, out of the ratios that both were tried at: else the one that was tried at more has more chances."""
    shared = {cell.ratio for cell in first} & {cell.ratio for cell in second}

    def best(cells: list[Cell]) -> Choice:
        return _chosen({cell: values[cell] for cell in cells if cell.ratio in shared}, metric)

    if shared:
        yield best(first), best(second)


def _best(groups: Mapping[Cell, Hashable], values: Mapping[Cell, dict[int, float]], metric: str) -> list[Choice]:
    members: dict[Hashable, dict[Cell, dict[int, float]]] = {}
    for cell, group in groups.items():
        members.setdefault(group, {})[cell] = values[cell]
    return [_chosen(candidates, metric) for candidates in members.values()]


def _chosen(candidates: Mapping[Cell, dict[int, float]], metric: str) -> Choice:
    """The best mean of the seeds that all have, so that none gains by failing on a hard one; at a tie, the smaller ratio.

    One that failed on more than half of the seeds is not chosen, nor are the others judged by the few that it has.
    """
    most = max(map(len, candidates.values()))
    sound = {cell: values for cell, values in candidates.items() if 2 * len(values) >= most}
    shared = set.intersection(*(set(values) for values in sound.values()))

    def rank(cell: Cell) -> tuple[float, float]:
        values = sound[cell]
        mean = mean_of(values[seed] for seed in shared or values).mean
        assert mean is not None
        return round(better_sign(metric) * mean, 6), -cell.ratio  # means of the same accuracies differ in last digits

    return Choice(max(sound, key=rank), len(candidates))
