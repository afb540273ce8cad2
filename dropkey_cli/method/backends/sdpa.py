"""The backend for every device, dtype, mask and head size: PyTorch's SDPA with DropKey's mask added to the logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkey_cli.method.layer_mask import additive, layer_mask, logits_shape
from dropkey_cli.method.mask import KeyLayout
from dropkey_cli.method.settings import Structure
from dropkey_cli.method.softmax import FORBIDDEN_GAP


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ratio: float | Tensor,
    attn_mask: Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
    structure: Structure,
    layout: KeyLayout | None,
    seed: int | Tensor | None,
    dropout_p: float,
    enable_gqa: bool,
    counts: Tensor | None,
) -> Tensor:
    """As `dropkey_attention`, whose arguments these are."""
    shape = logits_shape(q, k, enable_gqa=enable_gqa)
    alone = attn_mask is None and not is_causal
    mask = layer_mask(
        shape,
        ratio,
        structure=structure,
        layout=layout,
        seed=seed,
        device=q.device,
        dtype=q.dtype if alone else torch.bool,
        counts=counts,
    )
    if is_causal:
        mask = mask | torch.ones(shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    if not alone:
        mask = _combine(mask, attn_mask, q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, scale=scale, enable_gqa=enable_gqa)


def _combine(dropped: Tensor, attn_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The additive mask that forbids what either of the two forbids."""
    if attn_mask is None:
        return additive(dropped, dtype)
    if attn_mask.dtype == torch.bool:
        return additive(dropped | ~attn_mask, dtype)
    left = attn_mask.masked_fill(dropped, -torch.inf)
    # Where only finitely forbidden keys are left, they must not take over: such a query has lost all its keys.
    best, best_left = attn_mask.detach().amax(-1, keepdim=True), left.detach().amax(-1, keepdim=True)
    return left.masked_fill(best_left < best - FORBIDDEN_GAP, -torch.inf)
