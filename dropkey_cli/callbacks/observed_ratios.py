"""What layers dropped between two logging steps, beside what they should have dropped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dropkey_cli.method.variance import deviation
from dropkey_cli.patching.apply import DropKeyPlan
from dropkey_cli.patching.counting import UNIT

FIELDS = ("layer", "configured", "observed", "dropped", "draws")


@dataclass(frozen=True)
class ObservedLayer:
    """The draws of one layer, of all processes together.

    Args:
        layer: Its name.
        configured: The ratio at which the masks were drawn, the mean over the draws if it changed; without draws the present
            one, 0 where DropKey is switched off.
        dropped: Draws that dropped a key.
        draws: All draws.
        expected: How many of them should have dropped a key.
        variance: Variance of that number.
    """

    layer: str
    configured: float
    dropped: int
    draws: int
    expected: float
    variance: float

    @property
    def observed(self) -> float:
        """Share of the draws that dropped a key; 0 without draws."""
        return self.dropped / max(self.draws, 1)

    @property
    def sigma(self) -> float:
        """Standard deviation of the observed ratio."""
        return math.sqrt(self.variance) / max(self.draws, 1)

    @property
    def deviation(self) -> float:
        """By how many standard deviations the observed ratio is off."""
        return deviation(self.dropped, self.expected, self.variance)


def observe(plan: DropKeyPlan, tallies: Sequence[Sequence[int]]) -> list[ObservedLayer]:
    """The layers' draws.

    Args:
        plan: The patched layers.
        tallies: For each layer what `LayerDropKey.tally` gives, summed over processes (L, 4).
    """
    layers = []
    for layer, state, (dropped, draws, expected, variance) in zip(plan.layers, plan.states, tallies, strict=True):
        if expected != state.share * draws:  # the ratio has changed
            configured = expected / UNIT / draws
        else:
            configured = layer.ratio if draws or state.enabled else 0.0
        layers.append(ObservedLayer(layer.name, configured, dropped, draws, expected / UNIT, variance / UNIT))
    return layers


def drop_ratios(layers: Sequence[ObservedLayer]) -> dict[str, float]:
    """Observed and configured ratios by log key; ``drop_ratio/mean`` is the mean over the layers."""
    observed = {f"drop_ratio/{layer.layer}": layer.observed for layer in layers}
    mean = sum(observed.values()) / len(layers)
    return {
        **observed,
        "drop_ratio/mean": mean,
        **{f"drop_ratio_configured/{layer.layer}": layer.configured for layer in layers},
    }
