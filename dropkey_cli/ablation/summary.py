"""The outcome of an ablation for people: ``summary.csv``, ``summary.md``, and the same for the terminal."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.choice import Choice, Question, best_of_each_kind, questions
from dropkey_cli.ablation.results import Row
from dropkey_cli.ablation.statistics import CellSummary, better_sign, summarize
from dropkey_cli.ablation.wording import difference_text, mean_text, number, p_text, title, unit
from dropkey_cli.files import whole_file, write_csv

_COLUMNS = ("cell", "seeds", "mean ± se", "difference ± se [95 %]", "p (Holm)", "verdict")
_FIELDS = (
    *("cell", "what", "ratio", "schedule", "match_mean", "structure", "window_size", "remedy"),
    *("metric", "seeds", "failed", "mean", "standard_error"),
    *("baseline", "pairs", "difference", "difference_standard_error", "lower", "upper", "p", "p_holm", "outcome", "chosen"),
)
_WHY = " (the training did, or the value is no finite number)"
_VERDICTS = {"one seed": "one seed says nothing", "no seeds": "no seed in common"}


@dataclass(frozen=True)
class Summary:
    """What the three forms say.

    Args:
        metric: What is reported.
        selection_metric: What chose.
        baseline: What the cells are compared with.
        cells: One per cell.
        choices: Of DropKey, attention dropout and none, the best.
        questions: The paper's, asked of what was chosen.
    """

    metric: str
    selection_metric: str
    baseline: Cell
    cells: list[CellSummary]
    choices: dict[str, Choice]
    questions: list[Question]


def baseline_of(rows: Iterable[Row]) -> Cell:
    """No dropping where it was trained, else the first cell.

    Raises:
        ValueError: If there is no row.
    """
    cells = list(dict.fromkeys(row.cell for row in rows))
    if not cells:
        raise ValueError("an ablation without a row has no baseline")
    return Cell() if Cell() in cells else cells[0]


def write_summary(folder: Path, rows: Iterable[Row], *, metric: str, selection_metric: str) -> Group:
    """Write ``summary.csv`` and ``summary.md``; what the terminal shows of them.

    Args:
        folder: Of the ablation; it is there.
        rows: Of its table, one at least.
        metric: What is reported, e.g. test/acc1.
        selection_metric: What chooses, e.g. val/acc1.
    """
    rows = list(rows)
    baseline = baseline_of(rows)
    summary = Summary(
        metric,
        selection_metric,
        baseline,
        summarize(rows, metric, baseline=baseline),
        best_of_each_kind(rows, selection_metric),
        questions(rows, metric, selection_metric=selection_metric),
    )
    write_csv(folder / "summary.csv", _FIELDS, [_written(summary, cell) for cell in summary.cells])
    with whole_file(folder / "summary.md", "w", encoding="utf-8") as file:
        file.write(_markdown(summary))
    return _terminal(summary)


def _written(summary: Summary, row: CellSummary) -> list[object]:
    cell, found = row.cell, row.comparison
    told = [cell.name, cell.what, f"{cell.ratio:g}", cell.schedule, str(cell.match_mean).lower(), cell.structure]
    told += [str(cell.window_size or ""), cell.remedy, summary.metric]
    pairs = (found.pairs.count, found.pairs.mean, found.pairs.error) if found else (None, None, None)
    interval = found.interval if found and found.interval else (None, None)
    measured = [row.values.count, row.failed, row.values.mean, row.values.error, summary.baseline.name, *pairs, *interval]
    chosen = str(_chosen(summary, cell)).lower()
    return [*told, *map(_plain, measured), _plain(found.p if found else None), _plain(row.adjusted_p), row.outcome, chosen]


def _plain(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)


def _chosen(summary: Summary, cell: Cell) -> bool:
    return any(choice.cell == cell and choice.candidates > 1 for choice in summary.choices.values())


def _markdown(summary: Summary) -> str:
    lines = [f"# Ablation: {summary.metric}", ""]
    lines += _listed(summary)
    lines += [_line(_COLUMNS), _line([":--", "--:", "--:", "--:", "--:", ":--"])]
    lines += [_line(_cells(summary, row)) for row in summary.cells]
    return "\n".join([*lines, "", *(f"{line}  " for line in notes(summary))]) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(summary: Summary, row: CellSummary) -> list[str]:
    """One line of the table, as the columns are."""
    name = title(row.cell) + ("\\*" if _chosen(summary, row.cell) else "")
    seeds = f"{row.values.count}" + (f" ({row.failed} failed)" if row.failed else "")
    mean = mean_text(row.values, summary.metric)
    difference = "" if row.comparison is None else difference_text(row.comparison, summary.metric)
    p = "" if row.comparison is None else p_text(row.adjusted_p)
    return [name, seeds, mean, difference, p, _VERDICTS.get(row.outcome, row.outcome)]


def _terminal(summary: Summary) -> Group:
    table = Table(title=summary.metric, title_justify="left")
    for place, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if place in (0, 5) else "right", overflow="fold")
    for row in summary.cells:
        table.add_row(*(Text(cell.replace("\\*", "*")) for cell in _cells(summary, row)))
    parts = [Text(line) for line in _listed(summary)]
    return Group(*parts, table, *(Text(line.replace("\\*", "*"), style="dim") for line in notes(summary)))


def _listed(summary: Summary) -> list[str]:
    """The sentences, a line each, and an empty one below."""
    found = [f"- {line}" for line in sentences(summary)]
    return [*found, ""] if found else []


def sentences(summary: Summary) -> Iterator[str]:
    """What was found, plainly; first, what stands for each kind."""
    if summary.questions and all(question.comparison.p is None for question in summary.questions):
        yield "No two cells can be compared: two seeds in common are needed, and ten are better."
        return
    yield from _choice(summary)
    yield from (_sentence(question, summary.metric) for question in summary.questions)


def _choice(summary: Summary) -> Iterator[str]:
    """The cells that stand for DropKey and attention dropout, out of how many, and what that does to their figures."""
    chosen = [choice for what in ("dropkey", "attention_dropout") if (choice := summary.choices.get(what))]
    if not any(choice.candidates > 1 for choice in chosen):
        return
    words = ", ".join(f"“{title(choice.cell)}” out of {choice.candidates}" for choice in chosen)
    yield f"Chosen by the mean {summary.selection_metric}: {words}.{_flattery(summary)}"


def _flattery(summary: Summary) -> str:
    """What the choice does to the figures: that of other images does not help against luck of the trainings themselves."""
    if not better_sign(summary.metric):
        return ""
    if summary.selection_metric.partition("/")[0] == summary.metric.partition("/")[0]:
        return f" That flatters {summary.metric}, since the same images chose: hold out a test split."
    return f" That flatters {summary.metric} a little, since a lucky training is better on both."


def _sentence(question: Question, metric: str) -> str:
    first, second, found = title(question.first.cell), title(question.second.cell), question.comparison
    seeds = f"{found.pairs.count} {'seed' if found.pairs.count == 1 else 'seeds'}"
    if question.outcome in _VERDICTS:
        return f"“{first}” and “{second}” cannot be compared: {seeds} in common, two are needed and ten are better."
    difference = f"{difference_text(found, metric)}{unit(metric)} ({seeds}, p {p_text(question.adjusted_p)})"
    if question.outcome != "within noise":
        return f"“{first}” is {question.outcome} than “{second}”: {difference}."
    if found.interval is None or not found.interval[0] <= 0 <= found.interval[1]:
        noise = "among so many comparisons of so few seeds that is noise, more would tell"
        return f"“{first}” may differ from “{second}”: {difference}; {noise}."
    most = max(map(abs, found.interval))
    possible = f"; up to {number(most, metric)}{unit(metric)} are possible" if most else ""
    return f"No difference between “{first}” and “{second}” is seen: {difference}{possible}."


def notes(summary: Summary) -> Iterator[str]:
    """What the table means, and how far it can be believed."""
    yield _counts(summary.cells)
    name, percent = title(summary.baseline), ", in percent" if unit(summary.metric) else ""
    yield (
        f"Mean and standard error (se) over seeds of {summary.metric}{percent}. Differences are to “{name}”, on the seeds that "
        "both have: runs of one seed share their initial weights and the images of every batch in the same order; what is "
        "dropped differs by nature."
    )
    tested = sum(row.adjusted_p is not None for row in summary.cells)
    others = sum(question.adjusted_p is not None and question.second.cell != Cell() for question in summary.questions)
    apart = f", and by themselves the {others} other of the sentences" if others else ""
    if tested:
        yield (
            f"An interval (95 %, Student's t) is of one comparison alone. Verdicts and p count all {tested} of the table{apart}"
            ": by Holm's correction, differences that are none are all called noise with 95 % probability."
        )
    if any(_chosen(summary, row.cell) for row in summary.cells):
        yield "\\* best of its kind. Schedules and structures are compared at the best of the ratios that both were tried at."


def _counts(cells: Sequence[CellSummary]) -> str:
    counts = [row.values.count for row in cells]
    seeds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    failed = sum(row.failed for row in cells)
    return f"{len(cells)} cells of {seeds} seeds" + (f"; {failed} failed{_WHY}." if failed else ".")
