"""One cell of an ablation: what a recipe is told of DropKey, of attention dropout and of the remedy."""

from dataclasses import dataclass
from typing import Literal

What = Literal["none", "attention_dropout", "dropkey"]
Remedy = Literal["none", "finish", "monte_carlo"]


@dataclass(frozen=True)
class Cell:
    """What is compared. Where a field means nothing (no ratio without dropping), it has its default, so that equals are equal.

    Args:
        what: none; attention dropout, after the softmax; DropKey, before it.
        ratio: Share of keys or weights that is dropped, in [0, 1).
        schedule: The ratio over depth: constant, increasing or decreasing; "" where there is none.
        match_mean: Whether the schedule is scaled to the mean ``ratio``.
        structure: element, key, block or cross; "" where there is none.
        window_size: Side of the windows of ``block``, in tokens; None for the structure's own and where there is none.
        remedy: What is done about the gap between training and inference: nothing, finishing without DropKey, Monte Carlo.
    """

    what: What = "none"
    ratio: float = 0.0
    schedule: str = ""
    match_mean: bool = False
    structure: str = ""
    window_size: int | None = None
    remedy: Remedy = "none"

    @property
    def name(self) -> str:
        """Unique, readable, and fit for a folder's name, e.g. ``dropkey_decreasing_0.3_element_finish``."""
        if self.what == "none":
            return "none"
        schedule = [self.schedule + ("_mean" if self.match_mean else "")] if self.schedule else []
        structure = [self.structure + (str(self.window_size) if self.window_size else "")] if self.structure else []
        remedy = [self.remedy] if self.remedy != "none" else []
        return "_".join([self.what, *schedule, f"{self.ratio:g}", *structure, *remedy])
