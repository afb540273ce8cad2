# ruff: noqa: ANN401 - what a network's attributes are is known at run time only
import argparse
import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.models.factory import pretrained_config
from dropkey_cli.models.t2t_vit import (
    TokenPerformer,
    TokensToToken,
    TokenTransformer,
    checkpoint_filter_fn,
    sinusoid_table,
)
from dropkey_cli.patching.apply import apply_dropkey

# The authors' README and code: embed_dim, depth, heads, mlp_ratio, numbers in the state dict, trainable ones, top-1 accuracy
VARIANTS = {
    "t2t_vit_7": (256, 7, 4, 2, 4_310_222, 4_255_694, 71.7),
    "t2t_vit_10": (256, 10, 4, 2, 5_889_230, 5_834_702, 75.2),
    "t2t_vit_12": (256, 12, 4, 2, 6_941_902, 6_887_374, 76.5),
    "t2t_vit_14": (384, 14, 6, 3, 21_545_550, 21_465_806, 81.5),
    "t2t_vit_19": (448, 19, 7, 3, 39_177_422, 39_085_070, 81.9),
    "t2t_vit_24": (512, 24, 8, 3, 64_105_934, 64_000_974, 82.3),
    "t2t_vit_t_14": (384, 14, 6, 3, 21_541_070, 21_465_422, 81.7),
    "t2t_vit_t_19": (448, 19, 7, 3, 39_172_942, 39_084_686, 82.4),
    "t2t_vit_t_24": (512, 24, 8, 3, 64_101_454, 64_000_590, 82.6),
}
SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
BOTH = ["t2t_vit_14", "t2t_vit_t_14"]
CONSTANT = DropKeySettings(ratio=0.5, schedule="constant")


def small(name: str = "t2t_vit_14", **options: Any) -> Any:
    return perturb(timm.create_model(name, **(SMALL | options)))


def perturb(module: nn.Module) -> Any:
    """Every trainable parameter away from zero and one, so that none is without effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


def documented_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The state dict as the paper's layers and the authors' names make it, for 1000 classes and 224 pixels."""
    dim, depth, _, mlp_ratio, *_ = VARIANTS[name]
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim), "pos_embed": (1, 14 * 14 + 1, dim)}

    def norm(prefix: str, channels: int) -> None:
        shapes.update({f"{prefix}.weight": (channels,), f"{prefix}.bias": (channels,)})

    def linear(prefix: str, channels: int, out: int, bias: bool = True) -> None:
        shapes.update({f"{prefix}.weight": (out, channels)} | ({f"{prefix}.bias": (out,)} if bias else {}))

    for stage, channels in (("tokens_to_token.attention1", 3 * 49), ("tokens_to_token.attention2", 64 * 9)):
        norm(f"{stage}.norm1", channels)
        norm(f"{stage}.norm2", 64)
        if "_t_" in name:
            linear(f"{stage}.attn.qkv", channels, 192, bias=False)
            linear(f"{stage}.attn.proj", 64, 64)
        else:
            linear(f"{stage}.kqv", channels, 192)
            linear(f"{stage}.proj", 64, 64)
            shapes[f"{stage}.w"] = (32, 64)
        for layer in ("fc1", "fc2") if "_t_" in name else ("0", "2"):
            linear(f"{stage}.mlp.{layer}", 64, 64)
    linear("tokens_to_token.project", 64 * 9, dim)
    for block in (f"blocks.{index}" for index in range(depth)):
        norm(f"{block}.norm1", dim)
        linear(f"{block}.attn.qkv", dim, 3 * dim, bias=False)
        linear(f"{block}.attn.proj", dim, dim)
        norm(f"{block}.norm2", dim)
        linear(f"{block}.mlp.fc1", dim, mlp_ratio * dim)
        linear(f"{block}.mlp.fc2", mlp_ratio * dim, dim)
    norm("norm", dim)
    linear("head", dim, 1000)
    return shapes


@pytest.mark.parametrize("name", VARIANTS)
def test_names_shapes_and_counts_are_the_official_ones(name: str) -> None:
    model = on_meta(name)
    state_dict = model.state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state_dict.items()} == documented_shapes(name)
    *_, heads, _, state, trainable, _ = VARIANTS[name]
    assert sum(tensor.numel() for tensor in state_dict.values()) == state
    assert sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad) == trainable
    assert {block.attn.num_heads for block in model.blocks} == {heads}
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


@pytest.mark.parametrize("name", VARIANTS)
def test_pretrained_weights_are_described(name: str) -> None:
    config = pretrained_config(name)
    kind, depth = ("T2T_ViTt", name.split("_")[-1]) if "_t_" in name else ("T2T_ViT", name.split("_")[-1])
    home = "https://github.com/yitu-opensource/T2T-ViT"
    assert config.url == f"{home}/releases/download/main/{VARIANTS[name][-1]}_{kind}_{depth}.pth.tar"
    assert (config.origin_url, config.license) == (home, "bsd-3-clause-clear")
    assert (config.input_size, config.crop_pct, config.interpolation) == ((3, 224, 224), 0.9, "bicubic")
    assert (config.mean, config.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (config.num_classes, config.classifier, config.first_conv) == (1000, "head", None)


def test_weights_for_384_pixels_bring_their_size() -> None:
    model = on_meta("t2t_vit_14.yitu_in1k_384")
    assert model.patch_embed.img_size == (384, 384)
    assert model.pos_embed.shape == (1, 24 * 24 + 1, 384)


# The numbers of each layer, against a straight-line computation in float64


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normalised: Tensor = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    return normalised


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def dot(x: Tensor, linear: Any) -> Tensor:
    product = torch.einsum("...i,oi->...o", x, linear.weight)
    return product if linear.bias is None else product + linear.bias


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention of one head of one sample, ``(N, D)`` each."""
    weights = torch.exp(scale * torch.einsum("qd,kd->qk", q, k))
    return torch.einsum("qk,kd->qd", weights / weights.sum(1, keepdim=True), v)


@pytest.mark.parametrize("in_dim", [147, 576])
def test_token_transformer_is_one_head_with_the_input_channels_scale_and_a_skip_from_its_values(in_dim: int) -> None:
    layer = perturb(TokenTransformer(in_dim)).double().eval()
    tokens = torch.randn(2, 6, in_dim, dtype=torch.float64)
    qkv, proj = layer.attn["qkv"], layer.attn["proj"]
    fc1, fc2 = layer.mlp.fc1, layer.mlp.fc2
    for sample, output in zip(tokens, layer(tokens), strict=True):
        q, k, v = torch.einsum("ni,toi->tno", layer_norm(sample, layer.norm1), qkv.weight.view(3, 64, in_dim))
        expected = v + dot(attend(q, k, v, 1 / math.sqrt(in_dim)), proj)
        expected = expected + dot(gelu(dot(layer_norm(expected, layer.norm2), fc1)), fc2)
        torch.testing.assert_close(output, expected)


def kernel_mean(query: Tensor, keys: Tensor, values: Tensor, directions: Tensor) -> Tensor:
    """The mean of the values, weighted by the random-feature estimate of exp(query · key)."""

    def features(x: Tensor) -> Tensor:
        return torch.stack([torch.exp(w @ x - x @ x / 2) for w in directions]) / math.sqrt(len(directions))

    weights = torch.stack([features(query) @ features(key) for key in keys])
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0) / (weights.sum() + 1e-8)


def performer(in_dim: int, spread: float) -> Any:
    """A layer whose keys, queries and values have entries of about the size ``spread``."""
    layer = perturb(TokenPerformer(in_dim)).eval()
    nn.init.normal_(layer.kqv.weight, std=spread / math.sqrt(in_dim))
    return layer


@pytest.mark.parametrize("in_dim", [147, 576])
# At 0.6, keys and queries are so far apart that the small number added to the divisor counts
@pytest.mark.parametrize("spread", [0.2, 0.6])
def test_token_performer_weights_values_by_random_features(in_dim: int, spread: float) -> None:
    layer = performer(in_dim, spread)
    attended: list[Tensor] = []
    layer.proj.register_forward_pre_hook(lambda _module, args: attended.append(args[0]))
    tokens = torch.randn(2, 6, in_dim)
    output = layer(tokens)
    exact = copy.deepcopy(layer).double()
    for index, sample in enumerate(tokens.double()):
        k, q, v = torch.einsum("ni,toi->tno", layer_norm(sample, exact.norm1), exact.kqv.weight.view(3, 64, in_dim))
        k, q, v = (part + bias for part, bias in zip((k, q, v), exact.kqv.bias.view(3, 64), strict=True))
        means = torch.stack([kernel_mean(query, k, v, exact.w) for query in q])
        torch.testing.assert_close(attended[0][index].double(), means, rtol=1e-4, atol=1e-5)
        expected = v + dot(means, exact.proj)
        expected = expected + dot(gelu(dot(layer_norm(expected, exact.norm2), exact.mlp[0])), exact.mlp[2])
        torch.testing.assert_close(output[index].double(), expected, rtol=1e-5, atol=1e-5)


def test_random_directions_are_fixed_and_orthogonal() -> None:
    first, second = TokenPerformer(147).w, TokenPerformer(147).w
    assert not first.requires_grad
    assert not torch.equal(first, second)
    for directions in (first, second):
        torch.testing.assert_close(directions @ directions.T, 32 * torch.eye(32), rtol=0, atol=1e-4)


def test_block_is_the_pre_norm_transformer_block() -> None:
    block = small().double().eval().blocks[1]
    tokens = torch.randn(2, 5, 16, dtype=torch.float64)
    attn, mlp = block.attn, block.mlp
    for sample, output in zip(tokens, block(tokens), strict=True):
        q, k, v = torch.einsum("ni,thdi->thnd", layer_norm(sample, block.norm1), attn.qkv.weight.view(3, 2, 8, 16))
        heads = [attend(q[head], k[head], v[head], 1 / math.sqrt(8)) for head in range(2)]
        expected = sample + dot(torch.cat(heads, dim=1), attn.proj)
        expected = expected + dot(gelu(dot(layer_norm(expected, block.norm2), mlp.fc1)), mlp.fc2)
        torch.testing.assert_close(output, expected)


def windows(image: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """Overlapping windows of ``(C, height, width)``, row by row, each as channel, row, column; outside is 0."""
    channels, height, width = image.shape
    tokens = []
    for top in range(-padding, height + padding - size + 1, stride):
        for left in range(-padding, width + padding - size + 1, stride):
            window = torch.zeros(channels, size, size)
            for row, column in ((row, column) for row in range(size) for column in range(size)):
                if 0 <= top + row < height and 0 <= left + column < width:
                    window[:, row, column] = image[:, top + row, left + column]
            tokens.append(window.flatten())
    return torch.stack(tokens)


def test_tokens_are_overlapping_windows_of_windows() -> None:
    module: Any = TokensToToken(lambda in_dim: nn.Linear(in_dim, 64), img_size=(32, 48), in_chans=2, embed_dim=5)
    images = torch.randn(2, 2, 32, 48)
    for image, output in zip(images, module(images), strict=True):
        tokens = module.attention1(windows(image, 7, 4, 2))
        assert tokens.shape == (8 * 12, 64)
        tokens = module.attention2(windows(tokens.T.view(64, 8, 12), 3, 2, 1))
        tokens = module.project(windows(tokens.T.view(64, 4, 6), 3, 2, 1))
        assert tokens.shape == (2 * 3, 5)
        torch.testing.assert_close(output, tokens)


def test_positions_are_sinusoids() -> None:
    table = sinusoid_table(7, 6)
    for position in range(7):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel] == pytest.approx(expected, abs=1e-12)


def test_network_adds_positions_to_class_and_image_tokens_and_classifies_the_class_token() -> None:
    model = small().eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = model.tokens_to_token(images)
    rows = [torch.cat((model.cls_token[0], sample)) + sinusoid_table(5, 16).float() for sample in tokens]
    for index, output in enumerate(model(images)):
        x = rows[index][None]
        for block in model.blocks:
            x = block(x)
        expected = dot(layer_norm(x, model.norm)[0, 0], model.head)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


# timm's conventions


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("size", [(16, 16), (48, 48), (32, 64)])
def test_images_of_any_multiple_of_16(name: str, size: tuple[int, int]) -> None:
    model = small(name, img_size=size, in_chans=1)
    assert model.patch_embed is model.tokens_to_token
    assert model.patch_embed.grid_size == (size[0] // 16, size[1] // 16)
    torch.testing.assert_close(model.pos_embed[0], sinusoid_table(1 + size[0] * size[1] // 256, 16).float())
    assert model(torch.randn(2, 1, *size)).shape == (2, 5)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"^img_size=\(32, 40\) cannot be cut into 16 × 16 pixels: give multiples of 16"):
        small(img_size=(32, 40))
    # As many tokens as the network has, but not its grid
    with pytest.raises(InputError, match=r"^images of 16 × 64 pixels .* img_size=\(32, 32\): .* img_size=\(16, 64\)$"):
        small()(torch.randn(2, 3, 16, 64))


def test_arguments_that_the_weights_fix_are_refused() -> None:
    for option in (
        {"patch_size": 8},
        {"class_token": False},
        {"pos_embed": "none"},
        {"qkv_bias": True},
        {"dynamic_img_size": True},
    ):
        with pytest.raises(TypeError, match=r"multiple values for keyword argument|unexpected keyword argument"):
            small(**option)


def test_image_size_can_change_later() -> None:
    model = small(img_size=64)
    model.set_input_size((32, 48))
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 5)
    assert not model.pos_embed.requires_grad


@pytest.mark.parametrize("pool", ["token", "avg", ""])
def test_pooling_and_classifier(pool: str) -> None:
    model = small(global_pool=pool).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, 5, 16)
    pooled = {"token": features[:, 0], "avg": features[:, 1:].mean(1), "": features}[pool]
    assert torch.equal(model.forward_head(features, pre_logits=True), pooled)
    assert torch.equal(model(images), model.get_classifier()(pooled))
    model.reset_classifier(7)
    assert model(images).shape == (*pooled.shape[:-1], 7)
    model.reset_classifier(0, "token")
    assert torch.equal(model(images), features[:, 0])


def test_drop_rates_reach_their_layers() -> None:
    model = small(drop_rate=0.1, pos_drop_rate=0.2, proj_drop_rate=0.3, attn_drop_rate=0.4, drop_path_rate=0.5)
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks] == pytest.approx([0, 0.25, 0.5])
    # The performers have their own, whatever the blocks have
    tokens = [module.p for module in model.tokens_to_token.modules() if isinstance(module, nn.Dropout)]
    assert tokens == [0.1, 0.1] * 2
    block = model.blocks[0]
    assert (model.head_drop.p, model.pos_drop.p, block.attn.proj_drop.p, block.attn.attn_drop.p) == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize("name", BOTH)
def test_checkpointing_gives_equal_gradients(name: str) -> None:
    model = small(name, proj_drop_rate=0.2).train()
    images = torch.randn(2, 3, 32, 32)

    def gradients() -> dict[str, Tensor]:
        torch.manual_seed(3)
        model.zero_grad()
        model(images).square().sum().backward()
        return {key: tensor.grad.clone() for key, tensor in model.named_parameters() if tensor.grad is not None}

    expected = gradients()
    model.set_grad_checkpointing()
    saved = gradients()
    assert expected.keys() == saved.keys() == {key for key, tensor in model.named_parameters() if tensor.requires_grad}
    assert all(torch.equal(saved[key], expected[key]) for key in expected)
    assert all(gradient.abs().max() > 0 for gradient in expected.values())


def test_features_of_the_blocks() -> None:
    model = small(img_size=(32, 48)).eval()
    images = torch.randn(2, 3, 32, 48)
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    final, intermediates = model.forward_intermediates(images, indices=[0, 2])
    assert torch.equal(final, model.forward_features(images))
    for features, tokens in zip(intermediates, (outputs[0], outputs[2]), strict=True):
        assert torch.equal(features, tokens[:, 1:].mT.reshape(2, 16, 2, 3))
    getter: Any = timm.create_model("t2t_vit_14", **SMALL | {"img_size": (32, 48)}, features_only=True, out_indices=(0, 2))
    assert getter.feature_info.channels() == [16, 16]
    assert getter.feature_info.reduction() == [16, 16]
    assert [features.shape for features in getter(images)] == [(2, 16, 2, 3)] * 2
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert len(model.blocks) == 2
    assert torch.equal(model(images), outputs[1])


def test_layerwise_learning_rates_start_with_the_tokens() -> None:
    model = small()
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scales["cls_token"] == scales["tokens_to_token.attention1.kqv.weight"] == 0.5**4
    assert [scales[f"blocks.{index}.attn.qkv.weight"] for index in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert scales["head.weight"] == 1


def test_new_weights_leave_the_positions() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    after = model.state_dict()
    assert torch.equal(after["pos_embed"], before["pos_embed"])
    assert 0.01 < after["cls_token"].std() < 0.03
    assert not torch.equal(after["cls_token"], before["cls_token"])
    assert not torch.equal(after["tokens_to_token.project.weight"], before["tokens_to_token.project.weight"])


def test_device_and_dtype_hold_for_all_weights() -> None:
    for device in ("cpu", "meta"):
        model = small(device=device, dtype=torch.bfloat16)
        assert {(tensor.device.type, tensor.dtype) for tensor in model.state_dict().values()} == {(device, torch.bfloat16)}
        assert model(torch.zeros(2, 3, 32, 32, device=device, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", BOTH)
def test_copies_compile_and_meta(name: str) -> None:
    model = small(name)
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    expected = model(images)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(images), expected)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(images), expected)
    exported: Any = torch.export.export(model, (images,))
    assert torch.equal(exported.module()(images), expected)
    assert on_meta(name).train()(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("compiled", [False, True])
def test_performer_sums_exponentials_in_float32_under_autocast(compiled: bool) -> None:
    layer = performer(147, spread=0.3)
    projections: list[Tensor] = []
    layer.kqv.register_forward_hook(lambda _module, _args, output: projections.append(output))
    layer.proj.register_forward_pre_hook(lambda _module, args: projections.append(args[0]))
    torch._dynamo.reset()
    run = torch.compile(layer, fullgraph=True, backend="eager") if compiled else layer
    with torch.autocast("cpu", torch.bfloat16):
        run(torch.randn(1, 6, 147))
        assert torch.is_autocast_enabled("cpu")
    kqv, attended = projections
    assert kqv.dtype == attended.dtype == torch.bfloat16
    k, q, v = kqv[0].double().chunk(3, dim=-1)
    expected = torch.stack([kernel_mean(query, k, v, layer.w.double()) for query in q])
    # Only the result is rounded: to 8 bits
    torch.testing.assert_close(attended[0].double(), expected, rtol=2**-8, atol=1e-4)


# Official checkpoints


def official_checkpoint(model: Any) -> dict[str, Any]:
    """As the authors' training script saves it: the averaged weights beside the last ones, and the command line."""
    weights = model.state_dict()
    return {
        "epoch": 309,
        "state_dict": {f"module.{name}": torch.zeros_like(tensor) for name, tensor in weights.items()},
        "state_dict_ema": {f"module.{name}": tensor.clone() for name, tensor in weights.items()},
        "args": argparse.Namespace(model="t2t_vit_14"),
    }


@pytest.mark.parametrize("name", BOTH)
def test_averaged_weights_load_strictly_and_positions_are_resampled(name: str) -> None:
    official, model = small(name, img_size=64), small(name, img_size=(32, 48))
    model.load_state_dict(checkpoint_filter_fn(official_checkpoint(official), model))
    loaded, saved = model.state_dict(), official.state_dict()
    grid = saved["pos_embed"][0, 1:].T.reshape(1, 16, 4, 4)
    resampled = F.interpolate(grid, (2, 3), mode="bicubic")[0].flatten(1).T
    torch.testing.assert_close(loaded["pos_embed"][0], torch.cat((saved["pos_embed"][0, :1], resampled)))
    assert all(torch.equal(loaded[key], saved[key]) for key in saved if key != "pos_embed")


def test_other_forms_of_a_checkpoint() -> None:
    official, model = small(img_size=(16, 64)), small(img_size=(16, 64))
    weights = official.state_dict()
    for checkpoint in (weights, {"state_dict": weights}, {"state_dict": weights, "state_dict_ema": None}):
        filtered = checkpoint_filter_fn(checkpoint, model)
        assert filtered.keys() == weights.keys()
        assert all(torch.equal(filtered[key], weights[key]) for key in weights)


def test_downloaded_file_loads_with_a_new_classifier(tmp_path: Path) -> None:
    official = small(num_classes=1000)
    torch.save(official_checkpoint(official), tmp_path / "official.pth.tar")
    source = {"url": (tmp_path / "official.pth.tar").as_uri()}
    options = SMALL | {"pretrained": True, "pretrained_cfg_overlay": source, "cache_dir": tmp_path / "cache"}
    model: Any = timm.create_model("t2t_vit_14", **options | {"img_size": 48})
    assert torch.equal(model.blocks[2].attn.qkv.weight, official.blocks[2].attn.qkv.weight)
    assert model(torch.randn(2, 3, 48, 48)).shape == (2, 5)
    with pytest.raises(InputError, match=r"^T2T-ViT with in_chans=1 cannot take weights for 3 channels.*pretrained=False$"):
        timm.create_model("t2t_vit_14", **options | {"in_chans": 1})


# DropKey


@pytest.mark.parametrize("name", BOTH)
def test_dropkey_takes_the_blocks(name: str) -> None:
    model = small(name, img_size=(32, 48)).train()
    plan = apply_dropkey(model, CONSTANT)
    assert [layer.name for layer in plan.layers] == [f"blocks.{index}.attn" for index in range(3)]
    assert {(layer.queries, layer.keys, layer.heads) for layer in plan.layers} == {(7, 7, 2)}
    left_alone = {layer.name: layer.why for layer in plan.left_alone}
    if name == "t2t_vit_t_14":
        assert list(left_alone) == ["tokens_to_token.attention1", "tokens_to_token.attention2"]
        assert all("before the first block" in why for why in left_alone.values())
    else:
        assert left_alone == {}
    model(torch.randn(2, 3, 32, 48)).sum().backward()
    for state in plan.states:
        dropped, draws = state.counts.tolist()
        assert draws == 2 * 2 * 7 * 7
        assert 0 < dropped < draws


def test_dropkey_takes_the_token_transformers_where_included() -> None:
    model = small("t2t_vit_t_14").train()
    plan = apply_dropkey(model, DropKeySettings(ratio=0.5, schedule="constant", include=["*.TokenTransformer"]))
    stages = ["tokens_to_token.attention1", "tokens_to_token.attention2"]
    assert [layer.name for layer in plan.layers] == stages + [f"blocks.{index}.attn" for index in range(3)]
    assert [(layer.keys, layer.heads) for layer in plan.layers[:2]] == [(64, 1), (16, 1)]
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    dropped, draws = plan.states[0].counts.tolist()
    assert draws == 2 * 64 * 64
    assert abs(dropped / draws - 0.5) < 5 * math.sqrt(0.25 / draws)
