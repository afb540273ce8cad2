"""Multi-head attention with its projections, as `F.multi_head_attention_forward` computes it, with keys dropped."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.attention import dropkey_attention
from dropkey_cli.method.mask import KeyLayout
from dropkey_cli.method.settings import Structure
from dropkey_cli.method.softmax import dropkey_softmax


def dropkey_multi_head_attention_forward(  # noqa: D417 - torch describes the others
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    ratio: float | Tensor,
    structure: Structure = "element",
    layout: KeyLayout | None = None,
    seed: int | Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`F.multi_head_attention_forward`, its arguments and its results, in which every query loses random keys.

    Letters: B batch, H heads, N queries, S keys, D head dim, C = H·D channels. What is not listed is as in torch.

    Args:
        query: Queries (N, B, C), or (N, C) without a batch; ``key`` and ``value`` are alike.
        bias_k: A learned key after the others; it and the zero key of ``add_zero_attn`` are dropped like any other.
        training: Whether ``dropout_p`` acts, on the weights after the softmax. Keys are dropped in any case.
        key_padding_mask: (B, S), boolean (True = forbidden, unlike in `dropkey_attention`) or added to the logits.
        need_weights: Return the weights too. The output is the same either way, but needs more memory with them.
        attn_mask: (N, S) or (B·H, N, S), boolean (True = forbidden) or added to the logits.
        is_causal: A hint that ``attn_mask`` is causal; not needed here.
        ratio: Drop ratio in [0, 1). The number 0 is `F.multi_head_attention_forward` itself.
        structure: Pattern of the dropped keys, see `dropkey_mask`; its shape is (B, H, N, S).
        layout: How the keys lie on a grid, for the structures block and cross.
        seed: Seed of the mask; by default one is drawn from torch's generator.
        counts: int64 (2,): the numbers of dropped draws and of all draws are added to it.

    Returns:
        Output (N, B, C) and weights (B, N, S), per head (B, H, N, S), or None. A head's query that lost every key has
        weights 0, adds 0 to the output projection and gets gradient 0.

    Raises:
        InputError: If ``is_causal`` is given without a mask.
    """
    if isinstance(ratio, float | int) and ratio == 0:
        return F.multi_head_attention_forward(
            query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn,
            dropout_p, out_proj_weight, out_proj_bias, training, key_padding_mask, need_weights, attn_mask,
            use_separate_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, static_k, static_v, average_attn_weights,
            is_causal,
        )  # fmt: skip
    if is_causal and attn_mask is None:
        raise InputError("is_causal=True without attn_mask: it is only a hint that the mask is causal, give the mask too")
    is_batched = query.dim() == 3
    if not is_batched:
        query, key, value = query[:, None], key[:, None], value[:, None]
    if not use_separate_proj_weight:
        q_proj_weight, k_proj_weight, v_proj_weight = _thirds(in_proj_weight)
    projections = (q_proj_weight, k_proj_weight, v_proj_weight)
    q, k, v = map(F.linear, (query, key, value), projections, _thirds(in_proj_bias))  # type: ignore[arg-type]  # not None
    if bias_k is not None and bias_v is not None:
        k, v = torch.cat([k, bias_k.expand_as(k[:1])]), torch.cat([v, bias_v.expand_as(v[:1])])
    q, k, v = (_split_heads(tensor, num_heads, embed_dim_to_check // num_heads) for tensor in (q, k, v))
    k = k if static_k is None else static_k.view(-1, num_heads, *static_k.shape[1:])
    v = v if static_v is None else static_v.view(-1, num_heads, *static_v.shape[1:])
    if add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    mask = _merge_masks(attn_mask, key_padding_mask, num_heads, q.dtype)
    if mask is not None and (bias_k is not None or add_zero_attn):
        mask = F.pad(mask, (0, (bias_k is not None) + add_zero_attn))  # nothing else forbids these keys
    attended, weights = _attend(
        q, k, v, mask, need_weights=need_weights, dropout_p=dropout_p if training else 0.0,
        ratio=ratio, structure=structure, layout=layout, seed=seed, counts=counts,
    )  # fmt: skip
    output = F.linear(attended.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)  # (N, B, C)
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if is_batched:
        return output, weights
    return output.squeeze(1), None if weights is None else weights.squeeze(0)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    need_weights: bool,
    dropout_p: float,
    ratio: float | Tensor,
    structure: Structure,
    layout: KeyLayout | None,
    seed: int | Tensor | None,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Output (B, H, N, D), and weights (B, H, N, S) where they are needed; the same keys are dropped either way."""
    if not need_weights:
        output = dropkey_attention(
            q, k, v, ratio, mask, structure=structure, layout=layout, seed=seed, dropout_p=dropout_p, counts=counts
        )
        return output, None
    logits = q * q.shape[-1] ** -0.5 @ k.mT
    if mask is not None:
        logits = logits + mask
    weights = dropkey_softmax(logits, ratio, structure=structure, layout=layout, seed=seed, counts=counts)
    weights = F.dropout(weights, dropout_p)
    return weights @ v, weights


def _thirds(packed: Tensor | None) -> Sequence[Tensor | None]:
    """The parts of a packed weight or bias for queries, keys and values."""
    return (None, None, None) if packed is None else packed.chunk(3)


def _split_heads(tokens: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """(N, B, H·D) -> (B, H, N, D)."""
    return tokens.view(*tokens.shape[:2], num_heads, head_dim).permute(1, 2, 0, 3)


def _merge_masks(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, num_heads: int, dtype: torch.dtype
) -> Tensor | None:
    """What both masks add to the logits, broadcast to (B, H, N, S)."""
    if attn_mask is not None:
        attn_mask = _additive(attn_mask.view(-1, num_heads if attn_mask.dim() == 3 else 1, *attn_mask.shape[-2:]), dtype)
    if key_padding_mask is not None:
        key_padding_mask = _additive(key_padding_mask[..., None, None, :], dtype)
    if attn_mask is None or key_padding_mask is None:
        return key_padding_mask if attn_mask is None else attn_mask
    return attn_mask + key_padding_mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
    return mask.to(dtype)
