"""Attention and softmax that drop keys before the softmax (arXiv:2208.02646, equations 13 and 14)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout, draw_mask, seed_tensor
from dropkey_cli.method.settings import Structure

FORBIDDEN_GAP = 1000.0
"""Logits so far below the largest of their row are forbidden by another mask (fp16 masks with -1e4, others with finfo.min)."""


def dropkey_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ratio: float | Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    structure: Structure = "element",
    layout: KeyLayout | None = None,
    seed: int | Tensor | None = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention in which every query loses random keys before the softmax.

    Letters: B batch, H heads, N queries, S keys, D head dim; any number of axes may stand before N and S.

    Args:
        q: Queries (B, H, N, D).
        k: Keys (B, H, S, D).
        v: Values (B, H, S, D).
        ratio: Drop ratio in [0, 1). The number 0 is `F.scaled_dot_product_attention` itself.
        attn_mask: Further mask, broadcast to (B, H, N, S): boolean (True = may attend) or added to the logits. What it
            forbids stays forbidden, finite masks (-1e4, finfo.min) included.
        is_causal: Forbid every key after the query.
        scale: Factor of the logits, by default D ** -0.5.
        structure: Pattern of the dropped keys, see `dropkey_mask`.
        layout: How the keys lie on a grid, for the structures block and cross.
        seed: Seed of the mask; by default one is drawn from torch's generator.
        dropout_p: Dropout of the weights, after the softmax.
        enable_gqa: Let groups of query heads share a key head.
        counts: int64 (2,): the numbers of dropped draws and of all draws are added to it.

    Returns:
        (B, H, N, D). A query that lost every key gives 0 and gets gradient 0.
    """
    if isinstance(ratio, float | int) and ratio == 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    shape = logits_shape(q, k, enable_gqa=enable_gqa)
    dropped = _draw(shape, ratio, structure, layout, seed, q.device, counts)
    if is_causal:
        causal = torch.ones(shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        dropped = dropped | causal
    allowed = _combine(dropped, attn_mask)
    return F.scaled_dot_product_attention(q, k, v, allowed, dropout_p, scale=scale, enable_gqa=enable_gqa)


def logits_shape(q: Tensor, k: Tensor, *, enable_gqa: bool = False) -> tuple[int, ...]:
    """Shape of the logits of queries (…, N, D) and keys (…, S, D), whose leading axes broadcast: (…, N, S)."""
    leading = (*k.shape[:-3], q.shape[-3]) if enable_gqa else k.shape[:-2]
    samples_and_heads: torch.Size = torch.broadcast_shapes(q.shape[:-2], leading)  # type: ignore[no-untyped-call]
    return (*samples_and_heads, q.shape[-2], k.shape[-2])


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
    dropped = _draw(logits.shape, ratio, structure, layout, seed, logits.device, counts, shared_heads=shared_heads)
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


def _draw(
    shape: Sequence[int],
    ratio: float | Tensor,
    structure: Structure,
    layout: KeyLayout | None,
    seed: int | Tensor | None,
    device: torch.device,
    counts: Tensor | None,
    *,
    shared_heads: int = 1,
) -> Tensor:
    """Mask for logits of ``shape``: the last three axes are head, query, key, everything in front counts as samples."""
    if len(shape) < 3:
        raise InputError(f"attention logits have at least 3 axes (samples or heads, queries, keys), given {tuple(shape)}")
    *samples, heads, queries, keys = shape
    drawn = (torch.Size(samples).numel(), heads // shared_heads, queries, keys)
    mask = draw_mask(seed_tensor(seed, device), drawn, ratio, structure, layout)
    if counts is not None:
        counts[0].add_(mask.count_nonzero())
        counts[1].add_(mask.numel())
    mask = mask.view(*samples, heads // shared_heads, mask.shape[-2], keys)
    return mask.repeat_interleave(shared_heads, -3) if shared_heads > 1 else mask


def _combine(dropped: Tensor, attn_mask: Tensor | None) -> Tensor:
    """The mask for `F.scaled_dot_product_attention` that forbids what either of the two forbids."""
    if attn_mask is None:
        return ~dropped
    if attn_mask.dtype == torch.bool:
        return attn_mask & ~dropped
    left = attn_mask.masked_fill(dropped, -torch.inf)
    # Where only finitely forbidden keys are left, they must not take over: such a query has lost all its keys.
    best, best_left = attn_mask.detach().amax(-1, keepdim=True), left.detach().amax(-1, keepdim=True)
    return left.masked_fill(best_left < best - FORBIDDEN_GAP, -torch.inf)
