import contextlib
import copy
import io
import math
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]  # timm re-exports without __all__
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dropkey_cli.method.settings import DropKeySettings, Structure
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.patching.interception import KeyDropping, LayerDropKey, intercepted_class, wrapped_class

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


def vit(**options: Any) -> Any:  # noqa: ANN401 - a model with timm's own attributes
    torch.manual_seed(2)
    options = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_classes": 5} | options
    return timm.create_model("vit_tiny_patch16_224", **options).train()


def swin() -> Any:  # noqa: ANN401 - a model with timm's own attributes
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(2, 2), num_heads=(3, 6), num_classes=5
    ).train()


def apply(model: nn.Module, ratio: float = 0.4, inputs: Tensor = IMAGES, structure: Structure = "element") -> DropKeyPlan:
    settings = DropKeySettings(ratio=ratio, schedule="constant", structure=structure)
    if isinstance(model, nn.Sequential):
        settings = DropKeySettings(ratio=ratio, schedule="constant", structure=structure, include=["*Probe"])
    return apply_dropkey(model, settings, example_inputs=(inputs,))


def patched_vit(**options: Any) -> Any:  # noqa: ANN401 - a model with timm's own attributes
    model = vit(**options)
    apply(model)
    return model


def gradients_at_seed(model: nn.Module, inputs: Tensor = IMAGES, seed: int = 7) -> list[Tensor]:
    torch.manual_seed(seed)
    model.zero_grad()
    model(inputs).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def output_at_seed(model: nn.Module, inputs: Tensor = IMAGES, seed: int = 7) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        output: Tensor = model(inputs)
    return output


def state_of(model: nn.Module) -> LayerDropKey:
    """The state of the first layer with DropKey."""
    return next(module.dropkey for module in model.modules() if isinstance(module, KeyDropping))


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


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


def test_deepcopy_drops_on_its_own() -> None:
    model = patched_vit()
    twin = copy.deepcopy(model)
    assert type(twin.blocks[0].attn) is type(model.blocks[0].attn)
    assert torch.equal(output_at_seed(twin), output_at_seed(model))
    assert not torch.equal(output_at_seed(twin, seed=8), output_at_seed(twin))
    before = state_of(model).counts.tolist()
    twin(IMAGES)
    state_of(twin).set_ratio(0.9)
    state_of(twin).enabled = False
    assert state_of(model).counts.tolist() == before
    assert float(state_of(model).ratio) == pytest.approx(0.4)
    assert state_of(model).enabled


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_pickle_keeps_dropping_on_its_own(how: str) -> None:
    model = patched_vit()
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert type(twin.blocks[0].attn) is type(model.blocks[0].attn)
    before = state_of(model).counts.tolist()
    assert torch.equal(output_at_seed(twin), output_at_seed(model))
    assert state_of(twin).counts.tolist() == state_of(model).counts.tolist() != before
    assert torch.equal(twin.eval()(IMAGES), model.eval()(IMAGES))


def test_ema_copy_uses_its_own_weights() -> None:
    model = patched_vit()
    plain = model.eval()(IMAGES)
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(ema(IMAGES), plain)
    assert not torch.equal(output_at_seed(ema.module.train()), plain)
    assert output_at_seed(ema.module).isfinite().all()


def test_ema_leaves_ratio_and_counts_alone() -> None:
    model = patched_vit()
    ema = ModelEmaV3(model, decay=0.5)
    model(IMAGES)
    ema.update(model)
    assert state_of(ema.module).counts.tolist() == [0, 0]
    assert state_of(ema.module).counts.dtype == torch.int64


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_activation_checkpointing_gives_bitwise_the_same_gradients(name: str) -> None:
    model, images = (vit(), IMAGES) if name == "vit" else (swin(), torch.randn(2, 3, 56, 56))
    apply(model, inputs=images)
    expected = gradients_at_seed(model, images)
    model.set_grad_checkpointing()
    assert_equal(gradients_at_seed(model, images), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("probe", PROBES)
def test_recomputation_draws_the_same_mask(probe: type[nn.Module], use_reentrant: bool) -> None:
    model = nn.Sequential(probe()).train()
    apply(model, 0.3, torch.zeros(2, 3, 40, 40))
    logits = torch.randn(2, 3, 40, 40, requires_grad=True)
    weights = checkpoint(model, logits, use_reentrant=use_reentrant)
    (weights * torch.randn_like(weights)).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, weights == 0)


def test_mode_stack_is_empty_after_an_error() -> None:
    model = patched_vit()
    model.blocks[1].attn.proj = nn.Linear(7, 7)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(IMAGES)
    assert torch._C._len_torch_function_stack() == 0


def test_ratio_and_counts_survive_other_dtypes_and_the_meta_device() -> None:
    model = patched_vit()
    model(IMAGES)
    state = state_of(model)
    expected = (float(state.ratio), state.counts.tolist())
    moves: list[Callable[[], object]] = [
        lambda: model.to(torch.bfloat16),
        lambda: model.half(),
        lambda: model.double(),
        lambda: model.to("meta"),
        lambda: model.to_empty(device="cpu"),
        lambda: model.float(),
    ]
    for move in moves:
        move()
        assert (float(state.ratio), state.counts.tolist()) == expected
        assert (state.ratio.dtype, state.counts.dtype) == (torch.float32, torch.int64)
        assert state.counts.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_model_counts_exactly(dtype: torch.dtype) -> None:
    model = patched_vit().to(dtype)
    for _ in range(50):
        model(IMAGES.to(dtype)).sum()
    dropped, draws = state_of(model).counts.tolist()
    assert draws == 50 * 2 * 3 * 17 * 17
    assert abs(dropped / draws - 0.4) < 5 * math.sqrt(0.24 / draws)


def test_model_born_on_the_meta_device_drops_after_it_got_memory() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).train()
    apply(model)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.normal_()
    model(IMAGES)
    assert state_of(model).counts[1] > 0


def test_another_model_of_the_same_class_is_untouched() -> None:
    other = vit()
    expected = output_at_seed(other)
    model = patched_vit()
    model(IMAGES)
    assert type(other.blocks[0].attn) is timm.layers.attention.Attention
    assert torch.equal(output_at_seed(other), expected)


def test_intercepted_class_is_made_once_and_knows_its_origin() -> None:
    cls = timm.layers.attention.Attention
    intercepted = intercepted_class(cls)
    assert intercepted is intercepted_class(cls)
    assert intercepted.__name__ == "DropKeyAttention"
    assert issubclass(intercepted, cls)
    assert wrapped_class(intercepted) is cls


def test_state_dict_of_patched_and_plain_models_are_interchangeable() -> None:
    model, plain = patched_vit(), vit()
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    assert not any("dropkey" in key for key in model.state_dict())
    assert len(list(model.modules())) == len(list(plain.modules()))


def test_evaluated_model_exports() -> None:
    model = patched_vit().eval()
    exported = torch.export.export(model, (IMAGES,)).module()
    assert torch.allclose(exported(IMAGES), model(IMAGES), atol=1e-6)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_networks_compile_in_one_graph(name: str) -> None:
    model, images = (vit(), IMAGES) if name == "vit" else (swin(), torch.randn(2, 3, 56, 56))
    plan = apply(model, inputs=images)
    compiled: Any = torch.compile(model, fullgraph=True)
    compiled(images).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    for state in plan.states:
        dropped, draws = state.counts.tolist()
        assert abs(dropped / draws - 0.4) < 5 * math.sqrt(0.24 / draws)


def test_new_ratios_compile_nothing_anew() -> None:
    model = vit()
    plan = apply(model)
    counter = torch._dynamo.testing.CompileCounter()
    compiled: Any = torch.compile(model, backend=counter, fullgraph=True)
    observed = []
    for ratio in (0.4, 0.1, 0.25, 0.7, 0.33):
        plan.set_ratios([ratio, ratio])
        before = plan.states[0].counts.clone()
        compiled(IMAGES)
        dropped, draws = (plan.states[0].counts - before).tolist()
        observed.append(dropped / draws)
    assert counter.frame_count == 1
    assert observed == pytest.approx([0.4, 0.1, 0.25, 0.7, 0.33], abs=0.06)


def test_compiled_model_follows_its_switches() -> None:
    model = vit()
    plan = apply(model)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    draws = []
    contexts: list[Callable[[], AbstractContextManager[None]]] = [contextlib.nullcontext, plan.sampling]
    for training in (True, False):
        for context in contexts:
            for plan.enabled in (True, False):
                model.train(training)
                before = int(plan.states[0].counts[1])
                with context():
                    compiled(IMAGES)
                draws.append(int(plan.states[0].counts[1]) > before)
    assert draws == [True, False, True, False, False, False, True, False]


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
    assert state_of(model).counts[1] > 0
    model.train()(IMAGES).sum().backward()
