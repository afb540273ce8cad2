from typing import Any

import pytest
import timm
import torch
from torch import nn

from dropkey_cli.errors import InputError
from dropkey_cli.patching.apply import apply_dropkey
from dropkey_cli.tasks.features import pooled_features

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_classes": 5}


def small(name: str) -> nn.Module:
    torch.manual_seed(2)
    options: dict[str, Any] = {"img_size": 32} if name == "swin_tiny_patch4_window7_224" else SMALL
    return timm.create_model(name, **options).eval()


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch16_dinov3",
        "deit_tiny_distilled_patch16_224",
        "cait_xxs24_224",
        "swin_tiny_patch4_window7_224",
    ],
)
@torch.no_grad()
def test_features_are_timms_and_the_logits_what_they_were(name: str) -> None:
    model, images = small(name), torch.randn(3, 3, 32, 32)
    logits = model(images)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]  # timm's
    apply_dropkey(model, example_inputs=(images,))
    with pooled_features(model) as features:
        assert torch.equal(model(images), logits)
    assert torch.equal(features[0], expected)
    assert expected.dim() == 2
    assert "forward_head" not in vars(model)


def test_the_network_is_left_as_it_was_after_an_error() -> None:
    model = small("vit_tiny_patch16_224")
    with pytest.raises(KeyError, match="mine"), pooled_features(model):
        raise KeyError("mine")
    assert "forward_head" not in vars(model)


def test_networks_without_pooled_features_are_refused() -> None:
    with pytest.raises(InputError, match="--features: Linear has no forward_head"), pooled_features(nn.Linear(2, 2)):
        pass
