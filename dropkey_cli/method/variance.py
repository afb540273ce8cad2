"""By how much the number of dropped draws varies by chance: what an observed drop ratio is judged by."""

import math

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout
from dropkey_cli.method.settings import Structure


def dropped_variance(draws: int, ratio: float, structure: Structure = "element", layout: KeyLayout | None = None) -> float:
    """Variance of the number of dropped draws among ``draws`` draws of `dropkey_mask`.

    Rows of a mask (all keys of one query) are independent, and so are all draws of the structures element and key. With
    p = ``ratio``, q = 1 - p and S keys to a row,

        var(draws) = draws / S · Σ cov(k, k') over all pairs of a row's keys,    cov(k, k') = P(both kept) - q²

    where P(both kept) is

        the same key    q, hence cov = p·q; independent keys, prefix tokens among them, have cov = 0
        block           q^((2s² - o) / s²), o = max(0, s - |dy|) · max(0, s - |dx|) the cells that the windows of two keys
                        (dy, dx) apart share, s the window's side
        cross           q^(3/2) for two keys of one row or of one column of the grid: three lines keep both

    Args:
        draws: As the layer counts them: with structure key once for all queries, with shared heads once for all of them.
        ratio: Drop ratio in [0, 1), as the mask rounds it: a multiple of 2^-16.
        structure: Pattern of the dropped keys.
        layout: How the keys lie on a grid: needed for block and cross.

    Raises:
        InputError: If ``layout`` is missing.
    """
    alone = ratio * (1 - ratio)
    if structure in ("element", "key"):
        return draws * alone
    if layout is None:
        raise InputError(f"structure {structure!r} needs to know how the keys lie on a grid: give their layout")
    grid = _block(ratio, layout) if structure == "block" else _cross(ratio, layout)
    return draws / layout.num_keys * (layout.prefix_tokens * alone + grid)


def deviation(dropped: int, expected: float, variance: float) -> float:
    """By how many standard deviations ``dropped`` lies off ``expected``, never negative."""
    if dropped == expected:
        return 0.0
    return abs(dropped - expected) / math.sqrt(variance) if variance > 0 else math.inf


def _block(ratio: float, layout: KeyLayout) -> float:
    """The sum of the covariances of all pairs of keys on the grid."""
    kept, side = 1 - ratio, layout.window_size
    total = 0.0
    for dy in range(1 - side, side):
        for dx in range(1 - side, side):
            pairs = max(0, layout.height - abs(dy)) * max(0, layout.width - abs(dx))
            shared = (side - abs(dy)) * (side - abs(dx)) / side**2
            total += pairs * (kept ** (2 - shared) - kept**2)
    return total


def _cross(ratio: float, layout: KeyLayout) -> float:
    """The sum of the covariances of all pairs of keys on the grid."""
    kept = 1 - ratio
    others = layout.width - 1 + layout.height - 1
    return layout.height * layout.width * (kept - kept**2 + others * (kept * math.sqrt(kept) - kept**2))
