import itertools
import math

import pytest
import torch

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout, dropkey_mask
from dropkey_cli.method.settings import Structure
from dropkey_cli.method.variance import deviation, dropped_variance

GRIDS = [KeyLayout(2, 2, 0, 2), KeyLayout(2, 3, 1, 2), KeyLayout(1, 3, 2, 3), KeyLayout(3, 2, 0, 1)]


def moments(chances: int, hit: float, dropped: list[list[int]]) -> tuple[float, float]:
    """Mean and variance of the number of dropped keys, by going through every outcome of ``chances`` draws.

    Args:
        chances: Independent draws, each a hit with probability ``hit``.
        hit: Their probability.
        dropped: For each key, the draws of which any one drops it.
    """
    mean = square = 0.0
    for outcome in itertools.product((False, True), repeat=chances):
        probability = math.prod(hit if drawn else 1 - hit for drawn in outcome)
        count = sum(any(outcome[draw] for draw in draws) for draws in dropped)
        mean += probability * count
        square += probability * count**2
    return mean, square - mean**2


def windows(layout: KeyLayout) -> tuple[int, list[list[int]]]:
    side, width = layout.window_size, layout.width + layout.window_size - 1
    window = [i * width + j for i in range(side) for j in range(side)]
    keys = [[y * width + x + cell for cell in window] for y in range(layout.height) for x in range(layout.width)]
    return (layout.height + side - 1) * width, keys


def lines(layout: KeyLayout) -> tuple[int, list[list[int]]]:
    keys = [[y, layout.height + x] for y in range(layout.height) for x in range(layout.width)]
    return layout.height + layout.width, keys


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("layout", GRIDS, ids=str)
@pytest.mark.parametrize("structure", ["block", "cross"])
def test_variance_is_that_of_all_outcomes(structure: Structure, layout: KeyLayout, ratio: float) -> None:
    chances, keys = windows(layout) if structure == "block" else lines(layout)
    together = layout.window_size**2 if structure == "block" else 2
    mean, variance = moments(chances, 1 - (1 - ratio) ** (1 / together), keys)
    assert mean == pytest.approx(layout.height * layout.width * ratio)
    variance += layout.prefix_tokens * ratio * (1 - ratio)
    assert dropped_variance(layout.num_keys, ratio, structure, layout) == pytest.approx(variance)
    assert dropped_variance(7 * layout.num_keys, ratio, structure, layout) == pytest.approx(7 * variance)


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("structure", ["element", "key", "block", "cross"])
def test_variance_is_that_of_real_masks(structure: Structure, ratio: float) -> None:
    layout = KeyLayout(5, 7, 1, 3)
    samples = 20_000
    shape = (samples, 2, 1 if structure == "key" else 2, layout.num_keys)
    mask = dropkey_mask(3, shape, ratio, structure, layout)
    counts = mask.flatten(1).sum(1, dtype=torch.float64)
    draws = mask[0].numel()
    expected = dropped_variance(draws, round(ratio * 2**16) / 2**16, structure, layout)
    # The variance of a sample variance, from the fourth moment
    error = math.sqrt(float((counts - counts.mean()).pow(4).mean() - counts.var() ** 2) / samples)
    assert abs(float(counts.var()) - expected) < 4 * error
    assert error < 0.03 * expected
    assert abs(float(counts.mean()) - ratio * draws) < 4 * math.sqrt(expected / samples)


def test_independent_draws_have_the_binomial_variance() -> None:
    assert dropped_variance(1000, 0.25) == dropped_variance(1000, 0.25, "key") == 187.5
    assert dropped_variance(1000, 0.0, "block", KeyLayout(2, 2)) == 0


def test_layout_is_needed_for_what_lies_on_a_grid() -> None:
    with pytest.raises(InputError, match="structure 'cross' needs to know how the keys lie on a grid: give their layout"):
        dropped_variance(1, 0.5, "cross")


def test_deviation_is_in_standard_deviations() -> None:
    assert deviation(110, 100.0, 25.0) == deviation(90, 100.0, 25.0) == 2.0
    assert deviation(0, 0.0, 0.0) == 0.0
    assert deviation(1, 0.0, 0.0) == math.inf
