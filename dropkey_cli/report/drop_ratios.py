"""The picture of a run's drop ratios: layers × time, configured and observed, side by side with one scale."""

import csv
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

MAX_COLUMNS = 400
"""More points in time than this are put together; a picture has not many more pixels for them."""


def draw_drop_ratios(rows: Path, picture: Path) -> None:
    """Draw ``drop_ratio.csv``, as `drop_ratio_figure` does, into a file."""
    figure = drop_ratio_figure(rows)
    if figure is not None:
        figure.savefig(picture, dpi=120)


def drop_ratio_figure(rows: Path) -> Figure | None:
    """The picture of ``drop_ratio.csv``; None where there are no rows.

    Neighbouring logging steps of a long run share a column: the ratio of all their draws.

    Args:
        rows: The file; a last line that was cut short is left out.
    """
    steps, names, counts = _columns(rows)
    if not steps:
        return None
    configured, observed = counts[..., 0] / counts[..., 2], counts[..., 1] / counts[..., 2]  # (T, L)
    figure = Figure(figsize=(12, max(2.8, 1.2 + 0.2 * len(names))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    scale = max(float(configured.max()), float(observed.max())) or 1.0
    _heat_map(left, configured, steps, scale, "configured drop ratio")
    mesh = _heat_map(right, observed, steps, scale, "observed drop ratio")
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.invert_yaxis()
    figure.colorbar(mesh, ax=[left, right], pad=0.01)
    return figure


def _heat_map(axis: Axes, ratios: Tensor, steps: list[int], scale: float, title: str) -> QuadMesh:
    """One cell per layer and column; a column reaches from the step after the last column's to its own."""
    ends = [0, *(step + 1 for step in steps)]
    borders = [layer - 0.5 for layer in range(ratios.shape[1] + 1)]
    mesh = axis.pcolormesh(ends, borders, ratios.T.numpy(), cmap="viridis", vmin=0, vmax=scale, rasterized=True)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("optimizer steps")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return mesh


def _columns(rows: Path) -> tuple[list[int], list[str], Tensor]:
    """Last steps (T), layers (L) and sums (T, L, 3) as in `_weights`, with neighbouring steps put together."""
    steps, names = [], list[str]()
    points = []
    for step, lines in groupby(_lines(rows), lambda line: int(line["step"])):
        found = list(lines)
        if names and [line["layer"] for line in found] != names:
            continue  # cut short
        names = [line["layer"] for line in found]
        steps.append(step)
        points.append([_weights(line) for line in found])
    if not steps:
        return [], names, torch.empty(0, len(names), 3)
    width = -(-len(steps) // MAX_COLUMNS)
    sums = torch.stack([part.sum(0) for part in torch.split(torch.tensor(points, dtype=torch.float64), width)])
    return [steps[min(end, len(steps)) - 1] for end in range(width, len(steps) + width, width)], names, sums


def _weights(line: dict[str, str]) -> tuple[float, float, float]:
    """Configured and observed ratio times a weight, and the weight: the draws, or next to nothing where there are none."""
    weight = max(float(line["draws"]), 1e-9)
    return float(line["configured"]) * weight, float(line["observed"]) * weight, weight


def _lines(rows: Path) -> Iterator[dict[str, str]]:
    with rows.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(line for line in file if line.endswith("\n"))
