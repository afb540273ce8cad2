"""An ablation's cells and numbers as people write them: "DropKey decreasing 0.3", "+2.6 ± 0.2 [+2.1, +3.1]"."""

import re

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.statistics import Comparison, Mean

REMEDIES = {"finish": "finished without dropping", "monte_carlo": "Monte Carlo"}
_SHARE = re.compile(r"acc\d*$|^map$|^f1_|_f1$|^exact_match$|^hamming_loss$|^calibration_error$")


def title(cell: Cell) -> str:
    """What a cell was told. Element, the paper's structure, is not said."""
    ratio = f"mean {cell.ratio:g}" if cell.match_mean else f"{cell.ratio:g}"
    words = {"none": ["none"], "attention_dropout": ["attention dropout", ratio], "dropkey": ["DropKey", cell.schedule, ratio]}
    said = [*words[cell.what], structure_title(cell) if cell.structure != "element" else ""]
    return " ".join(filter(None, said)) + (f", {REMEDIES[cell.remedy]}" if cell.remedy != "none" else "")


def structure_title(cell: Cell) -> str:
    """A structure, with the side of its windows."""
    return f"{cell.structure} {cell.window_size}×{cell.window_size}" if cell.window_size else cell.structure


def is_share(metric: str) -> bool:
    """Whether a metric lies in [0, 1] and is said in percent, its differences in points."""
    return _SHARE.search(metric.rpartition("/")[2]) is not None


def unit(metric: str) -> str:
    """Of differences: " points", or nothing."""
    return " points" if is_share(metric) else ""


def number(value: float, metric: str) -> str:
    """A value without its unit: percent for a share."""
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.4f}"


def change(value: float, metric: str) -> str:
    """A difference with its sign, without its unit; 0 has none."""
    text = number(abs(value), metric)
    if not float(text):
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def mean_text(mean: Mean, metric: str) -> str:
    """``90.0 ± 0.3``: the mean and its standard error, where there is one."""
    if mean.mean is None:
        return "–"
    return number(mean.mean, metric) + ("" if mean.error is None else f" ± {number(mean.error, metric)}")


def difference_text(comparison: Comparison, metric: str) -> str:
    """``+2.6 ± 0.2 [+2.1, +3.1]``: the mean difference, its standard error and its interval, as far as there are any."""
    difference = comparison.pairs
    if difference.mean is None:
        return "–"
    text = change(difference.mean, metric) + ("" if difference.error is None else f" ± {number(difference.error, metric)}")
    if comparison.interval is None:
        return text
    lower, upper = (change(end, metric) for end in comparison.interval)
    return f"{text} [{lower}, {upper}]"


def p_text(p: float | None) -> str:
    """A p value, as far as it can be believed."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
