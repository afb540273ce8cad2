"""Attention without the dropped keys, written plainly for float64, and what compares with it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dropkey_cli.method.mask import dropkey_mask
from dropkey_cli.method.settings import Structure

SEED = 42
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LOW_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def oracle_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """Weights over the allowed keys; zeros, with gradient zero, where a query has none."""
    empty = ~allowed.any(-1, keepdim=True)
    return logits.masked_fill(~allowed, -torch.inf).masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)


def oracle_attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    groups = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias
    return oracle_softmax(logits, allowed.expand(logits.shape)) @ v


def mask_of(logits_shape: tuple[int, ...], ratio: float, structure: Structure = "element") -> Tensor:
    """`dropkey_mask` for logits with any number of axes: the last three are heads, queries, keys."""
    *samples, heads, queries, keys = logits_shape
    return dropkey_mask(SEED, (math.prod(samples), heads, queries, keys), ratio, structure).view(logits_shape)


def values_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The output, and the gradient of a fixed random projection of it with respect to every floating-point input."""
    leaves = [tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    output = function(*leaves)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sources = [leaf for leaf in leaves if leaf.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, sources, weights.to(output.dtype))]


def errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Relative error of each result, as a root mean square; where the result is 0, as a gradient of one key is, of 1e-3."""
    return [
        float((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-3))
        for ours, theirs in zip(results, exact, strict=True)
    ]


def finite_forbidden(dtype: torch.dtype) -> list[float]:
    return [-1e4, torch.finfo(dtype).min]
