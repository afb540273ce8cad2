"""The networks on which the tests try what DropKey can be combined with."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

OPTIONS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24},
    # Two stages; the second block of the first one has shifted windows
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 12, "depths": (2, 1), "num_heads": (3, 6)},
}


@pytest.fixture(params=OPTIONS, ids=["vit", "swin"])
def network(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    """A plain and a hierarchical vision transformer, narrow, in training mode, and two images for it."""
    options = OPTIONS[request.param]
    model = timm.create_model(request.param, num_classes=5, **options).train()
    return model, torch.randn(2, 3, options["img_size"], options["img_size"])
