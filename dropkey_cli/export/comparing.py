"""Compares what was exported with the network that it is of."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dropkey_cli.errors import RunError

TOLERANCE = 1e-4
BATCHES = (1, 5)  # besides all images: a batch is one image long, or an odd number
Run = Callable[[Tensor], Tensor]


def largest_difference(exported: Run, network: nn.Module, images: Tensor) -> float:
    """Of the logits, over batches of several sizes; inf where one has no number that the other has.

    Args:
        exported: Gives logits (B, K) for images.
        network: In evaluation mode.
        images: (B, 3, height, width), normalised.
    """
    largest = 0.0
    for size in (*BATCHES, len(images)):
        with torch.inference_mode():
            expected = network(images[:size])
        given = exported(images[:size])
        if given.shape != expected.shape or not torch.equal(given.isfinite(), expected.isfinite()):
            return float("inf")
        largest = max(largest, (given - expected).nan_to_num(0.0, 0.0, 0.0).abs().max().item())
    return largest


def check_difference(form: str, difference: float, network: nn.Module, images: Tensor) -> None:
    """Refuse an export that computes something else.

    Args:
        form: timm, onnx or torch.
        difference: What `largest_difference` gave.
        network: Whose it is.
        images: Those that were compared.

    Raises:
        RunError: If it is more than 1e-4, times the largest logit where that is above 1.
    """
    with torch.inference_mode():
        largest_logit = network(images).nan_to_num().abs().max().item()
    allowed = TOLERANCE * max(1.0, largest_logit)
    if not difference <= allowed:
        raise RunError(
            f"the {form} export differs from the network by {difference:.2g} (allowed: {allowed:.2g}, logits up to "
            f"{largest_logit:.3g}): nothing was written; give another --format, and report it with the model's name"
        )
