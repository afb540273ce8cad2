import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dropkey_cli.method.settings import DropKeySettings, Structure
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.patching.interception import intercepted_class, wrapped_class
from dropkey_cli.patching.known import class_name

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class SoftmaxProbe(nn.Module):
    """Gives its weights: what is 0 in them was dropped; its gradient is 0 where the backward pass dropped."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


class SdpaProbe(nn.Module):
    """As `SoftmaxProbe`, by SDPA: with identity keys and values, queries are logits and outputs are weights."""

    def forward(self, logits: Tensor) -> Tensor:
        eye = torch.eye(logits.shape[-1], device=logits.device, dtype=logits.dtype).expand(*logits.shape[:2], -1, -1)
        return F.scaled_dot_product_attention(logits, eye, eye)


PROBES = [SoftmaxProbe, SdpaProbe]


def vit() -> Any:  # noqa: ANN401 - a model with timm's own attributes
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_classes=5).train()


def apply(model: nn.Module, ratio: float = 0.4, inputs: Tensor = IMAGES, structure: Structure = "element") -> DropKeyPlan:
    settings = DropKeySettings(ratio=ratio, schedule="constant", structure=structure)
    if isinstance(model, nn.Sequential):
        settings = DropKeySettings(ratio=ratio, schedule="constant", structure=structure, include=["*Probe"])
    return apply_dropkey(model, settings, example_inputs=(inputs,))


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("structure", ["element", "key"])
def test_dropped_keys_have_neither_weight_nor_gradient(probe: type[nn.Module], structure: Structure) -> None:
    model = nn.Sequential(probe()).train()
    plan = apply(model, 0.3, torch.zeros(2, 3, 40, 40), structure)
    logits = torch.randn(2, 3, 40, 40, requires_grad=True)
    weights = model(logits)
    (weights * torch.randn_like(weights)).sum().backward()
    assert logits.grad is not None
    dropped = weights == 0
    assert torch.equal(logits.grad == 0, dropped)
    counted, draws = plan.states[0].counts.tolist()
    if structure == "key":
        assert (dropped == dropped[:, :, :1]).all()
        dropped = dropped[:, :, 0]
    assert (counted, draws) == (dropped.sum(), dropped.numel())
    assert abs(counted / draws - 0.3) < 5 * math.sqrt(0.21 / draws)


def test_layers_and_steps_have_different_masks() -> None:
    model = nn.Sequential(SdpaProbe(), SdpaProbe()).train()
    apply(model, 0.3, torch.zeros(1, 1, 40, 40))
    logits = torch.zeros(1, 1, 40, 40)
    masks = [model[0](logits) == 0, model[0](logits) == 0, model[1](logits) == 0]
    assert not any(torch.equal(masks[i], masks[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


@pytest.mark.parametrize("how", ["Tensor.softmax", "torch.softmax", "F.softmax", "by name"])
def test_dtype_of_the_weights_is_the_asked_one(how: str) -> None:
    class DtypeProbe(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            if how == "Tensor.softmax":
                return logits.softmax(-1, torch.float64)
            if how == "torch.softmax":
                return torch.softmax(logits, -1, torch.float64)
            if how == "F.softmax":
                return F.softmax(logits, -1, 3, torch.float64)
            return logits.softmax(dim=-1, dtype=torch.float64)

    model = nn.Sequential(DtypeProbe()).train()
    apply(model, 0.3, torch.zeros(2, 3, 4, 4))
    assert model(torch.zeros(2, 3, 4, 4)).dtype == torch.float64


def test_softmax_over_another_axis_passes_through() -> None:
    class MixedProbe(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return logits.softmax(-1) * logits.softmax(1) * logits.flatten(1).softmax(-1).view_as(logits)

    model = nn.Sequential(MixedProbe()).train()
    plan = apply(model, 0.3, torch.zeros(2, 3, 4, 4))
    model(torch.zeros(2, 3, 4, 4))
    assert plan.states[0].counts[1] == 2 * 3 * 4 * 4


def test_calls_that_share_their_keys_share_their_mask() -> None:
    model: Any = timm.create_model("convit_tiny", img_size=48, num_classes=2).train()
    apply_dropkey(model, DropKeySettings(ratio=0.4, schedule="constant"), example_inputs=(torch.zeros(2, 3, 48, 48),))
    attention = model.blocks[0].attn
    with torch.no_grad():
        attention.v.weight.copy_(torch.eye(192))
        attention.proj.weight.copy_(torch.eye(192))
        attention.proj.bias.zero_()
    tokens = torch.zeros(1, 9, 192)
    tokens[0, :, :9] = torch.eye(9)  # head 0 outputs its weights
    weights = attention(tokens)[0, :, :9]
    # Independent masks would leave a weight of 0 only where both dropped: at 0.16 of the keys.
    assert 0.2 < (weights == 0).float().mean() < 0.6
    assert torch.allclose(weights.sum(-1), torch.ones(9))
    assert attention.dropkey.counts[1] == 4 * 9 * 9  # heads, queries, keys: a shared mask counts once


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("probe", PROBES)
def test_recomputation_draws_the_same_mask_and_counts_nothing(probe: type[nn.Module], use_reentrant: bool) -> None:
    model = nn.Sequential(probe()).train()
    plan = apply(model, 0.3, torch.zeros(2, 3, 40, 40))
    logits = torch.randn(2, 3, 40, 40, requires_grad=True)
    weights = checkpoint(model, logits, use_reentrant=use_reentrant)
    (weights * torch.randn_like(weights)).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, weights == 0)
    assert plan.states[0].counts.tolist() == [(weights == 0).sum(), weights.numel()]  # the recomputation is not counted


def test_mode_stack_is_empty_after_an_error() -> None:
    model = vit()
    apply(model)
    model.blocks[1].attn.proj = nn.Linear(7, 7)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(IMAGES)
    assert torch._C._len_torch_function_stack() == 0


def test_intercepted_class_is_made_once_and_has_the_names_of_its_origin() -> None:
    cls = timm.layers.attention.Attention
    intercepted = intercepted_class(cls)
    assert intercepted is intercepted_class(cls)
    assert class_name(intercepted) == class_name(cls)  # exported programs keep these names
    assert intercepted.__name__ == cls.__name__
    assert issubclass(intercepted, cls)
    assert wrapped_class(intercepted) is cls


def test_printed_model_shows_its_ratios() -> None:
    model = vit()
    printed = repr(model)
    plan = apply(model, 0.25)
    plan.set_ratios([0.25, 0.125])
    assert [repr(block.attn).count(f"dropkey={ratio}") for block, ratio in zip(model.blocks, (0.25, 0.125), strict=True)] == [
        1,
        1,
    ]
    plan.remove()
    assert repr(model) == printed


def test_forward_of_the_class_drops_too() -> None:
    model = nn.Sequential(SoftmaxProbe()).train()
    apply(model, 0.3, torch.zeros(2, 3, 40, 40))
    assert (type(model[0]).forward(model[0], torch.zeros(2, 3, 40, 40)) == 0).any()


def test_compiled_backward_uses_the_mask_of_the_forward() -> None:
    model = nn.Sequential(SoftmaxProbe(), SdpaProbe()).train()
    plan = apply(model, 0.3, torch.zeros(2, 3, 40, 40))

    @torch.compile(fullgraph=True)
    def both(logits: Tensor) -> tuple[Tensor, Tensor]:
        return model[0](logits), model[1](logits)

    logits = [torch.randn(2, 3, 40, 40, requires_grad=True) for _ in range(2)]
    for index in range(2):
        weights = both(logits[index])[index]
        (gradient,) = torch.autograd.grad((weights * torch.randn_like(weights)).sum(), logits[index])
        assert torch.equal(gradient == 0, weights == 0)
        assert abs((weights == 0).float().mean() - 0.3) < 5 * math.sqrt(0.21 / weights.numel())
    assert [int(state.counts[1]) for state in plan.states] == [2 * 2 * 3 * 40 * 40] * 2


@pytest.mark.parametrize("fused", [True, False], ids=["sdpa", "softmax"])
def test_both_maps_of_differential_attention_lose_the_same_keys(fused: bool) -> None:
    attention = timm.layers.diff_attention.DiffAttention(32, num_heads=1).train()
    attention.fused_attn = fused  # what TIMM_FUSED_ATTN sets
    with torch.no_grad():
        attention.qkv.weight[64:].copy_(torch.eye(32))  # values
        attention.proj.weight.copy_(torch.eye(32))
        attention.proj.bias.zero_()
    settings = DropKeySettings(ratio=0.4, schedule="constant")
    tokens = torch.eye(32)[None].expand(8, -1, -1)  # outputs are differences of weights
    apply_dropkey(attention, settings, example_inputs=(tokens,))
    # Independent masks would leave 0 only where both dropped: at 0.16 of the keys.
    assert (attention(tokens) == 0).float().mean() == pytest.approx(0.4, abs=0.03)


def test_sampling_works_in_inference_mode() -> None:
    model = vit().eval()
    plan = apply(model)
    with torch.inference_mode(), plan.sampling():
        model(IMAGES)
    assert plan.states[0].counts[1] > 0
    model.train()(IMAGES).sum().backward()
