"""DropKey in torch's `nn.MultiheadAttention` and the networks built of it, and in torchvision's transformers."""

import copy
import functools
import math
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformerBlockV2,
)
from torchvision.models.video import MViT, SwinTransformer3d
from torchvision.models.video.mvit import MSBlockConfig
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.patching.interception import KeyDropping

CONSTANT = DropKeySettings(ratio=0.3, schedule="constant")
OFF = DropKeySettings(ratio=0.0, schedule="constant")

Layers = list[tuple[str, int, int, int]]
MHA = "multi_head_attention_forward"


@dataclass(frozen=True)
class Network:
    """A model and its attention layers, from its source: name, heads, queries, keys, in order of execution.

    Args:
        build: Makes the model.
        inputs: Shapes of the arguments of its forward.
        layers: What takes DropKey.
        function: How all of them attend.
    """

    build: Callable[[], nn.Module]
    inputs: list[tuple[int, ...]]
    layers: Layers
    function: str = MHA


def encoder(**options: Any) -> nn.TransformerEncoder:  # noqa: ANN401 - arguments of torch's layer
    layer = nn.TransformerEncoderLayer(**({"d_model": 16, "nhead": 4, "dim_feedforward": 32, "batch_first": True} | options))
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=layer.self_attn.batch_first)


def decoder() -> nn.TransformerDecoder:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 2)


def vit() -> VisionTransformer:
    return VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=24, mlp_dim=48, num_classes=5)


def swin(**options: Any) -> SwinTransformer:  # noqa: ANN401 - arguments of torchvision's class
    sizes = {"patch_size": [2, 2], "embed_dim": 12, "depths": [2, 2], "num_heads": [3, 6], "window_size": [4, 4]}
    return SwinTransformer(**sizes, stochastic_depth_prob=0.0, num_classes=5, **options)


def mvit() -> MViT:
    blocks = [
        MSBlockConfig(1, 8, 8, kernel_q=[], kernel_kv=[3, 3, 3], stride_q=[], stride_kv=[1, 2, 2]),
        MSBlockConfig(2, 8, 16, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_q=[1, 2, 2], stride_kv=[1, 1, 1]),
    ]
    return MViT((16, 16), 4, blocks, residual_pool=False, residual_with_cls_embed=False, rel_pos_embed=False,
                proj_after_attn=False, dropout=0.0, num_classes=5)  # fmt: skip


NETWORKS = {
    "attention": Network(lambda: nn.MultiheadAttention(16, 4, batch_first=True), [(2, 5, 16), (2, 7, 16), (2, 7, 16)],
                         [("", 4, 5, 7)]),
    "attention with more keys": Network(
        lambda: nn.MultiheadAttention(16, 4, kdim=6, vdim=8, add_bias_kv=True, add_zero_attn=True),
        [(5, 2, 16), (7, 2, 6), (7, 2, 8)], [("", 4, 5, 9)],
    ),
    "attention without batch": Network(lambda: nn.MultiheadAttention(16, 4), [(5, 16), (7, 16), (7, 16)], [("", 4, 5, 7)]),
    "encoder": Network(encoder, [(2, 5, 16)], [(f"layers.{i}.self_attn", 4, 5, 5) for i in range(2)]),
    "encoder, odd heads, sequence first": Network(
        lambda: encoder(d_model=15, nhead=3, batch_first=False, norm_first=True),
        [(5, 2, 15)], [(f"layers.{i}.self_attn", 3, 5, 5) for i in range(2)],
    ),
    "decoder": Network(decoder, [(2, 5, 16), (2, 7, 16)],
                       [layer for i in range(2) for layer in ((f"layers.{i}.self_attn", 4, 5, 5),
                                                              (f"layers.{i}.multihead_attn", 4, 5, 7))]),
    "transformer": Network(lambda: nn.Transformer(16, 4, 1, 1, 32, batch_first=True), [(2, 7, 16), (2, 5, 16)],
                           [("encoder.layers.0.self_attn", 4, 7, 7), ("decoder.layers.0.self_attn", 4, 5, 5),
                            ("decoder.layers.0.multihead_attn", 4, 5, 7)]),
    "torchvision ViT": Network(vit, [(2, 3, 32, 32)],
                               [(f"encoder.layers.encoder_layer_{i}.self_attention", 4, 17, 17) for i in range(2)]),
    "torchvision Swin": Network(swin, [(2, 3, 32, 32)],
                                [(f"features.{stage}.{i}.attn", heads, 16, 16) for stage, heads in ((1, 3), (3, 6))
                                 for i in range(2)], "softmax"),
    "torchvision Swin V2": Network(
        lambda: swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2), [(2, 3, 32, 32)],
        [(f"features.{stage}.{i}.attn", heads, 16, 16) for stage, heads in ((1, 3), (3, 6)) for i in range(2)], "softmax",
    ),
    "torchvision MaxViT": Network(
        lambda: MaxVit((64, 64), 8, 4, [16], [1], 8, 0.0, num_classes=5), [(2, 3, 64, 64)],
        [(f"blocks.0.layers.0.layers.{kind}_attention.attn_layer.1", 2, 16, 16) for kind in ("window", "grid")], "softmax",
    ),
    "torchvision video Swin": Network(
        lambda: SwinTransformer3d([2, 4, 4], 12, [2], [3], [2, 4, 4], stochastic_depth_prob=0.0, num_classes=5),
        [(2, 3, 8, 32, 32)], [(f"features.0.{i}.attn", 3, 32, 32) for i in range(2)], "softmax",
    ),
    # 4·4 patches of 2 frames and a class token; the keys are pooled first, then the queries
    "torchvision MViT": Network(mvit, [(2, 3, 4, 16, 16)],
                                [("blocks.0.attn", 1, 33, 9), ("blocks.1.attn", 2, 9, 33)], "softmax"),
}  # fmt: skip
ALL_NETWORKS = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def pristine(name: str) -> nn.Module:
    """The unpatched network; every parameter is perturbed, so that no branch is zero. Tests work on copies of it."""
    torch.manual_seed(5)
    model = NETWORKS[name].build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs_for(name: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(6)
    return tuple(torch.randn(shape, generator=generator) for shape in NETWORKS[name].inputs)


def patched(name: str, settings: DropKeySettings = CONSTANT) -> tuple[nn.Module, DropKeyPlan]:
    model = copy.deepcopy(pristine(name))
    return model, apply_dropkey(model, settings, example_inputs=inputs_for(name))


def output_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    result = model(*inputs)
    output: Tensor = result[0] if isinstance(result, tuple) else result
    return output


def train_once(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Output and gradients of a training pass that starts from a fixed random state."""
    torch.manual_seed(1)
    model.train().zero_grad()
    output = output_of(model, inputs)
    torch.autograd.backward(output.square().sum())
    return [output.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def draws_of(plan: DropKeyPlan) -> list[int]:
    return [int(state.counts[1]) for state in plan.states]


@ALL_NETWORKS
def test_layers_are_found_in_order_of_execution(name: str) -> None:
    _, plan = patched(name)
    assert [(layer.name, layer.heads, layer.queries, layer.keys) for layer in plan.layers] == NETWORKS[name].layers
    assert {layer.function for layer in plan.layers} == {NETWORKS[name].function}
    assert {layer.kind for layer in plan.layers} == {"key"}
    assert plan.left_alone == []


@ALL_NETWORKS
def test_ratio_0_trains_bitwise_as_unpatched(name: str) -> None:
    model, plan = patched(name, OFF)
    assert_equal(train_once(model, inputs_for(name)), train_once(copy.deepcopy(pristine(name)), inputs_for(name)))
    assert set(draws_of(plan)) == {0}


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@ALL_NETWORKS
def test_eval_is_bitwise_unpatched_and_removing_restores_the_model(
    name: str, context: Callable[[], AbstractContextManager[None]]
) -> None:
    plain = copy.deepcopy(pristine(name)).eval()
    model, plan = patched(name)
    model.eval()
    with context():
        expected = output_of(plain, inputs_for(name))
        assert torch.equal(output_of(model, inputs_for(name)), expected)
        assert set(draws_of(plan)) == {0}
        assert list(model.state_dict()) == list(plain.state_dict())
        assert_equal(list(model.state_dict().values()), list(plain.state_dict().values()))
        plan.remove()
        assert torch.equal(output_of(model, inputs_for(name)), expected)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


@ALL_NETWORKS
def test_training_drops_the_configured_share_in_every_layer(name: str) -> None:
    model, plan = patched(name)
    inputs = inputs_for(name)
    first = train_once(model, inputs)
    assert not torch.allclose(first[0], train_once(copy.deepcopy(pristine(name)), inputs)[0])
    assert all(tensor.isfinite().all() for tensor in first)
    assert_equal(train_once(model, inputs), first)  # the seed decides
    for layer, state in zip(plan.layers, plan.states, strict=True):
        dropped, draws = state.counts.tolist()
        logits = layer.heads * layer.queries * layer.keys
        assert draws > 0
        assert draws % (2 * logits) == 0
        assert abs(dropped / draws - 0.3) < 5 * math.sqrt(0.3 * 0.7 / (draws / 2)), layer.name


@ALL_NETWORKS
def test_losing_nearly_all_keys_stays_finite(name: str) -> None:
    model, _ = patched(name, DropKeySettings(ratio=0.97, schedule="constant"))
    assert all(tensor.isfinite().all() for tensor in train_once(model, inputs_for(name)))


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@ALL_NETWORKS
def test_sampling_drops_in_eval(name: str, context: Callable[[], AbstractContextManager[None]]) -> None:
    model, plan = patched(name)
    model.eval()
    with context():
        expected = output_of(model, inputs_for(name))
        with plan.sampling():
            samples = [output_of(model, inputs_for(name)) for _ in range(2)]
        assert min(draws_of(plan)) > 0
        assert not torch.allclose(samples[0], samples[1])
        assert torch.equal(output_of(model, inputs_for(name)), expected)


@pytest.mark.parametrize("enabled", [True, False])
def test_sampling_gives_torchs_fast_path_back(enabled: bool) -> None:
    _, plan = patched("encoder")
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        with pytest.raises(RuntimeError, match="interrupted"), plan.sampling():
            assert not torch.backends.mha.get_fastpath_enabled()
            raise RuntimeError("interrupted")
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_padded_batch_in_eval_is_bitwise_unpatched_and_can_be_sampled() -> None:
    """In eval, torch's encoder makes a nested tensor of a padded batch."""
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    plain = copy.deepcopy(pristine("encoder")).eval()
    model, plan = patched("encoder")
    (tokens,) = inputs_for("encoder")
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(tokens, src_key_padding_mask=padding), plain(tokens, src_key_padding_mask=padding))
        with plan.sampling():
            assert model(tokens, src_key_padding_mask=padding)[~padding].isfinite().all()
    assert min(draws_of(plan)) > 0


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_both_layouts_and_both_paths_give_the_same(batch_first: bool, need_weights: bool) -> None:
    (query, key, value), expected = inputs_for("attention"), train_once(patched("attention")[0], inputs_for("attention"))[0]
    model, _ = patched("attention")
    model.batch_first = batch_first  # type: ignore[assignment]  # mypy knows it is a module only
    if not batch_first:
        query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    torch.manual_seed(1)
    output, weights = model.train()(query, key, value, need_weights=need_weights)
    assert (weights is not None) == need_weights
    assert torch.allclose(output if batch_first else output.transpose(0, 1), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_padding_of_the_memory_stays_unseen(kind: str) -> None:
    model, plan = patched("decoder", DropKeySettings(ratio=0.8, schedule="constant"))
    target, memory = inputs_for("decoder")
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 4:] = True
    mask = padding if kind == "bool" else torch.zeros(2, 7).masked_fill(padding, -torch.inf)
    outputs = []
    for filling in (0.0, 7.0):
        torch.manual_seed(1)
        outputs.append(model.train()(target, memory.masked_fill(padding[..., None], filling), memory_key_padding_mask=mask))
    assert torch.equal(outputs[0], outputs[1])
    assert min(draws_of(plan)) > 0


def test_causal_mask_hides_the_future() -> None:
    model, _ = patched("encoder")
    tokens = inputs_for("encoder")[0].requires_grad_()
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    output = model.train()(tokens, mask=mask, is_causal=True)
    (gradient,) = torch.autograd.grad(output[:, 2].square().sum(), tokens)
    assert (gradient[:, 3:] == 0).all()
    assert (gradient[:, 2] != 0).any()


@pytest.mark.parametrize("version", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
def test_no_query_sees_across_the_border_of_a_shifted_window(version: type[nn.Module]) -> None:
    height, width, window, shift = 8, 12, 4, 2
    attention = version(12, [window, window], [shift, shift], num_heads=3)
    apply_dropkey(
        attention, DropKeySettings(ratio=0.9, schedule="constant"), example_inputs=(torch.zeros(2, height, width, 12),)
    )
    tokens = torch.randn(1, height, width, 12, requires_grad=True)
    output = attention.train()(tokens)
    rows, columns = regions(height, window, shift), regions(width, window, shift)
    region = rows[:, None] * width + columns  # (height, width): the window, cut at the border of the image
    seen = []
    for y, x in [(0, 0), (0, 5), (3, 11), (7, 0), (7, 11)]:
        (gradient,) = torch.autograd.grad(output[0, y, x].sum(), tokens, retain_graph=True)
        assert (gradient[0][region != region[y, x]] == 0).all()
        seen.append(bool((gradient[0][region == region[y, x]] != 0).any()))
    assert any(seen)  # a query that sees nothing would not see across the border either


def test_video_windows_do_not_see_across_their_border() -> None:
    attention = ShiftedWindowAttention3d(12, [2, 4, 4], [1, 2, 2], num_heads=3)
    clips = torch.randn(1, 2, 8, 8, 12, requires_grad=True)  # one window in time: no shift along it
    apply_dropkey(attention, DropKeySettings(ratio=0.9, schedule="constant"), example_inputs=(torch.zeros(2, 2, 8, 8, 12),))
    output = attention.train()(clips)
    region = regions(8, 4, 2)[:, None] * 8 + regions(8, 4, 2)
    seen = []
    for y, x in [(0, 0), (0, 7), (7, 7)]:
        (gradient,) = torch.autograd.grad(output[0, :, y, x].sum(), clips, retain_graph=True)
        assert (gradient[0][:, region != region[y, x]] == 0).all()
        seen.append(bool((gradient[0][:, region == region[y, x]] != 0).any()))
    assert any(seen)


def regions(length: int, window: int, shift: int) -> Tensor:
    """Which positions of one axis share a window and lay side by side before the cyclic shift."""
    shifted = (torch.arange(length) - shift) % length
    return shifted // window * 2 + (torch.arange(length) < shift)


def test_sharp_heads_attend_to_whatever_is_left() -> None:
    attention = ShiftedWindowAttentionV2(4, [4, 4], [0, 0], num_heads=1)
    nn.init.constant_(attention.logit_scale, 100.0)  # clamped to a factor of 100: cosines apart by 0.5 are 50 apart
    nn.init.eye_(attention.proj.weight)
    nn.init.zeros_(attention.proj.bias)
    apply_dropkey(attention, DropKeySettings(ratio=0.5, schedule="constant"), example_inputs=(torch.zeros(2, 8, 8, 4),))
    output = attention.train()(torch.randn(8, 8, 8, 4))
    assert (output != 0).any(-1).all()  # all 16 keys of a window are dropped once in 65536 times


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_activation_checkpointing_gives_bitwise_the_same_gradients(need_weights: bool, use_reentrant: bool) -> None:
    model, _ = patched("attention")
    query, key, value = (tensor.requires_grad_() for tensor in inputs_for("attention"))

    def gradients(checkpointed: bool) -> tuple[Tensor, ...]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            output: Tensor = model(query, key, value, need_weights=need_weights)[0]
            return output

        torch.manual_seed(1)
        run = functools.partial(checkpoint, attend, use_reentrant=use_reentrant) if checkpointed else attend
        model.zero_grad()
        run(query, key, value).square().sum().backward()
        return tuple(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)

    assert_equal(list(gradients(True)), list(gradients(False)))


@pytest.mark.parametrize("name", ["encoder", "decoder", "torchvision ViT"])
def test_autocast_in_bfloat16_stays_finite(name: str) -> None:
    model, plan = patched(name, DropKeySettings(ratio=0.9, schedule="constant"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = output_of(model.train(), inputs_for(name))
    torch.autograd.backward(output.float().square().sum())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert min(draws_of(plan)) > 0


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("torchvision ViT", "aot_eager"),
        pytest.param("decoder", "aot_eager", marks=pytest.mark.slow),
        pytest.param("torchvision Swin", "aot_eager", marks=pytest.mark.slow),
        pytest.param("torchvision ViT", "inductor", marks=pytest.mark.slow),
    ],
)
def test_networks_compile_in_one_graph(name: str, backend: str) -> None:
    model, plan = patched(name)
    compiled: Any = torch.compile(model.train(), backend=backend, fullgraph=True)
    torch.autograd.backward(output_of(compiled, inputs_for(name)).square().sum())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    for layer, state in zip(plan.layers, plan.states, strict=True):
        dropped, draws = state.counts.tolist()
        assert abs(dropped / draws - 0.3) < 5 * math.sqrt(0.3 * 0.7 / draws), layer.name


def test_compiled_encoder_follows_sampling() -> None:
    model, plan = patched("encoder")
    compiled: Any = torch.compile(model.eval(), backend="eager", fullgraph=True)
    seen = []
    with torch.no_grad():
        for _ in range(2):
            compiled(*inputs_for("encoder"))
            seen.append(draws_of(plan))
            with plan.sampling():
                compiled(*inputs_for("encoder"))
            seen.append(draws_of(plan))
    once = 2 * 4 * 5 * 5
    assert seen == [[0, 0], [once, once], [once, once], [2 * once, 2 * once]]


def test_evaluated_encoder_exports() -> None:
    model, _ = patched("encoder")
    inputs = inputs_for("encoder")
    exported = torch.export.export(model.eval(), inputs).module()
    assert torch.allclose(exported(*inputs), model(*inputs), atol=1e-6)


@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_copy_drops_on_its_own(how: str) -> None:
    model, plan = patched("encoder")
    twin: nn.Module = copy.deepcopy(model) if how == "copy" else pickle.loads(pickle.dumps(model))
    trained = train_once(twin, inputs_for("encoder"))
    assert set(draws_of(plan)) == {0}
    assert all(int(module.dropkey.counts[1]) > 0 for module in twin.modules() if isinstance(module, KeyDropping))
    assert_equal(trained, train_once(model, inputs_for("encoder")))


class Pool(nn.Module):
    """Calls torch's function itself, all arguments by name, as CLIP's pooling head does."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        attention = self.attention
        output, _ = F.multi_head_attention_forward(
            query=tokens[:1], key=tokens, value=tokens, embed_dim_to_check=16, num_heads=4, dropout_p=0.0,
            in_proj_weight=attention.in_proj_weight, in_proj_bias=attention.in_proj_bias, bias_k=None, bias_v=None,
            add_zero_attn=False, out_proj_weight=attention.out_proj.weight, out_proj_bias=attention.out_proj.bias,
            training=self.training, need_weights=False,
        )  # fmt: skip
        return output


def test_function_called_by_another_module_is_caught() -> None:
    model = nn.Sequential(Pool())
    tokens = torch.randn(7, 2, 16)
    plan = apply_dropkey(model, DropKeySettings(schedule="constant", include=["*Pool"]), example_inputs=(tokens,))
    assert [(layer.name, layer.heads, layer.queries, layer.keys) for layer in plan.layers] == [("0", 4, 1, 7)]
    model.train()(tokens)
    assert draws_of(plan) == [2 * 4 * 1 * 7]
