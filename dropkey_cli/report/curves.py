"""The curves of a training run, from its ``metrics.csv``: loss, accuracy, learning rate, drop ratio."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from dropkey_cli.report.pictures import COLORS, panel

POINTS = 400
"""More points of a curve than this are put together, each the mean of its neighbours."""


@dataclass
class Curve:
    """One column of the file: optimizer steps and values."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def read_curves(path: Path) -> dict[str, Curve]:
    """The curves by column name; what is no number is left out."""
    curves: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = _number(row.pop("step", None))
            for name, text in row.items():
                value = _number(text)
                if step is not None and value is not None:
                    curve = curves.setdefault(name, Curve())
                    curve.steps.append(step + 1)  # Lightning counts from 0
                    curve.values.append(value)
    return curves


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) and text else None
    except ValueError:
        return None


def curve_figures(curves: dict[str, Curve], best_step: int | None) -> Iterator[tuple[str, Figure]]:
    """One figure per group of curves, with its name; groups without a curve have none.

    Args:
        curves: As `read_curves` gives them.
        best_step: Optimizer steps before the best epoch's validation, marked by a line; None marks nothing.
    """
    for name, wanted in _GROUPS.items():
        found = {column: curves[column] for column in curves if wanted(column)}
        if name == "accuracy":
            found = {column: curve for column, curve in found.items() if 0 <= min(curve.values) <= max(curve.values) <= 1}
        if found:
            yield name, _figure(name, found, best_step)


def _stage(column: str) -> bool:
    return column.startswith(("train/", "val/")) and "/attention_" not in column


_GROUPS: dict[str, Callable[[str], bool]] = {
    "loss": lambda column: _stage(column) and column.endswith("loss"),
    "accuracy": lambda column: (
        (_stage(column) and column.startswith("val/") and not column.endswith("loss")) or column == "train/acc1"
    ),
    "learning rate": lambda column: column == "train/lr",
    "drop ratio (mean over layers)": lambda column: column == "drop_ratio/mean",
    "entropy of attention (nats)": lambda column: column.endswith("/attention_entropy"),
}
"""Name of a chart, and which columns it shows."""


def _figure(name: str, curves: dict[str, Curve], best_step: int | None) -> Figure:
    figure, axes = panel()
    for color, (column, curve) in zip(_cycle(len(curves)), sorted(curves.items()), strict=True):
        steps, values = _thinned(curve)
        alone = {"marker": "o", "markersize": 3.0} if len(steps) < 40 else {}
        axes.plot(steps, values, color=color, label=column, linewidth=1.5, **alone)  # type: ignore[arg-type]  # its options
    if best_step is not None:
        axes.axvline(best_step, color=COLORS[5], linewidth=1, linestyle=":", label="best")
    axes.set_title(name, loc="left")
    axes.set_xlabel("optimizer steps")
    axes.set_xlim(left=0)
    if name != "accuracy":
        axes.set_ylim(0, 1.08 * max(max(curve.values) for curve in curves.values()) or 1)
    axes.grid(visible=True)
    if len(curves) > 1:
        axes.legend()
    return figure


def _cycle(count: int) -> list[str]:
    return [COLORS[place % 5] for place in range(count)]


def _thinned(curve: Curve) -> tuple[list[float], list[float]]:
    width = -(-len(curve.steps) // POINTS)
    places = range(0, len(curve.steps), width)
    steps, values = (
        [sum(part) / len(part) for part in (column[place : place + width] for place in places)]
        for column in (curve.steps, curve.values)
    )
    return steps, values
