"""Shows the attention weights of one forward of one module to a function; what the module computes stays as it is."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dropkey_cli.patching.discovery import SDPA, SOFTMAX, softmax_arguments

Observe = Callable[[Tensor], object]
"""Takes the weights of one call, after the softmax: (B, H, N, S) for most classes, without gradient."""


class Masks(Protocol):
    """What draws a forward's masks."""

    repeating: bool  # the last mask once more, counted nowhere


class Observation(TorchFunctionMode):
    """Catches the softmax over keys of one forward, before the mode that drops keys sees it.

    A softmax gives the weights itself. A fused attention call does not: the same call, with the identity in the place of the
    values and in float32, does, with the same mask if keys are dropped.

    Args:
        observe: Is shown the weights of each call.
        masks: Where they come from; None where no keys are dropped.
    """

    def __init__(self, observe: Observe, masks: Masks | None = None) -> None:
        super().__init__()
        self.observe = observe
        self.masks = masks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in SDPA:
            self._repeat(_sdpa_weights, func, *args, **kwargs)
        elif func is F.multi_head_attention_forward:
            self._repeat(_multi_head_weights, func, *args, **kwargs)
        elif func in SOFTMAX:
            logits, dim, _ = softmax_arguments(*args, **kwargs)
            if dim == -1 and logits.dim() >= 3:
                self.observe(output.detach())
        return output

    def _repeat(self, weights: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the call's
        if self.masks is not None:
            self.masks.repeating = True
        try:
            with torch.no_grad():
                self.observe(weights(*args, **kwargs))
        finally:
            if self.masks is not None:
                self.masks.repeating = False


def _sdpa_weights(
    func: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,  # noqa: ANN401 - scale, enable_gqa
) -> Tensor:
    """(…, N, S)."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    eye = torch.eye(key.shape[-2], dtype=dtype, device=key.device).expand(*key.shape[:-2], -1, -1)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(dtype)
    with torch.autocast(query.device.type, enabled=False):
        return func(query.to(dtype), key.to(dtype), eye, attn_mask, 0.0, is_causal, **options)


def _multi_head_weights(func: Callable[..., tuple[Tensor, Tensor]], *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    """(B, H, N, S), before the dropout of weights."""
    return func(*args, **{**kwargs, "training": False, "need_weights": True, "average_attn_weights": False})[1]
