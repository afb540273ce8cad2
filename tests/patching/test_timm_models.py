"""DropKey in real timm networks: every mechanism of attention that timm has, narrow and with few tokens."""

import copy
import functools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey

CONSTANT = DropKeySettings(ratio=0.3, schedule="constant")
OFF = DropKeySettings(ratio=0.0, schedule="constant")


@dataclass(frozen=True)
class Network:
    """A timm model and how many layers of which class take DropKey, counted by hand in timm's source.

    Args:
        layers: Class name without its module, and number.
        size: Sides of the images.
        options: Arguments of the constructor that keep it small; it has its true depth.
    """

    layers: dict[str, int]
    size: int = 48
    options: dict[str, Any] = field(default_factory=dict)


NARROW = {"img_size": 48, "embed_dim": 48}
NETWORKS = {
    "vit_tiny_patch16_224": Network({"Attention": 12}, options=NARROW),
    "deit3_small_patch16_224": Network({"Attention": 12}, options=NARROW | {"num_heads": 3}),
    # Stages of 2, 2, 6, 2 blocks
    "swin_tiny_patch4_window7_224": Network(
        {"WindowAttention": 12}, 112, {"img_size": 112, "embed_dim": 12, "drop_path_rate": 0.0}
    ),
    "swinv2_tiny_window8_256": Network({"WindowAttention": 12}, 128, {"img_size": 128, "embed_dim": 12, "drop_path_rate": 0.0}),
    # Stages of 4 (outlook: no keys), 4, 8, 2 blocks, then two class blocks
    "volo_d1_224": Network({"Attention": 14, "ClassAttention": 2}, 64, {"img_size": 64}),
    "cait_xxs24_224": Network({"TalkingHeadAttn": 24, "ClassAttn": 2}, options=NARROW),
    "beit_base_patch16_224": Network({"Attention": 12}, options=NARROW | {"num_heads": 3}),
    "eva02_tiny_patch14_224": Network({"EvaAttention": 12}, 42, {"img_size": 42, "embed_dim": 48}),
    # Stages of 2, 2, 5, 2 blocks, each with window and grid attention
    "maxvit_tiny_tf_224": Network({"AttentionCl": 22}, 64, {"img_size": 64, "embed_dim": (32, 32, 64, 96)}),
    "pvt_v2_b0": Network({"Attention": 8}, 64),
    # Stages of 1, 2, 7, 2 blocks
    "hiera_tiny_224": Network({"MaskUnitAttention": 12}, 64, {"img_size": (64, 64), "embed_dim": 24}),
    # Stages of 1, 2, 5, 2 blocks
    "mvitv2_tiny": Network({"MultiScaleAttention": 10}, 64, {"img_size": 64}),
    # Stages of 2, 3, 4 blocks, two downsamplings between them
    "levit_128s": Network({"Attention": 9, "AttentionDownsample": 2}, 224, {"embed_dim": (32, 64, 96)}),
    # Ten of twelve blocks are gated positional
    "convit_tiny": Network({"GPSA": 10, "MHSA": 2}, options={"img_size": 48}),
    "naflexvit_base_patch16_gap": Network({"Attention": 3}, 64, {"embed_dim": 48, "num_heads": 3, "depth": 3}),
    "vit_small_patch16_dinov3": Network({"EvaAttention": 12}, options=NARROW | {"num_heads": 3}),
    "vit_dwee_patch16_reg1_gap_256": Network({"DiffAttention": 14}, options=NARROW | {"num_heads": 2}),
    "vit_dpwee_patch16_reg1_gap_256": Network({"DiffParallelScalingBlock": 16}, options=NARROW | {"num_heads": 2}),
    # Stages of 1, 2, 3 blocks
    "efficientvit_m0": Network({"CascadedGroupAttention": 6}, 224),
    # Twelve blocks of pixels inside patches, twelve of patches
    "tnt_s_legacy_patch16_224": Network({"Attention": 24}, options=NARROW),
}


@functools.cache
def pristine(name: str) -> nn.Module:
    """The unpatched network; every parameter is perturbed, so that no branch is zero. Tests work on copies of it."""
    torch.manual_seed(5)
    model = timm.create_model(name, num_classes=5, **NETWORKS[name].options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images_for(name: str) -> Tensor:
    size = NETWORKS[name].size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(6))


def train_once(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of a training pass that starts from a fixed random state."""
    torch.manual_seed(1)
    model.train().zero_grad()
    output = model(images)
    output.square().sum().backward()
    return output.detach(), {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
def test_ratio_0_trains_bitwise_as_unpatched(name: str) -> None:
    images = images_for(name)
    plain, patched = copy.deepcopy(pristine(name)), copy.deepcopy(pristine(name))
    plan = apply_dropkey(patched, OFF, example_inputs=(images,))
    output, gradients = train_once(patched, images)
    expected_output, expected_gradients = train_once(plain, images)
    assert torch.equal(output, expected_output)
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.equal(gradients[key], expected_gradients[key]) for key in gradients)
    assert all(torch.equal(a, b) for a, b in zip(patched.buffers(), plain.buffers(), strict=True))
    assert all(state.counts.tolist() == [0, 0] for state in plan.states)


@pytest.mark.parametrize("name", NETWORKS)
def test_eval_is_bitwise_unpatched_and_removing_restores_the_model(name: str) -> None:
    images = images_for(name)
    plain, patched = copy.deepcopy(pristine(name)).eval(), copy.deepcopy(pristine(name)).eval()
    plan = apply_dropkey(patched, CONSTANT, example_inputs=(images,))
    with torch.no_grad():
        expected = plain(images)
        assert torch.equal(patched(images), expected)
        state_dict, plain_state_dict = patched.state_dict(), plain.state_dict()
        assert list(state_dict) == list(plain_state_dict)
        assert all(torch.equal(state_dict[key], plain_state_dict[key]) for key in state_dict)
        plan.remove()
        assert torch.equal(patched(images), expected)
    assert [type(module) for module in patched.modules()] == [type(module) for module in plain.modules()]
    assert not any("dropkey" in vars(module) for module in patched.modules())
    output, _ = train_once(patched, images)
    assert torch.equal(output, train_once(plain, images)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_training_drops_the_configured_share_in_every_layer(name: str) -> None:
    images = images_for(name)
    plain, patched = copy.deepcopy(pristine(name)), copy.deepcopy(pristine(name))
    plan = apply_dropkey(patched, CONSTANT, example_inputs=(images,))
    assert dict(Counter(layer.class_name.rpartition(".")[2] for layer in plan.layers)) == NETWORKS[name].layers
    output, gradients = train_once(patched, images)
    assert not torch.allclose(output, train_once(plain, images)[0])
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert torch.equal(output, train_once(patched, images)[0])  # the seed decides
    for layer, state in zip(plan.layers, plan.states, strict=True):
        dropped, draws = state.counts.tolist()
        # Two passes with one seed, and the calls that share a mask, count the same draws again.
        independent = draws / (2 * (2 if layer.rule.share_mask else 1))
        assert independent > 0, layer.name
        assert abs(dropped / draws - 0.3) < 5 * math.sqrt(0.3 * 0.7 / independent), layer.name


def test_most_layers_lose_nearly_all_keys_and_stay_finite() -> None:
    for name in ("levit_128s", "convit_tiny", "swin_tiny_patch4_window7_224", "pvt_v2_b0"):
        model = copy.deepcopy(pristine(name))
        apply_dropkey(model, DropKeySettings(ratio=0.97, schedule="constant"), example_inputs=(images_for(name),))
        output, gradients = train_once(model, images_for(name))
        assert output.isfinite().all(), name
        assert all(gradient.isfinite().all() for gradient in gradients.values()), name


def test_padding_of_naflexvit_stays_unseen() -> None:
    model = copy.deepcopy(pristine("naflexvit_base_patch16_gap"))
    patches, valid = torch.randn(2, 12, 768), torch.ones(2, 12, dtype=torch.bool)
    valid[:, 5:] = False
    coordinates = (
        torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij"), -1).view(1, 12, 2).expand(2, 12, 2)
    )
    inputs = {"patches": patches, "patch_coord": coordinates, "patch_valid": valid}
    # Its dict of patches needs values (the grid sizes), which the meta device has not: it is discovered on images.
    plan = apply_dropkey(model, DropKeySettings(ratio=0.9, schedule="constant"), example_inputs=(torch.zeros(2, 3, 48, 64),))
    changed = inputs | {"patches": patches.masked_fill(~valid[..., None], 7.0)}
    model.train()
    torch.manual_seed(1)
    output = model(inputs)
    torch.manual_seed(1)
    assert torch.equal(model(changed), output)
    assert all(state.counts[0] > 0 for state in plan.states)


@pytest.mark.parametrize("fused", [False, True], ids=["softmax", "sdpa"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (2, 2)}),
        ("swinv2_tiny_window8_256", {"embed_dim": 12, "depths": (2, 2)}),
    ],
)
def test_no_query_sees_across_the_border_of_a_shifted_window(
    name: str, options: dict[str, Any], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.layers.config._USE_FUSED_ATTN", 2 if fused else 0)  # TIMM_FUSED_ATTN
    model: Any = timm.create_model(name, num_heads=(3, 6), num_classes=2, **options)
    apply_dropkey(model, DropKeySettings(ratio=0.9, schedule="constant"))
    block = model.layers[0].blocks[1].train()
    mask = block.attn_mask  # (windows, N, N): 0 or -100
    tokens = torch.randn(*mask.shape[:2], 12, requires_grad=True)
    output = block.attn(tokens, mask=mask)
    query = 0
    for window in (mask != 0).any(-1).any(-1).nonzero().flatten():
        (gradient,) = torch.autograd.grad(output[window, query].sum(), tokens, retain_graph=True)
        # -100 leaves weights around exp(-80); attending across the border would show as 1e-3 and more.
        assert (gradient[window][mask[window, query] != 0].abs() < 1e-20).all()
