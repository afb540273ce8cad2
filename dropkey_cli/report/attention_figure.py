"""The picture of ``attention.csv``: entropy and strongest key over the layers, of one network or of several side by side."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dropkey_cli.report.attention_rows import AttentionRow, by_layer, read_attention
from dropkey_cli.report.pictures import COLORS, drawing, to_png

SHIFT = 0.12
"""Between the dots of two networks in one layer."""


def draw_attention(rows: Path, picture: Path) -> None:
    """Draw ``attention.csv`` into a file."""
    with drawing():
        to_png(attention_figure({"": read_attention(rows)}), picture)


def attention_figure(tables: Mapping[str, list[AttentionRow]]) -> Figure:
    """Entropy (left) and weight of the strongest key (right) by layer: a line for the mean over heads, a dot for each head.

    Args:
        tables: Of each network its rows, by the name to show, e.g. none, attention dropout, DropKey; all of one pass.
    """
    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (name, rows) in enumerate(tables.items()):
        shift = SHIFT * (place - (len(tables) - 1) / 2)
        for axes, field in ((left, "entropy"), (right, "top_key")):
            _draw(axes, rows, field, name=name, color=COLORS[place % len(COLORS)], shift=shift)
    modes = sorted({row.mode.replace("_", " ") for rows in tables.values() for row in rows})
    left.set_title(f"entropy of attention ({', '.join(modes)})", loc="left")
    left.set_ylabel("nats")
    right.set_title("weight of the strongest key", loc="left")
    for axes in (left, right):
        axes.set_xlabel("attention layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, axis="y")
    if len(tables) > 1:
        left.legend()
    return figure


def _draw(axes: Axes, rows: list[AttentionRow], field: str, *, name: str, color: str, shift: float) -> None:
    layers = [[float(getattr(row, field)) for row in of_layer] for of_layer in by_layer(rows).values()]
    numbers = range(1, len(layers) + 1)
    axes.plot(numbers, [sum(heads) / len(heads) for heads in layers], color=color, linewidth=1.5, label=name)
    dots = [(number + shift, value) for number, heads in zip(numbers, layers, strict=True) for value in heads]
    axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=color, markersize=2.5, alpha=0.6)
