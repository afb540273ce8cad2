from typing import Any

import pytest
import timm
import torch
from timm.utils.attention_extract import AttentionExtract
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey
from dropkey_cli.report.attention import ROLLOUT, attention_maps

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def vit(**options: Any) -> nn.Module:  # noqa: ANN401 - timm's
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_classes": 5} | options
    return timm.create_model("vit_tiny_patch16_224", **options).eval()


def extracted(model: nn.Module) -> list[Tensor]:
    """Each layer's weights, mean over heads, as timm extracts them."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]  # timm's switch
    return [weights.mean(1) for weights in AttentionExtract(model, method="hook")(IMAGES).values()]


def on_grid(row: Tensor) -> Tensor:
    return (row / row.sum(-1, keepdim=True)).view(-1, 4, 4)


def test_maps_are_the_class_token_s_attention() -> None:
    model = vit()
    layers = extracted(model)
    maps = attention_maps(model, apply_dropkey(model, DropKeySettings()), IMAGES)
    assert maps.query == "class token"
    assert list(maps.plain) == list(maps.dropped) == ["blocks.0.attn", "blocks.2.attn", ROLLOUT]
    assert maps.ratios == {"blocks.0.attn": 0.3, "blocks.2.attn": 0.0}
    torch.testing.assert_close(maps.plain["blocks.0.attn"], on_grid(layers[0][:, 0, 1:]))
    torch.testing.assert_close(maps.plain["blocks.2.attn"], on_grid(layers[2][:, 0, 1:]))
    product = torch.eye(17)
    for weights in layers:
        product = (0.5 * weights + 0.5 * torch.eye(17)) @ product
    torch.testing.assert_close(maps.plain[ROLLOUT], on_grid(product[:, 0, 1:]))


def test_a_network_that_averages_its_tokens_shows_their_mean() -> None:
    model = vit(class_token=False, global_pool="avg")
    layers = extracted(model)
    maps = attention_maps(model, apply_dropkey(model, DropKeySettings()), IMAGES)
    assert maps.query == "mean over all tokens"
    torch.testing.assert_close(maps.plain["blocks.2.attn"], on_grid(layers[2].mean(1)))


def test_one_mask_is_drawn_alike_every_time_and_leaves_no_trace() -> None:
    model = vit()
    plan = apply_dropkey(model, DropKeySettings(ratio=0.5, schedule="constant"))
    before = torch.get_rng_state()
    first, second = (attention_maps(model, plan, IMAGES) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, dropped in first.dropped.items():
        assert torch.equal(dropped, second.dropped[name])
        assert not torch.equal(dropped, first.plain[name])
        torch.testing.assert_close(dropped.sum((1, 2)), torch.ones(3))
    assert not any(state.sampling or state.observe for state in plan.states)


def test_a_network_without_dropkey_has_plain_maps_and_stays_what_it_is() -> None:
    model, other = vit(), vit()
    expected = attention_maps(other, apply_dropkey(other, DropKeySettings()), IMAGES).plain
    classes = [type(module) for module in model.modules()]
    maps = attention_maps(model, None, IMAGES[:1])
    assert maps.dropped == {}
    torch.testing.assert_close(maps.plain["blocks.2.attn"], expected["blocks.2.attn"][:1])
    assert [type(module) for module in model.modules()] == classes


def test_windows_are_refused_in_a_sentence() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=112, embed_dim=12, depths=(1, 1), num_heads=(3, 6), num_classes=5
    ).eval()
    images = torch.randn(2, 3, 112, 112)
    with pytest.raises(InputError, match="no layer attends over the whole image"):
        attention_maps(model, apply_dropkey(model, DropKeySettings()), images)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cait_xxs24_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24}),
        ("convit_tiny", {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48, "local_up_to_layer": 2}),
        ("vit_small_patch16_dinov3", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}),
    ],
)
def test_other_networks_have_maps(name: str, options: dict[str, Any]) -> None:
    model = timm.create_model(name, num_classes=5, **options).eval()
    maps = attention_maps(model, apply_dropkey(model, DropKeySettings()), IMAGES)
    for found in maps.plain.values():
        assert found.shape == (3, 4, 4)
        torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))
