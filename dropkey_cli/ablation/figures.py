"""The figures of an ablation: accuracy by ratio, and what structures and remedies change, with how sure that is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.results import Row
from dropkey_cli.ablation.statistics import Comparison, Mean, compare, mean_of, values_of
from dropkey_cli.ablation.wording import REMEDIES, is_share, structure_title, title, unit
from dropkey_cli.report.pictures import COLORS, INK, drawing, panel, to_png

_WIDTH = 6.0
_LOOKS = ((COLORS[0], "o", "-"), (COLORS[1], "s", "--"), (COLORS[3], "^", "-."), (COLORS[2], "D", ":"), (COLORS[5], "v", "-"))
"""Colour, marker and line of a series: who cannot tell the colours apart has the other two."""
_LINES = ("attention dropout", "constant", "decreasing", "increasing")
"""What has the first looks in the figure of the ratios, whatever else is in it."""

Values = Mapping[Cell, dict[int, float]]


def draw_figures(folder: Path, rows: Iterable[Row], metric: str) -> list[Path]:
    """Draw what there is to compare, each as PNG and SVG; the files.

    Args:
        folder: Of the ablation; it is there.
        rows: Of its table.
        metric: What is shown, e.g. test/acc1.
    """
    found = values_of(rows, metric)
    kinds: dict[str, Callable[[Values, str], Figure | None]] = {
        "ratio": ratio_figure,
        "structure": structure_figure,
        "remedy": remedy_figure,
    }
    files = []
    with drawing():
        for name, draw in kinds.items():
            if (figure := draw(found, metric)) is not None:
                files += _save(figure, folder / f"{name}.png", folder / f"{name}.svg")
    return files


def _save(figure: Figure, png: Path, svg: Path) -> list[Path]:
    to_png(figure, png)
    figure.savefig(svg, facecolor="white", metadata={"Date": None, "Creator": None})  # the same bytes at every drawing
    return [png, svg]


def ratio_figure(found: Values, metric: str) -> Figure | None:
    """The metric over the ratio, a line per schedule and one for attention dropout; None below two points.

    Args:
        found: Values by cell and seed.
        metric: Its name.
    """
    lines: dict[Cell, list[Cell]] = {}
    for cell in found:
        if cell.what != "none" and cell.structure in ("", "element") and cell.remedy == "none":
            lines.setdefault(replace(cell, ratio=0.0), []).append(cell)
    if sum(map(len, lines.values())) < 2:
        return None
    figure, axes = panel(_WIDTH, 3.6)
    _band(axes, found, metric)
    ratios = sorted({cell.ratio for cells in lines.values() for cell in cells})
    gap = min((b - a for a, b in pairwise(ratios)), default=0.1)
    for place, (line, cells) in enumerate(lines.items()):
        shift = (place - (len(lines) - 1) / 2) * 0.12 * gap  # error bars beside each other
        means = {cell.ratio + shift: mean_of(found[cell].values()) for cell in sorted(cells, key=lambda cell: cell.ratio)}
        _means(axes, means, metric, line)
    axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    counts = _seeds(len(found[cell]) for cells in lines.values() for cell in cells)
    axes.set_xlabel(f"ratio\n(mean ± standard error, {counts})")
    axes.set_ylabel(f"{metric}, %" if is_share(metric) else metric)
    _finish(figure, axes)
    return figure


def _line_title(cell: Cell) -> str:
    if cell.what != "dropkey":
        return "attention dropout"
    return f"DropKey {cell.schedule}" + (", same mean" if cell.match_mean else "")


def _band(axes: Axes, found: Values, metric: str) -> None:
    """No dropping has no ratio: a line from side to side, with its standard error."""
    if Cell() not in found:
        return
    none = mean_of(found[Cell()].values())
    assert none.mean is not None
    mean, error = _scaled(none.mean, metric), _scaled(none.error or 0.0, metric)
    axes.axhspan(mean - error, mean + error, color=INK, alpha=0.15, linewidth=0)
    axes.axhline(mean, color=INK, linewidth=1, label="none")


def _means(axes: Axes, means: dict[float, Mean], metric: str, line: Cell) -> None:
    """One line; that of a schedule scaled to the same mean looks like the schedule's own, with hollow markers."""
    color, marker, style = _LOOKS[_LINES.index(line.schedule or "attention dropout")]
    heights = [_scaled(mean.mean or 0.0, metric) for mean in means.values()]
    errors = [_scaled(mean.error or 0.0, metric) for mean in means.values()]
    axes.errorbar(
        list(means), heights, errors, color=color, marker=marker, linestyle=style, label=_line_title(line),
        linewidth=1.4, markersize=4.5, elinewidth=1.2, capsize=2, markerfacecolor="white" if line.match_mean else color,
    )  # fmt: skip


def structure_figure(found: Values, metric: str) -> Figure | None:
    """What each structure changes, a colour per schedule and ratio; None below two structures.

    Args:
        found: Values by cell and seed: compared with no dropping where that is among them, else with ``element``.
        metric: Its name.
    """
    alike: dict[Cell, list[Cell]] = {}
    for cell in found:
        if cell.what == "dropkey" and cell.remedy == "none":
            alike.setdefault(replace(cell, structure="element", window_size=None), []).append(cell)
    reference = "none" if Cell() in found else "element"
    dots = {
        title(element): {structure_title(cell): compare(found[cell], found[base]) for cell in cells}
        for element, cells in alike.items()
        if len(cells) > 1 and (base := Cell() if reference == "none" else element) in found
    }
    return _changes(dots, metric, f"difference to {reference}") if dots else None


def remedy_figure(found: Values, metric: str) -> Figure | None:
    """What each remedy changes in the training that it was added to; None without a remedy.

    Args:
        found: Values by cell and seed.
        metric: Its name.
    """
    dots: dict[str, dict[str, Comparison]] = {}
    for cell in found:
        without = replace(cell, remedy="none")
        if cell.remedy != "none" and without in found:
            name = REMEDIES[cell.remedy]
            dots.setdefault(name, {})[title(without)] = compare(found[cell], found[without])
    return _changes(dots, metric, "change by the remedy") if dots else None


def _changes(dots: dict[str, dict[str, Comparison]], metric: str, said: str) -> Figure:
    """Paired differences with their intervals: a row per name, a colour per series, 0 marked."""
    names = list(dict.fromkeys(name for each in dots.values() for name in each))
    step = 0.7 / len(dots)
    figure, axes = panel(_WIDTH, 1.4 + len(names) * max(0.3, 0.17 * len(dots)))
    axes.axvline(0, color=INK, linewidth=1)
    for place, (label, each) in enumerate(dots.items()):
        shift = (place - (len(dots) - 1) / 2) * step
        _dots(axes, {names.index(name) + shift: found for name, found in each.items()}, metric, label=label, place=place)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    counts = _seeds(found.pairs.count for each in dots.values() for found in each.values())
    axes.set_xlabel(f"{said}: {metric}{',' + unit(metric) if unit(metric) else ''}\n(paired, 95 % interval, {counts})")
    _finish(figure, axes)
    return figure


def _dots(axes: Axes, rows: dict[float, Comparison], metric: str, *, label: str, place: int) -> None:
    color, marker, _ = _LOOKS[place % len(_LOOKS)]
    shown = {height: each for height, each in rows.items() if each.pairs.mean is not None}
    means = [_scaled(each.pairs.mean or 0.0, metric) for each in shown.values()]
    ends = [each.interval or (each.pairs.mean or 0.0,) * 2 for each in shown.values()]
    errors = [
        [mean - _scaled(lower, metric) for mean, (lower, _) in zip(means, ends, strict=True)],
        [_scaled(upper, metric) - mean for mean, (_, upper) in zip(means, ends, strict=True)],
    ]
    axes.errorbar(
        means, list(shown), xerr=errors, color=color, marker=marker, linestyle="none", label=label,
        markersize=5, elinewidth=1.4, capsize=2.5,
    )  # fmt: skip


def _finish(figure: Figure, axes: Axes) -> None:
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    elif labels:
        axes.set_title(labels[0], loc="left")


def _scaled(value: float, metric: str) -> float:
    return 100 * value if is_share(metric) else value


def _seeds(counts: Iterable[int]) -> str:
    counts = list(counts)
    least, most = min(counts), max(counts)
    return f"{least} seeds" if least == most else f"{least} to {most} seeds"
