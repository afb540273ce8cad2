from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey
from dropkey_cli.patching.discovery import image_inputs, record_attention
from dropkey_cli.patching.selection import Selection, select_layers

TOKENS = (torch.zeros(2, 5, 8),)


class Unknown(nn.Module):
    """Attention that no table knows."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)  # (B, 1, N, 8)
        return self.attend(q, k, v)[:, 0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class UnknownSoftmax(Unknown):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v


class UnknownSdpa(Unknown):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class UnknownChild(Unknown):
    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights: Tensor = self.softmax(q @ k.mT)
        return weights @ v


UNKNOWN = [UnknownSoftmax, UnknownSdpa, UnknownChild]


class Around(nn.Module):
    """Attends itself, after a child that attends."""

    def __init__(self) -> None:
        super().__init__()
        self.child = UnknownSoftmax()

    def forward(self, x: Tensor) -> Tensor:
        x = self.child(x)[:, None]
        return F.scaled_dot_product_attention(x, x, x)[:, 0]


def constant(**options: Any) -> DropKeySettings:  # noqa: ANN401 - any of the settings
    return DropKeySettings(ratio=0.5, schedule="constant", **options)


def select(name: str, **options: Any) -> Selection:  # noqa: ANN401 - any of the settings
    with torch.device("meta"):
        model = timm.create_model(name)
    return select_layers(record_attention(model, image_inputs(model)), DropKeySettings(**options), model_name=name)


@pytest.mark.parametrize("cls", UNKNOWN)
def test_unknown_class_is_refused_with_its_name_and_both_ways_out(cls: type[Unknown]) -> None:
    name = f"{cls.__module__}.{cls.__qualname__}"
    with pytest.raises(InputError) as refusal:
        apply_dropkey(nn.Sequential(cls()), example_inputs=TOKENS)
    assert all(word in str(refusal.value) for word in ("'0'", name, f"include: ['{name}']", f"exclude: ['{name}']"))


@pytest.mark.parametrize("cls", UNKNOWN)
@pytest.mark.parametrize("pattern", ["1", "*Unknown*", "{name}", "{full}"])
def test_included_unknown_class_drops_keys(cls: type[Unknown], pattern: str) -> None:
    pattern = pattern.format(name=cls.__name__, full=f"{cls.__module__}.{cls.__qualname__}")
    model = nn.Sequential(nn.Identity(), cls()).train()
    plan = apply_dropkey(model, constant(include=[pattern]), example_inputs=TOKENS)
    x = torch.randn(2, 5, 8)
    output = model(x)
    (layer,) = plan.layers
    assert (layer.name, layer.kind, layer.queries, layer.keys, layer.heads) == ("1", "key", 5, 5, 1)
    assert plan.states[0].counts[1] == 2 * 5 * 5
    plan.remove()
    assert not torch.equal(model(x), output)


def test_excluded_unknown_class_is_left_alone() -> None:
    model = nn.Sequential(UnknownSoftmax(), UnknownSdpa()).train()
    plan = apply_dropkey(model, constant(include=["*Sdpa"], exclude=["*Softmax"]), example_inputs=TOKENS)
    assert [layer.name for layer in plan.layers] == ["1"]
    assert [(layer.name, layer.why) for layer in plan.left_alone] == [("0", "is excluded")]
    assert type(model[0]) is UnknownSoftmax


def test_exclude_wins_over_include() -> None:
    model = nn.Sequential(UnknownSoftmax(), UnknownSoftmax())
    plan = apply_dropkey(model, constant(include=["*Softmax"], exclude=["0"]), example_inputs=TOKENS)
    assert [layer.name for layer in plan.layers] == ["1"]


@pytest.mark.parametrize("patterns", [{"exclude": ["*UnknownSoftmax"]}, {"include": ["*Around", "*UnknownSoftmax"]}])
def test_attention_inside_a_selected_module_is_refused(patterns: dict[str, list[str]]) -> None:
    model = nn.Sequential(Around()).train()
    with pytest.raises(InputError, match=r"layer '0' .*Around.* contains '0.child'.*exclude"):
        apply_dropkey(model, constant(**{"include": ["*Around"], **patterns}), example_inputs=TOKENS)


def test_attention_inside_an_excluded_module_drops() -> None:
    model = nn.Sequential(Around()).train()
    plan = apply_dropkey(model, constant(include=["*UnknownSoftmax"], exclude=["*Around"]), example_inputs=TOKENS)
    assert [layer.name for layer in plan.layers] == ["0.child"]
    model(torch.randn(2, 5, 8))
    assert plan.states[0].counts[1] == 2 * 5 * 5


def test_convolutional_network_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        InputError, match=r"resnet18 has no attention layer .*found: none.*deit_small_patch16_224.*dropkey null"
    ):
        select("resnet18")


def test_xcit_has_class_attention_only_and_is_taken_on_purpose() -> None:
    with pytest.raises(
        InputError, match=r"xcit_nano_12_p8_224 has no .*XCA, attends over channels.*ClassAttn, is a class token"
    ):
        select("xcit_nano_12_p8_224")
    selection = select("xcit_nano_12_p8_224", include=["*.ClassAttn"])
    assert [(layer.name, layer.kind, layer.queries, layer.keys) for layer in selection.selected] == [
        ("cls_attn_blocks.0.attn", "class", 1, 785),
        ("cls_attn_blocks.1.attn", "class", 1, 785),
    ]
    assert {layer.class_name for layer in selection.left_alone} == {"timm.models.xcit.XCA"}
    (layer,) = select("xcit_nano_12_p8_224", include=["cls_attn_blocks.1.attn"]).selected
    assert layer.name == "cls_attn_blocks.1.attn"


def test_clip_resnet_has_a_pooling_head_only_and_is_taken_on_purpose() -> None:
    with pytest.raises(InputError, match=r"resnet50_clip has no .*AttentionPool2d, is a pooling head \(add it to include"):
        select("resnet50_clip")
    (layer,) = select("resnet50_clip", include=["*.AttentionPool2d"]).selected
    assert (layer.kind, layer.keys) == ("pool", 50)


def test_pooling_head_beside_attention_is_left_alone_unless_included() -> None:
    selection = select("test_vit3")
    assert {layer.kind for layer in selection.selected} == {"key"}
    assert [layer.class_name for layer in selection.left_alone] == ["timm.layers.attention_pool.AttentionPoolLatent"]
    assert [layer.kind for layer in select("test_vit3", include=["attn_pool"]).selected].count("pool") == 1


def test_channel_attention_beside_windows_is_left_alone() -> None:
    selection = select("davit_tiny")
    assert {layer.class_name for layer in selection.selected} == {"timm.models.davit.WindowAttention"}
    assert {layer.why for layer in selection.left_alone} == {"attends over channels, not tokens"}


def test_refused_class_cannot_be_included() -> None:
    with pytest.raises(InputError, match=r"XCA\) cannot take DropKey: it attends over channels.*Take it out of include"):
        select("xcit_nano_12_p8_224", include=["*.XCA"])


def test_softmax_over_another_axis_before_the_one_over_keys_does_not_matter() -> None:
    class Gated(UnknownSoftmax):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return super().attend(q, k, v) * v.softmax(dim=1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.softmax(dim=1))

    (layer,) = apply_dropkey(nn.Sequential(Gated()), constant(include=["*Gated"]), example_inputs=TOKENS).layers
    assert (layer.queries, layer.keys) == (5, 5)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_pattern_that_matches_nothing_is_refused_with_the_layers(option: str) -> None:
    with pytest.raises(InputError, match=rf"{option} '\*\.Atention' matches no .* vit_tiny_.*blocks\.0\.attn, .* …"):
        select("vit_tiny_patch16_224", **{option: ["*.Atention"]})


def test_everything_excluded_is_refused() -> None:
    with pytest.raises(InputError, match=r"blocks\.\d+\.attn, a timm\.layers\.attention\.Attention, is excluded"):
        select("vit_tiny_patch16_224", exclude=["blocks.*"])


def test_layers_are_chosen_by_name() -> None:
    selection = select("vit_tiny_patch16_224", exclude=["blocks.0.attn", "blocks.1?.attn"])
    assert [layer.name for layer in selection.selected] == [f"blocks.{i}.attn" for i in range(1, 10)]
    assert len(selection.left_alone) == 3


def test_module_used_twice_is_one_layer_and_drops_at_each_use() -> None:
    shared = UnknownSoftmax()
    model = nn.Sequential(shared, nn.Identity(), shared).train()
    plan = apply_dropkey(model, constant(include=["*"]), example_inputs=TOKENS)
    assert [layer.name for layer in plan.layers] == ["0"]
    model(torch.randn(2, 5, 8))
    assert plan.states[0].counts[1] == 2 * (2 * 5 * 5)


def test_layers_are_in_order_of_first_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = UnknownSoftmax(), UnknownSoftmax(), UnknownSoftmax()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(self.a(self.b(self.c(x))))
            return out

    plan = apply_dropkey(Backwards(), DropKeySettings(ratio=0.4, include=["*"]), example_inputs=TOKENS)
    assert [(layer.name, layer.ratio) for layer in plan.layers] == [("c", 0.4), ("b", 0.2), ("a", 0.0)]


def test_softmax_over_another_axis_is_no_attention_over_keys() -> None:
    class OverQueries(Unknown):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (q @ k.mT).softmax(-2) @ v

    with pytest.raises(InputError, match=r"OverQueries, has a softmax over axis -2 of \(2, 1, 5, 5\), which is not over keys"):
        apply_dropkey(OverQueries(), constant(include=["*"]), example_inputs=TOKENS)


# The classes that test_timm_models.py does not train, each with a model of timm that has it.
SMALLEST = {
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": "swinv2_cr_tiny_224",
    "timm.models.vision_transformer_relpos.RelPosAttention": "test_vit_relpos",
    "timm.models.crossvit.CrossAttention": "crossvit_tiny_240",
    "timm.models.cpubone.ConvAttention": "cpubone_nano",
    "timm.models.fastvit.Attention": "fastvit_mci0",
    "timm.models.iformer.SHMA": "iformer_t",
    "timm.layers.halo_attn.HaloAttn": "halonet_h1",
    "timm.layers.attention2d.MultiQueryAttention2d": "mobilenetv4_hybrid_medium_075",
    "timm.layers.bottleneck_attn.BottleneckAttn": "eca_botnext26ts_256",
    "timm.models.lowformer.ConvAttention": "lowformer_b0",
    "timm.models.nest.Attention": "nest_tiny",
    "timm.models.twins.GlobalSubSampleAttn": "twins_pcpvt_small",
    "timm.models.gcvit.WindowAttentionGlobal": "gcvit_xxtiny",
    "timm.models.hieradet_sam2.MultiScaleAttention": "sam2_hiera_tiny",
    "timm.models.tiny_vit.Attention": "tiny_vit_5m_224",
    "timm.models.efficientformer_v2.Attention2dDownsample": "efficientformerv2_s0",
    "timm.models.gemma4_vit.Gemma4Attention": "gemma4_vit_167m",
    "timm.models.metaformer.Attention": "caformer_s18",
    "timm.models.shvit.SHSA": "shvit_s1",
    "timm.models.vision_transformer.ParallelScalingBlock": "vit_pwee_patch16_reg1_gap_256",
    "timm.models.vision_transformer_sam.Attention": "samvit_base_patch16_224",
    "timm.models.efficientformer.Attention": "efficientformer_l1",
    "timm.models.nextvit.EfficientAttention": "nextvit_small",
    "timm.models.twins.LocallyGroupedAttn": "twins_svt_small",
    "timm.models.visformer.Attention": "visformer_tiny",
}


@pytest.mark.parametrize(("cls", "name"), SMALLEST.items(), ids=SMALLEST.values())
def test_class_is_found_in_its_model(cls: str, name: str) -> None:
    assert cls in {layer.class_name for layer in select(name).selected}
