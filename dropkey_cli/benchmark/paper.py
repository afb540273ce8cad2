"""The paper's listing as users paste it: noise of -1e12 on the logits. What DropKey costs without this package."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropkey_cli.errors import InputError
from dropkey_cli.patching.apply import DropKeyPlan
from dropkey_cli.patching.discovery import SDPA, SOFTMAX, softmax_arguments


def paper_mask(logits: Tensor, ratio: float) -> Tensor:
    """What the listing adds to the logits: -1e12 where a key is dropped, else 0."""
    return torch.bernoulli(torch.ones_like(logits) * ratio) * -1e12


def paper_softmax(logits: Tensor, ratio: float, dtype: torch.dtype | None = None) -> Tensor:
    """Weights (B, H, N, S) by the listing, from logits of this shape; in their type unless another is given."""
    return torch.softmax(logits + paper_mask(logits, ratio), -1, dtype)


def paper_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ratio: float,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention (B, H, N, D) by the listing, with the further arguments of `F.scaled_dot_product_attention`.

    Raises:
        InputError: If it is asked for what the listing has no line for.
    """
    if is_causal or (attn_mask is not None and attn_mask.dtype == torch.bool):
        raise InputError("the paper's listing has no line for a causal or boolean mask")
    logits = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)  # (B, H, N, S)
    if attn_mask is not None:
        logits = logits + attn_mask
    return F.dropout(paper_softmax(logits, ratio), dropout_p) @ v


def paste_listing(model: nn.Module, plan: DropKeyPlan) -> None:
    """Put the listing into the attention layers of ``model``, for good.

    Args:
        model: A model without DropKey.
        plan: Which layers take it, and how much: that of a copy of the model.

    Raises:
        InputError: If a layer attends inside torch's multi-head attention function, where nothing can be pasted.
    """
    for layer in plan.layers:
        if layer.function == "multi_head_attention_forward":
            raise InputError(f"the paper's listing cannot be pasted into {layer.name}, an nn.MultiheadAttention")
        module = model.get_submodule(layer.name)
        module.forward = _pasted(module.forward, layer.ratio)


def _pasted(forward: Callable[..., Any], ratio: float) -> Callable[..., Any]:
    def forward_with_listing(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the module's own
        with _Listing(ratio):
            return forward(*args, **kwargs)

    return forward_with_listing


class _Listing(TorchFunctionMode):
    """Attention and softmax by the listing, for one forward of one module."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        kwargs = kwargs or {}
        if func in SDPA:
            q, k, v, *further = args
            return paper_attention(q, k, v, self.ratio, *further, **kwargs)
        if func in SOFTMAX:
            logits, dim, dtype = softmax_arguments(*args, **kwargs)
            if dim == -1 and logits.dim() >= 3:
                return paper_softmax(logits, self.ratio, dtype)
        return func(*args, **kwargs)
