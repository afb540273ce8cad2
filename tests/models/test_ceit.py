# ruff: noqa: ANN401 - what a network's attributes are is known at run time only
import argparse
import copy
import math
from collections.abc import Callable
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
from dropkey_cli.models.ceit import Block, ImageToTokens, LayerwiseClassBlock, checkpoint_filter_fn
from dropkey_cli.models.factory import create_model, image_config, pretrained_config
from dropkey_cli.patching.apply import apply_dropkey

# The authors' README and code: embed_dim, heads, image side, parameters
VARIANTS = {
    "ceit_tiny_patch16_224": (192, 3, 224, 6_356_904),
    "ceit_small_patch16_224": (384, 6, 224, 24_204_840),
    "ceit_base_patch16_224": (768, 12, 224, 94_405_416),
    "ceit_tiny_patch16_384": (192, 3, 384, 6_429_864),
    "ceit_small_patch16_384": (384, 6, 384, 24_350_760),
    # Not among the authors': 24 × 24 positions instead of 14 × 14
    "ceit_base_patch16_384": (768, 12, 384, 94_405_416 + (24 * 24 - 14 * 14) * 768),
}
TINY = "ceit_tiny_patch16_224"
SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
LCA = "dropkey_cli.models.ceit.LayerwiseClassAttention"


def perturb(module: nn.Module) -> Any:
    """Parameters and statistics away from zero and one, so that none is without effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0.0, 0.3)  # type: ignore[union-attr]  # there is one by default
                part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return module


def small(**options: Any) -> Any:
    return perturb(timm.create_model(TINY, **(SMALL | options)))


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width)


def documented_shapes(dim: int, side: int) -> dict[str, tuple[int, ...]]:
    """The state dict as the paper's layers and the authors' names make it, for 1000 classes."""
    tokens = (side // 16) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim), "pos_embed": (1, tokens, dim)}
    shapes["pos_layer_embed"] = (1, 12, dim)
    shapes["i2t.backbone.conv.weight"] = (64, 3, 7, 7)

    def layer(name: str, *weight: int) -> None:
        shapes.update({f"{name}.weight": weight, f"{name}.bias": weight[:1]})

    def batch_norm(name: str, channels: int) -> None:
        layer(name, channels)
        shapes.update({f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)})
        shapes[f"{name}.num_batches_tracked"] = ()

    def attention(name: str) -> None:
        layer(f"{name}.norm1", dim)
        layer(f"{name}.norm2", dim)
        layer(f"{name}.attn.qkv", 3 * dim, dim)
        layer(f"{name}.attn.proj", dim, dim)

    batch_norm("i2t.backbone.bn", 64)
    layer("i2t.proj", dim, 64, 4, 4)
    for block in (f"blocks.{index}" for index in range(12)):
        attention(block)
        for number, weight in enumerate([(4 * dim, dim, 1, 1), (4 * dim, 1, 3, 3), (dim, 4 * dim, 1, 1)], start=1):
            layer(f"{block}.leff.conv{number}", *weight)
            batch_norm(f"{block}.leff.bn{number}", weight[0])
    attention("lca")
    layer("lca.feedforward.fc1", 4 * dim, dim)
    layer("lca.feedforward.fc2", dim, 4 * dim)
    layer("norm", dim)
    layer("head", 1000, dim)
    return shapes


# The networks' parts by hand, in float64


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled: Tensor = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    return scaled.add(norm.bias)


def batch_norm(x: Tensor, norm: Any) -> Tensor:
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return torch.einsum("bcij,c->bcij", x, scale).add(shift[:, None, None])


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def attend(queries: Tensor, keys: Tensor, attn: Any, *, heads: int) -> Tensor:
    """Multi-head attention with the official order of the weights: queries, keys, values; head by head inside."""
    (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias) = attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3)
    mixed = []
    for channels in torch.arange(len(q_weight)).chunk(heads):
        q = torch.einsum("bnc,dc->bnd", queries, q_weight[channels]) + q_bias[channels]
        k = torch.einsum("bnc,dc->bnd", keys, k_weight[channels]) + k_bias[channels]
        v = torch.einsum("bnc,dc->bnd", keys, v_weight[channels]) + v_bias[channels]
        weights = torch.exp(torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(len(channels)))
        mixed.append(torch.einsum("bnm,bmd->bnd", weights / weights.sum(dim=-1, keepdim=True), v))
    return torch.einsum("bnc,dc->bnd", torch.cat(mixed, dim=-1), attn.proj.weight).add(attn.proj.bias)


def feed_forward_on_grid(x: Tensor, leff: Any, *, rows: int, columns: int) -> Tensor:
    """1 × 1, depthwise 3 × 3 and 1 × 1 convolution of the patch tokens (B, N, C), row by row on the grid."""
    grid = torch.stack([x[:, row * columns : (row + 1) * columns] for row in range(rows)], dim=1)
    wide = torch.einsum("bijc,dc->bdij", grid, leff.conv1.weight[:, :, 0, 0]) + leff.conv1.bias[:, None, None]
    wide = gelu(batch_norm(wide, leff.bn1))
    deep = leff.conv2.bias[:, None, None].expand_as(wide).clone()
    for row, column in ((row, column) for row in range(rows) for column in range(columns)):
        for i, j in ((i, j) for i in range(3) for j in range(3)):
            if 0 <= row + i - 1 < rows and 0 <= column + j - 1 < columns:
                deep[:, :, row, column] += leff.conv2.weight[:, 0, i, j] * wide[:, :, row + i - 1, column + j - 1]
    deep = gelu(batch_norm(deep, leff.bn2))
    narrow = torch.einsum("bdij,cd->bcij", deep, leff.conv3.weight[:, :, 0, 0]) + leff.conv3.bias[:, None, None]
    narrow = batch_norm(narrow, leff.bn3)
    return torch.stack([narrow[:, :, row, column] for row in range(rows) for column in range(columns)], dim=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_the_authors(name: str) -> None:
    model = on_meta(name)
    dim, heads, side, parameters = VARIANTS[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert {block.attn.num_heads for block in model.blocks} == {model.lca.attn.num_heads} == {heads}
    shapes = {tensor_name: tuple(tensor.shape) for tensor_name, tensor in model.state_dict().items()}
    assert shapes == documented_shapes(dim, side)
    assert len(shapes) == 375


@pytest.mark.parametrize("name", VARIANTS)
def test_images_are_those_of_the_official_evaluation(name: str) -> None:
    config, images_of, side = pretrained_config(name), image_config(name), VARIANTS[name][2]
    assert images_of.image_size == side
    assert int(side / images_of.crop_pct) == int(256 / 224 * side)  # what the official code resizes to
    assert (images_of.interpolation, images_of.crop_mode) == ("bicubic", "center")
    assert (images_of.mean, images_of.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert not config.has_weights
    assert (config.license, config.origin_url) == ("apache-2.0", "https://github.com/coeusguo/ceit")
    model = on_meta(name)
    assert isinstance(model.get_submodule(config.first_conv), nn.Conv2d)
    assert model.get_submodule(config.classifier) is model.get_classifier()


def test_first_weights_are_drawn_as_officially() -> None:
    model: Any = timm.create_model(TINY, img_size=64, depth=2)
    linear = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    assert {"blocks.1.attn.qkv", "blocks.1.attn.proj", "lca.attn.qkv", "lca.feedforward.fc2", "head"} <= linear.keys()
    for weight in (model.cls_token, model.pos_embed, *(part.weight for part in linear.values())):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.25)
    assert not any(part.bias.any() for part in linear.values())
    assert not model.pos_layer_embed.any()


def test_stem_has_no_activation() -> None:
    stem = perturb(ImageToTokens((32, 48), in_chans=3, embed_dim=5)).double().eval()
    x = images(32, 48).double()
    patches = F.unfold(x, 7, padding=3, stride=2)  # (B, 3 · 49, 16 · 24)
    maps = (stem.backbone.conv.weight.flatten(1) @ patches).reshape(2, 64, 16, 24)
    maps = batch_norm(maps, stem.backbone.bn)
    padded = F.pad(maps, (1, 1, 1, 1), value=-math.inf)
    windows = [padded[:, :, i : i + 16 : 2, j : j + 24 : 2] for i in range(3) for j in range(3)]
    pooled = torch.stack(windows).amax(dim=0)  # (B, 64, 8, 12)
    assert (pooled < 0).any()  # which an activation would lose
    expected = (stem.proj.weight.flatten(1) @ F.unfold(pooled, 4, stride=4)).mT + stem.proj.bias
    torch.testing.assert_close(stem(x), expected)


def test_block_by_hand() -> None:
    block = Block(12, 3, grid_size=(2, 4), attn_drop=0.0, proj_drop=0.0, drop_path=0.0)
    perturb(block).double().eval()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    normalised = layer_norm(x, block.norm1)
    expected = x + attend(normalised, normalised, block.attn, heads=3)
    update = layer_norm(expected, block.norm2)  # the class token's update is its own norm
    update = torch.cat((update[:, :1], feed_forward_on_grid(update[:, 1:], block.leff, rows=2, columns=4)), dim=1)
    torch.testing.assert_close(block(x), expected + update)


def test_attention_over_layers_by_hand() -> None:
    lca = perturb(LayerwiseClassBlock(12, 3, attn_drop=0.0, proj_drop=0.0)).double().eval()
    class_tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    normalised = layer_norm(class_tokens, lca.norm1)
    x = class_tokens[:, -1:] + attend(normalised[:, -1:], normalised, lca.attn, heads=3)
    hidden = gelu(layer_norm(x, lca.norm2) @ lca.feedforward.fc1.weight.mT + lca.feedforward.fc1.bias)
    expected = x + hidden @ lca.feedforward.fc2.weight.mT + lca.feedforward.fc2.bias
    torch.testing.assert_close(lca(class_tokens), expected)


def test_network_is_stem_blocks_attention_over_layers_and_head() -> None:
    model = small().double().eval()
    x = images().double()
    tokens = torch.cat([model.cls_token.repeat(2, 1, 1), model.i2t(x)], dim=1) + model.pos_embed
    class_tokens = []
    for block in model.blocks:
        tokens = block(tokens)
        class_tokens.append(tokens[:, :1])
    class_token = model.lca(torch.cat(class_tokens, dim=1) + model.pos_layer_embed)
    expected = model.head(layer_norm(class_token[:, 0], model.norm))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.forward_features(x)[:, 1:], layer_norm(tokens[:, 1:], model.norm))


@pytest.mark.parametrize("key", ["model", "model_ema"])
def test_official_checkpoint_loads_strictly_at_another_size(key: str) -> None:
    saved = small(img_size=48).state_dict()
    model = small()
    weights = checkpoint_filter_fn({key: {f"module.{name}": tensor for name, tensor in saved.items()}, "epoch": 299}, model)
    model.load_state_dict(weights, strict=True)
    grid = saved["pos_embed"][:, 1:].mT.unflatten(2, (3, 3))
    resized = F.interpolate(grid, size=(2, 2), mode="bicubic", align_corners=False)  # as the official fine-tuning does
    assert torch.equal(model.pos_embed[:, :1], saved["pos_embed"][:, :1])
    torch.testing.assert_close(model.pos_embed[:, 1:], resized.flatten(2).mT)
    loaded = model.state_dict()
    changed = [name for name in saved if not torch.equal(loaded[name], saved[name])]
    assert changed == ["pos_embed"]


def test_evaluated_weights_come_before_the_average() -> None:
    model, other = small(), small()
    weights = checkpoint_filter_fn({"model_ema": other.state_dict(), "model": model.state_dict()}, model)
    assert torch.equal(weights["head.weight"], model.head.weight)  # the official evaluation loads `model`


def test_own_weights_of_wide_images_stay_as_they_are() -> None:
    model = small(img_size=(32, 48))
    assert torch.equal(checkpoint_filter_fn(model.state_dict(), model)["pos_embed"], model.pos_embed)


def test_official_file_loads_into_another_task(tmp_path: Path) -> None:
    saved = small(num_classes=1000, img_size=48).state_dict()
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": saved, "epoch": 299, "args": argparse.Namespace(model=TINY)}, file)
    options: dict[str, Any] = SMALL | {"in_chans": 1, "pretrained_cfg_overlay": {"file": str(file)}}
    model = timm.create_model(TINY, pretrained=True, **options)
    loaded = model.state_dict()
    assert torch.equal(loaded["blocks.2.leff.bn2.running_var"], saved["blocks.2.leff.bn2.running_var"])
    torch.testing.assert_close(loaded["i2t.backbone.conv.weight"][:, 0], saved["i2t.backbone.conv.weight"].sum(dim=1))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def test_weights_that_nobody_can_fetch_are_refused() -> None:
    with pytest.raises(InputError, match=f"{TINY} has no pretrained weights: .*--model.pretrained false"):
        create_model(TINY, num_classes=3, image_size=224, pretrained=True)


@pytest.mark.parametrize("size", [16, 48, (32, 64)])
def test_image_sizes(size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    assert small(img_size=size).eval()(images(height, width)).shape == (2, 5)


@pytest.mark.parametrize("size", [100, (32, 40)])
def test_other_image_sizes_are_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"^img_size=.*(100|32, 40).* 16 × 16 pixels: give multiples of 16"):
        small(img_size=size)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"^images of \(48, 32\) pixels .* network of \(32, 32\): .* img_size=\(48, 32\)$"):
        small()(images(48, 32))


def test_pooling_and_classifier() -> None:
    model = small().eval()
    features = model.forward_features(images())
    pooled = {"token": features[:, 0], "avg": features[:, 1:].mean(dim=1), "": features}
    for pool, expected in pooled.items():
        model.reset_classifier(7, pool)
        assert torch.equal(model.forward_head(features, pre_logits=True), expected)
        torch.testing.assert_close(model.forward_head(features), expected @ model.head.weight.mT + model.head.bias)
    model.reset_classifier(4)
    assert (model.num_classes, model.global_pool, model.get_classifier().out_features) == (4, "", 4)
    model.reset_classifier(0, "token")
    assert torch.equal(model.forward_head(features), features[:, 0])
    assert model.head_hidden_size == model.num_features == features.shape[-1]
    with pytest.raises(InputError, match="global_pool='max' is unknown to CeiT: give token, avg"):
        model.reset_classifier(4, "max")
    with pytest.raises(InputError, match="global_pool='map' is unknown to CeiT"):
        small(global_pool="map")


def test_new_classifier_is_where_the_model_is() -> None:
    model = small().to("meta", torch.bfloat16)
    model.reset_classifier(7)
    assert (model.head.weight.device.type, model.head.weight.dtype) == ("meta", torch.bfloat16)


def test_dropout_and_stochastic_depth_reach_their_places() -> None:
    model = small(drop_rate=0.1, proj_drop_rate=0.2, attn_drop_rate=0.3, drop_path_rate=0.4)
    assert [block.drop_path.drop_prob for block in model.blocks] == pytest.approx([0.0, 0.2, 0.4])
    rates = {name: part.p for name, part in model.named_modules() if isinstance(part, nn.Dropout)}
    attentions = [*(f"blocks.{index}.attn" for index in range(3)), "lca.attn"]
    expected = {"head_drop": 0.1, "lca.feedforward.drop1": 0.2, "lca.feedforward.drop2": 0.2}
    expected |= {f"{name}.proj_drop": 0.2 for name in attentions} | {f"{name}.attn_drop": 0.3 for name in attentions}
    assert rates == expected


def test_stochastic_depth_skips_attention_and_feed_forward() -> None:
    class Skip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    block, x = small().blocks[1], torch.randn(2, 5, 24)
    block.drop_path = Skip()
    assert torch.equal(block(x), x)


def test_attention_dropout_acts_over_the_layers_in_training_only() -> None:
    lca = perturb(LayerwiseClassBlock(12, 3, attn_drop=0.5, proj_drop=0.0))
    class_tokens = torch.randn(2, 7, 12)
    assert not torch.equal(lca(class_tokens), lca(class_tokens))
    lca.eval()
    assert torch.equal(lca(class_tokens), lca(class_tokens))


def test_checkpointed_gradients_are_the_same() -> None:
    plain, x = small(), images()
    recomputed = copy.deepcopy(plain)
    recomputed.set_grad_checkpointing()
    for model in (plain, recomputed):
        model(x).square().sum().backward()
    for (name, parameter), other in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name
    # As documented: the recomputation counts the batch again
    once, twice = plain.blocks[0].leff.bn1, recomputed.blocks[0].leff.bn1
    assert (int(once.num_batches_tracked), int(twice.num_batches_tracked)) == (1, 2)
    plain(x)
    torch.testing.assert_close(twice.running_mean, once.running_mean)
    assert int(recomputed.i2t.backbone.bn.num_batches_tracked) == 1  # outside of the blocks


def test_intermediates_are_the_blocks_patch_tokens() -> None:
    model = small(img_size=(32, 48)).eval()
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    x = images(32, 48)
    features, maps = model.forward_intermediates(x)
    assert torch.equal(features, model.forward_features(x))
    for tokens, one in zip(outputs[:3], maps, strict=True):
        assert one.shape == (2, 24, 2, 3)
        assert torch.equal(one[:, :, 1, 2], tokens[:, -1])
        assert torch.equal(one[:, :, 0, 1], tokens[:, 2])
    (normalised,) = model.forward_intermediates(x, [1], norm=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(normalised, layer_norm(outputs[1][:, 1:], model.norm))
    with pytest.raises(InputError, match="output_fmt='NHWC' is unknown to CeiT"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_stopping_early_runs_no_further_block() -> None:
    model, x = small().eval(), images()
    _, complete = model.forward_intermediates(x, [0, 1])
    model.blocks[2] = nn.Identity()  # must not matter
    features, early = model.forward_intermediates(x, [0, 1], stop_early=True)
    assert all(torch.equal(one, other) for one, other in zip(early, complete, strict=True))
    shallow = small(depth=2).eval()
    shallow.load_state_dict(model.state_dict() | {"pos_layer_embed": model.pos_layer_embed[:, :2]}, strict=False)
    torch.testing.assert_close(features, shallow.forward_features(x))


@pytest.mark.parametrize(("out_indices", "blocks"), [([0], 1), ([-2, 0], 2), (2, 3)])
def test_features_only(out_indices: int | list[int], blocks: int) -> None:
    options = {key: value for key, value in SMALL.items() if key != "num_classes"}
    model: Any = timm.create_model(TINY, features_only=True, out_indices=out_indices, **options).eval()
    maps = model(images())
    count = out_indices if isinstance(out_indices, int) else len(out_indices)
    assert [tuple(one.shape) for one in maps] == [(2, 24, 2, 2)] * count
    assert (model.feature_info.channels(), model.feature_info.reduction()) == ([24] * count, [16] * count)
    assert len(model.model.blocks) == blocks
    sum(one.sum() for one in maps).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []  # nothing idle is left


def test_pruned_network_keeps_its_features() -> None:
    model, x = small().eval(), images()
    (expected,) = model.forward_intermediates(x, [1], intermediates_only=True)
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert torch.equal(model.forward_intermediates(x, [1], intermediates_only=True)[0], expected)
    assert torch.equal(model(x)[:, 1:], expected.flatten(2).mT)  # no norm, pooling or classifier is left
    headed = small().eval()
    headed.prune_intermediate_layers([1], prune_head=False)
    assert headed(x).shape == (2, 5)


def test_layer_decay_and_weight_decay_know_the_parameters() -> None:
    model = small()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales, decays = {}, {}
    for group in param_groups_layer_decay(model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay()):
        for parameter in group["params"]:
            scales[names[id(parameter)]] = group["lr_scale"]
            decays[names[id(parameter)]] = group["weight_decay"]
    assert scales.keys() == set(names.values())
    layers = [["cls_token", "pos_embed", "i2t.proj.weight", "i2t.backbone.bn.bias"]]
    layers += [[name for name in names.values() if name.startswith(f"blocks.{index}.")] for index in range(3)]
    layers += [["pos_layer_embed", "lca.attn.qkv.weight", "norm.bias"], ["head.weight", "head.bias"]]
    in_order = [{scales[name] for name in layer} for layer in layers]
    assert all(len(scale) == 1 for scale in in_order)
    assert in_order == sorted(in_order, key=min)
    assert [decays[name] for name in ("cls_token", "pos_embed", "pos_layer_embed")] == [0.0, 0.0, 0.05]


def test_trains_without_weights_on_the_meta_device() -> None:
    for name in ("ceit_tiny_patch16_224", "ceit_base_patch16_384"):
        model, side = on_meta(name).train(), VARIANTS[name][2]
        assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("mode", [nn.Module.train, nn.Module.eval])
def test_compiles_as_one_graph(mode: Callable[[nn.Module], nn.Module]) -> None:
    model, x = mode(small(depth=1)), images()
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)


def test_dropkey_acts_in_the_blocks() -> None:
    model = small(depth=12)
    plan = apply_dropkey(model)
    assert [layer.name for layer in plan.layers] == [f"blocks.{index}.attn" for index in range(12)]
    assert {(layer.kind, layer.queries, layer.keys, layer.heads) for layer in plan.layers} == {("key", 5, 5, 3)}
    ((name, cls, why),) = [(layer.name, layer.class_name, layer.why) for layer in plan.left_alone]
    assert (name, cls) == ("lca.attn", LCA)
    assert why.startswith("attends over the layers' class tokens")
    model(images())
    assert [int(state.counts[1]) for state in plan.states] == [2 * 3 * 5 * 5] * 11 + [0]  # the last ratio is 0


def test_dropkey_takes_the_attention_over_layers_on_purpose() -> None:
    model = small(depth=12)
    settings = DropKeySettings(ratio=0.5, schedule="constant", include=["*.LayerwiseClassAttention"])
    plan = apply_dropkey(model, settings)
    assert [layer.name for layer in plan.layers][-2:] == ["blocks.11.attn", "lca.attn"]
    last = plan.layers[-1]
    assert (last.class_name, last.kind, last.queries, last.keys, last.heads) == (LCA, "class", 1, 12, 3)
    assert plan.left_alone == []
    model(images())
    assert int(plan.states[-1].counts[1]) == 2 * 3 * 12
