"""What DropKey does inside timm's stranger attention layers: in which softmax, over which axes, with whose mask."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from timm.layers.attention import AttentionRope
from timm.layers.attention2d import MultiQueryAttention2d
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.diff_attention import DiffAttention
from timm.layers.halo_attn import HaloAttn
from timm.models import (
    cait,
    convit,
    crossvit,
    efficientformer_v2,
    efficientvit_msra,
    hiera,
    mvitv2,
    nest,
    pvt_v2,
    shvit,
    swin_transformer,
    swin_transformer_v2,
    twins,
    vision_transformer_sam,
    volo,
)
from timm.models.vision_transformer import DiffParallelScalingBlock
from torch import Tensor, nn

from dropkey_cli.method.attention import dropkey_attention
from dropkey_cli.method.settings import DropKeySettings, Structure
from dropkey_cli.method.softmax import dropkey_softmax
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey

FUSED = "timm.layers.config._USE_FUSED_ATTN"
"""What TIMM_FUSED_ATTN sets; modules read it when they are built. 0: softmax, 1: SDPA, 2: SDPA also where experimental."""

TOKENS = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights of every softmax or SDPA call in which DropKey acted, (…, queries, keys), in order; 0 is dropped."""
    calls: list[Tensor] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:  # noqa: ANN401
        # With identity values the output is the weights; the seed comes with the call, so the mask is the same.
        values = torch.eye(v.shape[-2]).expand(*v.shape[:-1], -1)
        calls.append(dropkey_attention(q, k, values, *args, **options | {"counts": None}).detach())
        return dropkey_attention(q, k, v, *args, **options)

    def softmax(logits: Tensor, *args: Any, **options: Any) -> Tensor:  # noqa: ANN401
        result = dropkey_softmax(logits, *args, **options)
        calls.append(result.detach())
        return result

    monkeypatch.setattr("dropkey_cli.patching.interception.dropkey_attention", attention)
    monkeypatch.setattr("dropkey_cli.patching.interception.dropkey_softmax", softmax)
    return calls


def apply(module: nn.Module, *inputs: Any, ratio: float = 0.5, structure: Structure = "element") -> DropKeyPlan:  # noqa: ANN401
    settings = DropKeySettings(ratio=ratio, schedule="constant", structure=structure, include=["*"])
    module.train()  # some of timm's return None
    return apply_dropkey(module, settings, example_inputs=inputs)


def assert_share(events: Tensor, share: float) -> None:
    """``share`` of these independent events happened, within five standard errors."""
    assert abs(events.double().mean() - share) < 5 * math.sqrt(share * (1 - share) / events.numel())


@dataclass(frozen=True)
class Layer:
    """An attention layer.

    Args:
        build: Makes it.
        inputs: Arguments of its forward.
        logits: Shape of its logits, from timm's source; the last two axes are queries and keys.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    logits: tuple[int, ...]


LAYERS = {
    "talking heads": Layer(lambda: cait.TalkingHeadAttn(24, num_heads=3), (TOKENS,), (2, 3, 16, 16)),
    "talking heads on a grid": Layer(
        lambda: efficientformer_v2.Attention2d(24, key_dim=8, num_heads=3, resolution=8), (IMAGES,), (2, 3, 64, 64)
    ),
    "one key head for all, pooled keys": Layer(
        lambda: MultiQueryAttention2d(24, num_heads=3, kv_stride=2), (IMAGES,), (2, 3, 64, 16)
    ),
    "grouped queries": Layer(
        lambda: AttentionRope(24, num_heads=4, num_kv_heads=2, qkv_fused=False), (TOKENS,), (2, 4, 16, 16)
    ),
    "heads in the batch, softmax": Layer(lambda: BottleneckAttn(24, num_heads=3, feat_size=(8, 8)), (IMAGES,), (6, 64, 64)),
    "heads in the batch, SDPA": Layer(
        lambda: vision_transformer_sam.Attention(24, num_heads=3), (TOKENS.view(2, 4, 4, 24),), (6, 16, 16)
    ),
    "heads in the batch, windows beside": Layer(
        lambda: HaloAttn(24, num_heads=3, block_size=4, halo_size=1), (IMAGES,), (6, 4, 16, 36)
    ),
    "no axis of heads": Layer(lambda: shvit.SHSA(24, qk_dim=8, pdim=8), (IMAGES,), (2, 64, 64)),
    "windows in the batch": Layer(
        lambda: swin_transformer.WindowAttention(24, num_heads=3, window_size=4), (TOKENS.repeat(4, 1, 1),), (8, 3, 16, 16)
    ),
    "windows before heads": Layer(lambda: twins.LocallyGroupedAttn(24, num_heads=3, ws=2), (TOKENS, (4, 4)), (2, 4, 3, 4, 4)),
    "windows after heads": Layer(lambda: nest.Attention(24, num_heads=3), (TOKENS.view(2, 4, 4, 24),), (2, 3, 4, 4, 4)),
    "windows after heads, pooled queries": Layer(
        lambda: hiera.MaskUnitAttention(24, 24, heads=3, q_stride=4, window_size=4, use_mask_unit_attn=True),
        (TOKENS.repeat(1, 4, 1),),
        (2, 3, 4, 4, 16),
    ),
    "pooled keys": Layer(
        lambda: pvt_v2.Attention(24, num_heads=3, sr_ratio=2), (TOKENS.repeat(1, 4, 1), (8, 8)), (2, 3, 64, 16)
    ),
    "pooled keys and a class token": Layer(
        lambda: mvitv2.MultiScaleAttention(24, 24, (8, 8), num_heads=3, kernel_kv=(3, 3), stride_kv=(2, 2)),
        (torch.zeros(2, 65, 24), (8, 8)),
        (2, 3, 65, 17),
    ),
    "class query, SDPA": Layer(lambda: cait.ClassAttn(24, num_heads=3), (TOKENS,), (2, 3, 1, 16)),
    "class query, softmax": Layer(lambda: volo.ClassAttention(24, num_heads=3), (TOKENS,), (2, 3, 1, 16)),
    "class query of another branch": Layer(lambda: crossvit.CrossAttention(24, num_heads=3), (TOKENS,), (2, 3, 1, 16)),
    "pooling query": Layer(lambda: AttentionPoolLatent(24, num_heads=3), (TOKENS,), (2, 3, 1, 16)),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_every_sample_head_window_and_query_has_a_mask_of_its_own(layer: Layer, weights: list[Tensor]) -> None:
    module = layer.build()
    plan = apply(module, *layer.inputs)
    module(*layer.inputs)
    (dropped,) = (call == 0 for call in weights)
    assert dropped.shape == layer.logits
    assert (plan.layers[0].queries, plan.layers[0].keys) == layer.logits[-2:]
    assert plan.states[0].counts.tolist() == [dropped.sum(), dropped.numel()]
    assert_share(dropped, 0.5)
    for axis, size in enumerate(dropped.shape):
        if size > 1:
            # Neighbours that share their mask would always agree, independent ones do half of the time.
            assert_share(dropped.narrow(axis, 1, size - 1) == dropped.narrow(axis, 0, size - 1), 0.5)


def test_each_call_of_cascaded_attention_has_a_mask_of_its_own(weights: list[Tensor]) -> None:
    module = efficientvit_msra.CascadedGroupAttention(24, 8, num_heads=3, attn_ratio=1, resolution=8, kernels=(3, 3, 3))
    apply(module, IMAGES)
    module(IMAGES)
    first, second, third = (call == 0 for call in weights)
    assert first.shape == second.shape == third.shape == (2, 64, 64)
    for one, other in ((first, second), (second, third), (first, third)):
        assert_share(one == other, 0.5)


def test_gated_positional_attention_stays_normalised_when_nearly_all_keys_drop(weights: list[Tensor]) -> None:
    module: Any = convit.GPSA(24, num_heads=3)
    tokens = torch.randn(8, 9, 24)
    apply(module, tokens, ratio=0.9)
    used: list[Tensor] = []
    module.attn_drop.register_forward_hook(lambda _module, _inputs, output: used.append(output.detach()))
    module(tokens).square().sum().backward()
    content, position = weights
    assert torch.equal(content == 0, position == 0)
    assert torch.equal(used[0] == 0, content == 0)
    assert torch.allclose(used[0].sum(-1), torch.ones(()))
    # 0.9 ** 9 of the queries would lose every key, and keep them all
    assert_share((content > 0).all(-1), 0.9**9)
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("level", [0, 1], ids=["softmax", "sdpa"])
@pytest.mark.parametrize("cls", [DiffAttention, DiffParallelScalingBlock])
def test_both_maps_of_a_differential_head_share_their_mask(
    cls: type[nn.Module], level: int, weights: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FUSED, level)
    module = cls(24, num_heads=3)
    apply(module, TOKENS)
    module(TOKENS)
    dropped = [call == 0 for call in weights]
    one, other = dropped if level else (dropped[0][:, ::2], dropped[0][:, 1::2])  # (B, 3, N, N)
    assert one.shape == (2, 3, 16, 16)
    assert torch.equal(one, other)
    assert_share(one[:, 1:] == one[:, :-1], 0.5)


def test_pooling_head_loses_keys_only_when_included(weights: list[Tensor]) -> None:
    for include, calls in ([], 2), (["attn_pool"], 3):
        model = timm.create_model("test_vit3", img_size=48, depth=2).train()
        apply_dropkey(model, DropKeySettings(schedule="constant", include=include))
        weights.clear()
        model(torch.randn(2, 3, 48, 48))
        assert len(weights) == calls


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("swin_tiny_patch4_window7_224", 0),
        ("swin_tiny_patch4_window7_224", 2),
        ("swinv2_tiny_window8_256", 1),
        ("swinv2_cr_tiny_224", 1),
    ],
)
@pytest.mark.parametrize("positional", [False, True])
def test_no_query_sees_across_the_border_of_a_shifted_window(
    name: str, level: int, positional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FUSED, level)
    model: Any = timm.create_model(name, num_classes=2, embed_dim=12, depths=(2, 2), num_heads=(3, 6))
    plan = apply_dropkey(model, DropKeySettings(ratio=0.9, schedule="constant"))
    assert plan.layers[1].function == ("sdpa" if level == 2 else "softmax")
    block = model.get_submodule(plan.layers[1].name.removesuffix(".attn")).train()
    mask = block.attn_mask  # (windows, N, N): 0 or -100
    tokens = torch.randn(*mask.shape[:2], 12, requires_grad=True)
    output = block.attn(tokens, mask) if positional else block.attn(tokens, mask=mask)
    query, seen = 0, []
    for window in (mask != 0).any(-1).any(-1).nonzero().flatten():
        (gradient,) = torch.autograd.grad(output[window, query].sum(), tokens, retain_graph=True)
        assert (gradient[window][mask[window, query] != 0] == 0).all()
        seen.append(bool((gradient[window][mask[window, query] == 0] != 0).any()))
    assert any(seen)  # a query that sees nothing would not see across the border either


def test_query_of_a_sharp_head_turns_to_the_keys_that_are_left(weights: list[Tensor]) -> None:
    attention = swin_transformer_v2.WindowAttention(24, window_size=(4, 4), num_heads=3)
    with torch.no_grad():
        attention.logit_scale.fill_(math.log(100.0))  # the largest that it can learn
        attention.qkv.weight[24:48] = attention.qkv.weight[:24]  # a token fits itself best: 100, the others far less
        attention.q_bias.zero_()
    apply(attention, TOKENS, ratio=0.3)
    mask = torch.zeros(2, 16, 16)
    mask[1, :, 8:] = -100.0
    attention(TOKENS, mask=mask)
    (left,) = weights  # (B, H, N, S)
    assert (left[1, :, :, 8:] == 0).all()
    assert (left.sum(-1) > 0.99).all()  # none lost 8 or 16 keys, which happens once in 15,000


def test_padding_of_naflexvit_stays_unseen() -> None:
    model = timm.create_model("naflexvit_base_patch16_gap", embed_dim=48, num_heads=3, depth=3, num_classes=5).train()
    patches, valid = torch.randn(2, 12, 768), torch.ones(2, 12, dtype=torch.bool)
    valid[:, 5:] = False
    coordinates = torch.cartesian_prod(torch.arange(3), torch.arange(4)).expand(2, 12, 2)
    inputs = {"patches": patches, "patch_coord": coordinates, "patch_valid": valid}
    # Its dict of patches needs values (the grid sizes), which the meta device has not: it is discovered on images.
    plan = apply_dropkey(model, DropKeySettings(ratio=0.9, schedule="constant"), example_inputs=(torch.zeros(2, 3, 48, 64),))
    changed = inputs | {"patches": patches.masked_fill(~valid[..., None], 7.0)}
    torch.manual_seed(1)
    output = model(inputs)
    torch.manual_seed(1)
    assert torch.equal(model(changed), output)
    assert all(state.counts[0] > 0 for state in plan.states)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("talking heads", 3),
        ("windows before heads", 3),
        ("windows after heads", 3),
        ("windows after heads, pooled queries", 3),
        ("heads in the batch, softmax", 1),
        ("heads in the batch, windows beside", 1),
    ],
)
def test_plan_counts_heads_not_windows(name: str, heads: int) -> None:
    layer = LAYERS[name]
    assert apply(layer.build(), *layer.inputs).layers[0].heads == heads
