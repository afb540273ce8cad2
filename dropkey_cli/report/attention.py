"""Where a network looks: attention on the token grid, with every key and with the keys of one drawn mask missing."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, PlannedLayer, apply_dropkey

ROLLOUT = "rollout"


@dataclass(frozen=True)
class AttentionMaps:
    """Maps of B images, each the share of attention that the tokens of a grid get.

    Attributes:
        plain: By the layer's name, or "rollout", (B, height, width) each, with every key there.
        dropped: The same with the keys of one drawn mask missing; empty for a network without DropKey.
        query: Whose attention it is: the class token, or the mean over all tokens.
        ratios: The drop ratio of each layer in ``dropped``.
    """

    plain: dict[str, Tensor]
    dropped: dict[str, Tensor]
    query: str
    ratios: dict[str, float] = field(default_factory=dict)


def attention_maps(network: nn.Module, plan: DropKeyPlan | None, images: Tensor, *, seed: int = 0) -> AttentionMaps:
    """The maps of the first and the last attention layer, and attention rollout (arXiv:2005.00928) where it is defined.

    Args:
        network: In eval mode; it is run once, or twice.
        plan: What `apply_dropkey` gave for it; None for a network without DropKey.
        images: (B, C, height, width), normalised.
        seed: Of the mask; torch's generators stay where they are.

    Raises:
        InputError: If no layer attends over a grid of tokens.
    """
    if plan is None:
        settings = DropKeySettings(ratio=0.0, schedule="constant")
        found = apply_dropkey(network, settings, example_inputs=(images.to("meta").expand(max(2, len(images)), -1, -1, -1),))
        try:
            return AttentionMaps(_maps(network, found, images), {}, _query(network))
        finally:
            found.remove()
    devices = [images.device] if images.is_cuda else []
    plain = _maps(network, plan, images)
    with torch.random.fork_rng(devices=devices), plan.sampling():
        torch.manual_seed(seed)
        dropped = _maps(network, plan, images)
    ratios = {layer.name: layer.ratio for layer in plan.layers if layer.name in dropped}
    return AttentionMaps(plain, dropped, _query(network), ratios)


def _maps(network: nn.Module, plan: DropKeyPlan, images: Tensor) -> dict[str, Tensor]:
    rollout = _Rollout()
    class_token = _query(network) == "class token"

    def reduce(layer: PlannedLayer, weights: Tensor) -> Tensor | None:
        mean = _mean_over_heads(layer, weights, len(images))
        rollout.add(layer, mean)
        return None if mean is None else _on_grid(layer, mean, class_token=class_token)

    with torch.no_grad(), plan.recording(reduce) as kept:
        network(images)
    found = {name: calls[0] for name, calls in kept.items() if calls and calls[0] is not None}
    if not found:
        raise InputError("no layer attends over the whole image on one grid of tokens (windows, for instance, do not)")
    first, last = next(iter(found)), next(reversed(found))
    maps = {name: found[name] for name in dict.fromkeys((first, last))}
    together = rollout.map(class_token=class_token)
    return maps if together is None else {**maps, ROLLOUT: together}


def _query(network: nn.Module) -> str:
    by_token = isinstance(getattr(network, "cls_token", None), Tensor) and getattr(network, "global_pool", "token") == "token"
    return "class token" if by_token else "mean over all tokens"


def _mean_over_heads(layer: PlannedLayer, weights: Tensor, num_images: int) -> Tensor | None:
    """(B, N, S); None for a layer of windows, or one without a grid."""
    if layer.layout is None or weights.shape[0] != num_images:
        return None
    if weights.dim() == 4 and layer.rule.heads_axis == -3:
        return weights.float().mean(1)
    return weights.float() if weights.dim() == 3 and layer.heads == 1 else None


def _on_grid(layer: PlannedLayer, weights: Tensor, *, class_token: bool) -> Tensor:
    """(B, N, S) -> (B, height, width), summing to 1 unless all keys are gone."""
    layout = layer.layout
    assert layout is not None, "looked at before"
    first = (class_token and layout.prefix_tokens > 0) or layer.kind == "class"
    of_query = weights[:, 0] if first else weights.mean(1)
    grid = of_query[:, layout.prefix_tokens :]
    grid = grid / grid.sum(-1, keepdim=True).clamp(min=1e-12)
    return grid.reshape(-1, layout.height, layout.width)


class _Rollout:
    """The product of the layers' attention, half of each the identity for the residual connection."""

    def __init__(self) -> None:
        self.product: Tensor | None = None
        self.layer: PlannedLayer | None = None
        self.seen: set[str] = set()
        self.defined = True

    def add(self, layer: PlannedLayer, weights: Tensor | None) -> None:
        """One layer more; what is not square, or is no second map of the same tokens, ends it."""
        if layer.name in self.seen:
            return
        self.seen.add(layer.name)
        fits = weights is not None and weights.shape[1] == weights.shape[2]
        self.defined &= fits and (self.product is None or self.product.shape == getattr(weights, "shape", None))
        if not self.defined or weights is None:
            return
        step = weights + torch.eye(weights.shape[-1], device=weights.device)
        step = step / step.sum(-1, keepdim=True)
        self.product = step if self.product is None else step @ self.product
        self.layer = layer

    def map(self, *, class_token: bool) -> Tensor | None:
        """(B, height, width); None where the layers have no tokens in common."""
        if not self.defined or self.product is None or self.layer is None or len(self.seen) < 2:
            return None
        return _on_grid(self.layer, self.product, class_token=class_token)
