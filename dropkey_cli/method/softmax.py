"""Softmax that drops keys: for attention modules that compute their weights themselves (arXiv:2208.02646, equation 14)."""

from typing import Any

import torch
from torch import Tensor

from dropkey_cli.method.layer_mask import layer_mask
from dropkey_cli.method.mask import KeyLayout
from dropkey_cli.method.settings import Structure

FORBIDDEN_GAP = 1000.0
"""Logits so far below the largest of their row are forbidden by another mask (fp16 masks with -1e4, others with finfo.min)."""


def dropkey_softmax(
    logits: Tensor,
    ratio: float | Tensor,
    *,
    structure: Structure = "element",
    layout: KeyLayout | None = None,
    seed: int | Tensor | None = None,
    dtype: torch.dtype | None = None,
    keep_empty_rows: bool = False,
    shared_heads: int = 1,
    counts: Tensor | None = None,
) -> Tensor:
    """Softmax over the last axis in which every query loses random keys.

    Args:
        logits: Attention logits (B, H, N, S), or (B·H, N, S), or with more axes in front.
        ratio: Drop ratio in [0, 1). The number 0 is `torch.softmax` itself.
        structure: Pattern of the dropped keys, see `dropkey_mask`.
        layout: How the keys lie on a grid, for the structures block and cross.
        seed: Seed of the mask; by default one is drawn from torch's generator.
        dtype: The weights' type; by default that of the logits.
        keep_empty_rows: Give a query that would lose every key all of them back, instead of weights 0 (for modules that
            divide by the sum of the weights).
        shared_heads: So many neighbouring heads share one mask; a divisor of H.
        counts: int64 (2,): the numbers of dropped draws and of all draws are added to it.

    Returns:
        Weights like ``logits``. A query that lost every key it may attend to has weights 0 and gets gradient 0.
    """
    if isinstance(ratio, float | int) and ratio == 0:
        return torch.softmax(logits, -1, dtype)
    dropped = layer_mask(
        logits.shape,
        ratio,
        structure=structure,
        layout=layout,
        seed=seed,
        device=logits.device,
        shared_heads=shared_heads,
        counts=counts,
    )
    if keep_empty_rows:
        dropped = dropped & ~dropped.all(-1, keepdim=True)
    weights: Tensor = _MaskedSoftmax.apply(logits, dropped, dtype)
    return weights


class _MaskedSoftmax(torch.autograd.Function):
    """Softmax over what is left. Its backward needs the weights only, so neither mask nor masked logits are kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, dropped: Tensor, dtype: torch.dtype | None) -> Tensor:  # noqa: ANN401
        left = logits.masked_fill(dropped, -torch.inf)
        least = (logits.amax(-1, keepdim=True) - FORBIDDEN_GAP).clamp(min=torch.finfo(logits.dtype).min)
        empty = left.amax(-1, keepdim=True) < least  # (…, N, 1); False where a logit is NaN, which must stay visible
        weights = torch.softmax(left, -1, dtype).masked_fill_(empty, 0)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (weights,) = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype), None, None
