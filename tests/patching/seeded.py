"""What the tests of patched models compare: outputs and gradients of a model that starts from a given seed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Network = tuple[Any, Tensor]  # a model with timm's own attributes, and images for it


def output_at_seed(model: Callable[[Tensor], Tensor], images: Tensor, seed: int = 7) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(images)


def gradients_at_seed(model: nn.Module, images: Tensor, seed: int = 7) -> list[Tensor]:
    """Gradients of all parameters, collected where they are sharded."""
    torch.manual_seed(seed)
    model.zero_grad()
    model(images).square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [gradient.full_tensor() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
