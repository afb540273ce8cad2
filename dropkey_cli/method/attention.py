"""Attention that drops keys before the softmax (arXiv:2208.02646, equations 13 and 14): picks the backend."""

from types import ModuleType
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.backends import sdpa
from dropkey_cli.method.mask import KeyLayout, seed_tensor
from dropkey_cli.method.settings import Structure

Backend = Literal["auto", "sdpa", "triton"]


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
    backend: Backend = "auto",
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
        seed: Seed of the mask, or one for each sample (B,); by default one is drawn from torch's generator.
        dropout_p: Dropout of the weights, after the softmax.
        enable_gqa: Let groups of query heads share a key head.
        counts: int64 (2,): the numbers of dropped draws and of all draws are added to it.
        backend: sdpa: PyTorch's SDPA with an additive mask, everywhere; triton: fused kernels, for float16 and bfloat16 on
            CUDA; auto: triton where it takes the call, else sdpa. The mask is the same in both.

    Returns:
        (B, H, N, D). A query that lost every key gives 0 and gets gradient 0.

    Raises:
        InputError: If ``backend`` is none of these, or is triton and cannot take the call.
    """
    if backend not in get_args(Backend):
        raise InputError(f"backend {backend!r} is not known: give one of {', '.join(get_args(Backend))}")
    if isinstance(ratio, float | int) and ratio == 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    kernels = _triton(
        backend,
        q,
        k,
        v,
        attn_mask,
        is_causal=is_causal,
        structure=structure,
        seed=seed,
        dropout_p=dropout_p,
        enable_gqa=enable_gqa,
    )
    if kernels is not None:
        fused: Tensor = kernels.attention(q, k, v, ratio, scale=scale, seed=seed_tensor(seed, q.device), counts=counts)
        return fused
    return sdpa.attention(
        q,
        k,
        v,
        ratio,
        attn_mask,
        is_causal=is_causal,
        scale=scale,
        structure=structure,
        layout=layout,
        seed=seed,
        dropout_p=dropout_p,
        enable_gqa=enable_gqa,
        counts=counts,
    )


def _triton(
    backend: Backend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    *,
    is_causal: bool,
    structure: Structure,
    seed: int | Tensor | None,
    dropout_p: float,
    enable_gqa: bool,
) -> ModuleType | None:
    """The backend with Triton's kernels, if it is wanted and takes the call."""
    if backend == "sdpa" or (backend == "auto" and not q.is_cuda):
        return None
    try:
        from dropkey_cli.method.backends import triton
    except ImportError:  # torch brings Triton on Linux with CUDA only
        reason: str | None = "Triton is not installed"
    else:
        reason = triton.unsupported(
            q, k, v, attn_mask, is_causal=is_causal, structure=structure, dropout_p=dropout_p, enable_gqa=enable_gqa
        )
        if isinstance(seed, Tensor) and seed.dim():
            reason = "every sample has a seed of its own"
        if reason is None:
            return triton
    if backend == "triton":
        raise InputError(f"backend 'triton' cannot take this call: {reason}; give backend 'auto' or 'sdpa'")
    return None
