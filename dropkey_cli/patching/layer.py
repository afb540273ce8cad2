"""What DropKey does in one layer: ratio, structure, counts; the same object for all calls of the layer."""

import math
from collections.abc import Sequence
from ctypes import c_float

import torch
from torch import Tensor

from dropkey_cli.method.mask import KeyLayout
from dropkey_cli.method.settings import Structure
from dropkey_cli.method.variance import dropped_variance
from dropkey_cli.patching.counting import UNIT
from dropkey_cli.patching.known import Rule
from dropkey_cli.patching.observation import Observe


class LayerDropKey:
    """DropKey's state of one layer, a plain attribute of the module: no buffer, so in no state_dict, broadcast or average.

    Args:
        ratio: Drop ratio in [0, 1).
        rule: What is special about the module's class.
        structure: Pattern of the dropped keys.
        layout: How the keys lie on a grid, for the structures block and cross.
        shared_heads: So many neighbouring heads share one mask.
    """

    def __init__(
        self,
        ratio: float,
        rule: Rule,
        *,
        structure: Structure = "element",
        layout: KeyLayout | None = None,
        shared_heads: int = 1,
    ) -> None:
        # Both stay real and exact whatever default device and dtype the model is built under (meta, bfloat16).
        self.ratio = torch.tensor(ratio, dtype=torch.float32, device="cpu")  # a tensor: a new value compiles nothing anew
        self.counts = torch.zeros(2, dtype=torch.int64, device="cpu")  # dropped draws, all draws
        self.settled = torch.zeros(3, dtype=torch.int64, device="cpu")  # see settle
        self.rule = rule
        self.structure = structure
        self.layout = layout
        self.shared_heads = shared_heads
        self.enabled = True
        self.sampling = False  # Monte Carlo: also in eval
        self.observe: Observe | None = None  # is shown the attention weights
        self.images: Tensor | None = None  # their numbers (B,), then: masks by image
        self._describe(ratio)

    def acts(self, training: bool) -> bool:
        """Whether keys are dropped in this forward."""
        return self.nonzero and self.enabled and (training or self.sampling)

    def set_ratio(self, ratio: float) -> None:
        """Another ratio, in place."""
        self.settle()
        self.ratio.fill_(ratio)
        self._describe(ratio)

    def _describe(self, ratio: float) -> None:
        self.nonzero = ratio > 0
        self.share = min(round(c_float(ratio).value * UNIT), UNIT - 1)  # as `ratio_share` of the float32 above
        variance = dropped_variance(UNIT, self.share / UNIT, self.structure, self.layout)
        self.variance = math.ceil(variance)  # of one draw, in 1 / UNIT

    def settle(self) -> None:
        """Add what the draws since the last call should have dropped at the present ratio, without waiting for the device.

        ``settled`` holds the draws added up so far, and UNIT times the expected value and the variance of the dropped ones;
        in integers, since MPS has no float64 and sums must be the same in every order.
        """
        draws = self.counts[1] - self.settled[0]
        self.settled[0].add_(draws)
        self.settled[1].add_(draws, alpha=self.share)
        self.settled[2].add_(draws, alpha=self.variance)

    def tally(self) -> Tensor:
        """What was drawn since `clear`: dropped draws, all draws, and UNIT times what the first should be and its variance."""
        self.settle()
        return torch.cat([self.counts, self.settled[1:]])

    def clear(self) -> None:
        """Count anew, in place: compiled code holds on to the tensors."""
        self.counts.zero_()
        self.settled.zero_()

    def restore(self, tally: Sequence[int]) -> None:
        """Count on from what `tally` gave."""
        self.counts.copy_(torch.tensor(tally[:2]))
        self.settled.copy_(torch.tensor(tally[1:]))

    def to(self, device: torch.device) -> None:
        """Move to ``device``; values survive a detour over the meta device."""
        if device.type != "meta" and device != self.counts.device:
            self.ratio, self.counts, self.settled = (x.to(device) for x in (self.ratio, self.counts, self.settled))
