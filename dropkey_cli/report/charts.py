"""The charts of a report that show predictions: the confusion matrix and the reliability diagram."""

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from dropkey_cli.report.pictures import COLORS, panel
from dropkey_cli.report.scores import BINS, Calibration

NUMBERED = 25
"""Up to so many classes, a confusion matrix names them and says the numbers of images."""
DRAWN = 200
"""A confusion matrix of more classes than this is a grey square: its pairs are listed instead."""
NAME = 16
"""Letters of a class name on an axis."""
_SHARES = LinearSegmentedColormap.from_list("shares", [(0.23, 0.51, 0.96, 0.0), (0.23, 0.51, 0.96, 1.0)])


def short(name: str, letters: int) -> str:
    """A name that fits: its end left out if it is too long. Bytes of a file name that are no text become question marks."""
    name = name.encode("utf-8", "replace").decode("utf-8")
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def confusion_figure(matrix: Tensor, class_names: list[str]) -> Figure:
    """Share of every label's images by prediction, and their numbers where they can be read.

    Args:
        matrix: Number of images by label (rows) and prediction (columns), (K, K).
        class_names: Name of each of the K classes.
    """
    num_classes = len(class_names)
    side = min(max(3.6, 1.8 + 0.34 * num_classes), 8.5)
    figure, axes = panel(side, side)
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap=_SHARES, vmin=0, vmax=1, interpolation="nearest")
    if num_classes <= NUMBERED:
        names = [short(name, NAME) for name in class_names]
        axes.set_xticks(range(num_classes), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(num_classes), names)
        _write_numbers(axes, matrix, shares)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.spines[:].set_visible(True)
    return figure


def _write_numbers(axes: Axes, matrix: Tensor, shares: Tensor) -> None:
    for row, (counts, parts) in enumerate(zip(matrix.tolist(), shares.tolist(), strict=True)):
        for column, (count, share) in enumerate(zip(counts, parts, strict=True)):
            if count:
                color = {"color": "white"} if share > 0.6 else {}
                size = 8 if count < 1000 else 6
                axes.text(column, row, str(count), ha="center", va="center", fontsize=size, **color)  # type: ignore[arg-type]


def calibration_figure(found: Calibration) -> Figure:
    """Accuracy against the probability of the answers, and below how many answers there are."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    centers = [(place + 0.5) / BINS for place in range(BINS)]
    filled = [place for place, count in enumerate(found.count) if count]
    width = 0.9 / BINS
    upper.bar([centers[place] for place in filled], [found.accuracy[place] for place in filled], width, color=COLORS[0])
    upper.plot(
        [found.confidence[place] for place in filled],
        [found.confidence[place] for place in filled],
        color=COLORS[1], marker="_", markersize=9, markeredgewidth=2, linestyle="none", label="mean probability",
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], color=COLORS[5], linewidth=1, linestyle=":", label="perfect calibration")
    upper.set_ylabel("share that is right")
    upper.set_ylim(0, 1.02)
    upper.grid(visible=True)
    upper.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    lower.bar(centers, found.count, width, color=COLORS[0])
    lower.set_ylabel("images")
    lower.set_xlabel("probability of the answer")
    lower.set_xlim(0, 1)
    return figure
