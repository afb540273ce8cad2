"""DropKey in real timm networks: each attention class of the table at least once, narrow and with few tokens."""

import copy
import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from timm.layers.other_pool import SimPool1d, SimPool2d
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.hieradet_sam2 import HieraDet
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from timm.models.nextvit import NextTransformerBlock
from timm.models.volo import VOLO
from torch import Tensor, nn

from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.patching.known import KNOWN

FUSED = "timm.layers.config._USE_FUSED_ATTN"
"""What TIMM_FUSED_ATTN sets; modules read it when they are built. 0: softmax, 1: SDPA, 2: SDPA also where experimental."""


@dataclass(frozen=True)
class Network:
    """A network and how many layers of which class take DropKey, counted by hand in timm's source.

    Args:
        layers: Class name below ``timm``, and number.
        build: Makes it small.
        inputs: Side of its images, or shape of other inputs.
        include: Patterns for layers that take DropKey only on purpose.
    """

    layers: dict[str, int]
    build: Callable[[], nn.Module]
    inputs: int | tuple[int, ...] = 48
    include: list[str] = field(default_factory=list)

    def settings(self, ratio: float) -> DropKeySettings:
        return DropKeySettings(ratio=ratio, schedule="constant", include=self.include)


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:  # noqa: ANN401 - what the model takes
    return functools.partial(timm.create_model, name, num_classes=5, **options)


def convolutional(*, depth: int = 1, **options: Any) -> Callable[[], nn.Module]:  # noqa: ANN401 - what the model takes
    """A residual network of one block with 16 channels and ``depth`` blocks with 64, which attend if asked to."""
    block = "self_attn" if "self_attn_layer" in options else "bottle"
    blocks = (ByoBlockCfg("bottle", d=1, c=16), ByoBlockCfg(block, d=depth, c=64))
    config = ByoModelCfg(blocks, stem_chs=16, stem_pool=None, zero_init_last=False, **options)
    return functools.partial(ByobNet, config, num_classes=5, img_size=48)


def mobile_attention() -> nn.Module:
    """As in MobileNetV4: two multi-query blocks, the second with pooled keys, and a multi-head one."""
    blocks = [["mqa_r1_k3_h3_s1_d8_c16"], ["mqa_r1_k3_h2_s1_v2_d8_c16"], ["mha_r1_k3_h2_s1_d8_c16"], ["cn_r1_k1_s1_c16"]]
    arguments = decode_arch_def(blocks)  # type: ignore[no-untyped-call]  # timm leaves it untyped
    return MobileNetV3(arguments, num_classes=5, stem_size=16, num_features=16)


NARROW = {"img_size": 48, "embed_dim": 48}
GEMMA = {"embed_dim": 24, "head_dim": 8, "intermediate_size": 32, "position_embedding_size": 16}
CAFORMER: dict[str, Any] = {
    "token_mixers": [SepConv, SepConv, Attention, Attention],
    "norm_layers": [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
}

NETWORKS = {
    "vit_tiny_patch16_224": Network({"layers.attention.Attention": 12}, timm_model("vit_tiny_patch16_224", **NARROW)),
    "deit3_small_patch16_224": Network(
        {"layers.attention.Attention": 4}, timm_model("deit3_small_patch16_224", depth=4, num_heads=3, **NARROW)
    ),
    "test_vit3": Network(
        {"layers.attention.Attention": 2, "layers.attention_pool.AttentionPoolLatent": 1},
        timm_model("test_vit3", depth=2, **NARROW),
        include=["attn_pool"],
    ),
    "vit with global_pool prr": Network(
        {"layers.attention.Attention": 2, "layers.attention_pool.AttentionPoolPrr": 1},
        timm_model("vit_tiny_patch16_224", depth=2, global_pool="prr", **NARROW),
        include=["attn_pool"],
    ),
    "naflexvit_base_patch16_gap": Network(
        {"layers.attention.Attention": 3}, timm_model("naflexvit_base_patch16_gap", embed_dim=48, num_heads=3, depth=3), 64
    ),
    "vit_pe_spatial_tiny_patch16_512": Network(
        {"layers.attention.AttentionRope": 4}, timm_model("vit_pe_spatial_tiny_patch16_512", depth=4, **NARROW)
    ),
    "vit_small_patch16_dinov3": Network(
        {"models.eva.EvaAttention": 4}, timm_model("vit_small_patch16_dinov3", depth=4, num_heads=3, **NARROW)
    ),
    "eva02_tiny_patch14_224": Network(
        {"models.eva.EvaAttention": 4}, timm_model("eva02_tiny_patch14_224", depth=4, img_size=42, embed_dim=48), 42
    ),
    "beit_base_patch16_224": Network(
        {"models.beit.Attention": 4}, timm_model("beit_base_patch16_224", depth=4, num_heads=3, **NARROW)
    ),
    "test_vit_relpos": Network(
        {"models.vision_transformer_relpos.RelPosAttention": 4}, timm_model("test_vit_relpos", depth=4, **NARROW)
    ),
    "vit_pwee_patch16_reg1_gap_256": Network(
        {"models.vision_transformer.ParallelScalingBlock": 4},
        timm_model("vit_pwee_patch16_reg1_gap_256", num_heads=2, depth=4, **NARROW),
    ),
    "vit_dpwee_patch16_reg1_gap_256": Network(
        {"models.vision_transformer.DiffParallelScalingBlock": 4},
        timm_model("vit_dpwee_patch16_reg1_gap_256", num_heads=2, depth=4, **NARROW),
    ),
    "vit_dwee_patch16_reg1_gap_256": Network(
        {"layers.diff_attention.DiffAttention": 4}, timm_model("vit_dwee_patch16_reg1_gap_256", num_heads=2, depth=4, **NARROW)
    ),
    # The second block is global, the first has windows of 2 × 2 on 3 × 3 tokens
    "samvit_base_patch16_224": Network(
        {"models.vision_transformer_sam.Attention": 2},
        timm_model("samvit_base_patch16_224", num_heads=2, depth=2, global_attn_indexes=[1], window_size=2, **NARROW),
    ),
    "gemma4_vit_167m": Network(
        {"models.gemma4_vit.Gemma4Attention": 2},
        timm_model("gemma4_vit_167m", img_size=96, depth=2, num_heads=4, num_kv_heads=2, **GEMMA),
        96,
    ),
    # Two class blocks after the others
    "cait_xxs24_224": Network(
        {"models.cait.TalkingHeadAttn": 4, "models.cait.ClassAttn": 2}, timm_model("cait_xxs24_224", depth=4, **NARROW)
    ),
    # Channel attention in the two blocks before the two class blocks
    "xcit_nano_12_p8_224": Network(
        {"models.cait.ClassAttn": 2},
        timm_model("xcit_nano_12_p8_224", img_size=32, embed_dim=32, depth=2),
        32,
        include=["*.ClassAttn"],
    ),
    # All but the last block are gated positional
    "convit_tiny": Network(
        {"models.convit.GPSA": 3, "models.convit.MHSA": 1}, timm_model("convit_tiny", img_size=48, depth=4, local_up_to_layer=3)
    ),
    # Two times one block of the small branch, two of the large one, and a fusion in both directions
    "crossvit_tiny_240": Network(
        {"layers.attention.Attention": 6, "models.crossvit.CrossAttention": 4},
        timm_model("crossvit_tiny_240", img_size=48, img_scale=(1.0, 2 / 3), embed_dim=[24, 48], depth=[[1, 2, 0], [1, 2, 0]]),
    ),
    # Each block attends to the pixels inside its patches and to the patches
    "tnt_s_legacy_patch16_224": Network({"models.tnt.Attention": 6}, timm_model("tnt_s_legacy_patch16_224", depth=3, **NARROW)),
    # The first stage is outlook attention, which has no keys; two class blocks at the end
    "volo": Network(
        {"models.volo.Attention": 4, "models.volo.ClassAttention": 2},
        functools.partial(
            VOLO, layers=[1, 1, 2, 1], img_size=64, num_classes=5, embed_dims=[24, 48, 48, 48], num_heads=[2, 4, 4, 4]
        ),
        64,
    ),
    # Every second block is shifted
    "swin_tiny_patch4_window7_224": Network(
        {"models.swin_transformer.WindowAttention": 4},
        timm_model("swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(2, 2), num_heads=(3, 6)),
        56,
    ),
    "swinv2_tiny_window8_256": Network(
        {"models.swin_transformer_v2.WindowAttention": 4},
        timm_model("swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(3, 6)),
        32,
    ),
    "swinv2_cr_tiny_224": Network(
        {"models.swin_transformer_v2_cr.WindowMultiHeadAttention": 4},
        timm_model("swinv2_cr_tiny_224", img_size=32, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(3, 6)),
        32,
    ),
    # Window and channel attention in turn
    "davit_tiny": Network(
        {"models.davit.WindowAttention": 6}, timm_model("davit_tiny", embed_dims=(12, 24, 48, 96), window_size=4), 64
    ),
    # Stages of 2, 2, 6, 2 blocks; every second one has global queries
    "gcvit_xxtiny": Network(
        {"models.gcvit.WindowAttentionGlobal": 12},
        timm_model("gcvit_xxtiny", img_size=64, embed_dim=16, window_size=(4, 4, 4, 2)),
        64,
    ),
    # Four stages of one block, each with window and grid attention
    "maxvit_tiny_tf_224": Network(
        {"models.maxxvit.AttentionCl": 8},
        timm_model("maxvit_tiny_tf_224", img_size=64, embed_dim=(32, 32, 64, 96), depths=(1, 1, 1, 1)),
        64,
    ),
    # Stages of 1, 1, 2, 1 blocks; the first two are convolutional
    "test_coatnet": Network({"models.maxxvit.Attention2d": 3}, timm_model("test_coatnet", img_size=64), 64),
    "nest": Network(
        {"models.nest.Attention": 4},
        functools.partial(Nest, img_size=32, num_levels=2, embed_dims=(24, 48), num_heads=(2, 4), depths=(2, 2), num_classes=5),
        32,
    ),
    # Local and global attention in turn
    "twins_svt_small": Network(
        {"models.twins.LocallyGroupedAttn": 4, "models.twins.GlobalSubSampleAttn": 4},
        timm_model("twins_svt_small", img_size=64, embed_dims=[8, 16, 32, 64], depths=[2, 2, 2, 2]),
        64,
    ),
    "pvt_v2_b0": Network({"models.pvt_v2.Attention": 8}, timm_model("pvt_v2_b0", embed_dims=(8, 16, 40, 64)), 64),
    "hiera_tiny_224": Network(
        {"models.hiera.MaskUnitAttention": 6},
        timm_model("hiera_tiny_224", img_size=(64, 64), embed_dim=24, stages=(1, 2, 2, 1)),
        64,
    ),
    "sam2_hiera": Network(
        {"models.hieradet_sam2.MultiScaleAttention": 8},
        functools.partial(HieraDet, num_classes=5, embed_dim=12, stages=(1, 2, 3, 2), global_att_blocks=(4,)),
        64,
    ),
    "mvitv2": Network(
        {"models.mvitv2.MultiScaleAttention": 6},
        functools.partial(MultiScaleVit, MultiScaleVitCfg(depths=(1, 2, 2, 1), embed_dim=8), img_size=(64, 64), num_classes=5),
        64,
    ),
    # One block in each of three stages, two downsamplings between them
    "levit_128s": Network(
        {"models.levit.Attention": 3, "models.levit.AttentionDownsample": 2},
        timm_model("levit_128s", img_size=128, embed_dim=(32, 64, 96), depth=(1, 1, 1)),
        128,
    ),
    # Stages of 1, 2, 3 blocks
    "efficientvit_m0": Network(
        {"models.efficientvit_msra.CascadedGroupAttention": 6},
        timm_model("efficientvit_m0", img_size=96, embed_dim=(16, 32, 48), num_heads=(2, 2, 2), window_size=(3, 3, 3)),
        96,
    ),
    # The second and the third stage
    "shvit_s1": Network(
        {"models.shvit.SHSA": 2}, timm_model("shvit_s1", embed_dim=(16, 24, 32), partial_dim=(8, 8, 8), depth=(1, 1, 1)), 96
    ),
    # The last block of the last stage
    "efficientformer_l1": Network(
        {"models.efficientformer.Attention": 1},
        timm_model("efficientformer_l1", embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 2)),
        224,
    ),
    # The last two blocks of the last two stages, and the downsampling between these stages
    "efficientformerv2_s0": Network(
        {"models.efficientformer_v2.Attention2d": 4, "models.efficientformer_v2.Attention2dDownsample": 1},
        timm_model("efficientformerv2_s0", img_size=64, embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 2), mlp_ratios=4),
        64,
    ),
    "fastvit_mci0": Network(
        {"models.fastvit.Attention": 2}, timm_model("fastvit_mci0", layers=(1, 1, 1, 2), embed_dims=(8, 16, 32, 64)), 64
    ),
    # One group of attention in each of the last two stages
    "iformer_t": Network(
        {"models.iformer.SHMA": 2},
        timm_model("iformer_t", dims=(8, 16, 16, 32), depths=(1, 1, 4, 3), attn_groups=(0, 0, 1, 1)),
        96,
    ),
    # One block in each stage; the last two attend
    "lowformer_b0": Network(
        {"models.lowformer.ConvAttention": 2},
        timm_model("lowformer_b0", width_list=[8, 8, 16, 16, 32], depth_list=[0, 1, 1, 1, 1], head_widths=(32, 32)),
        96,
    ),
    # One block in the last but one stage, two in the last
    "cpubone_nano": Network(
        {"models.cpubone.ConvAttention": 3}, timm_model("cpubone_nano", width_list=[8, 8, 16, 16, 32], head_widths=(32, 32)), 96
    ),
    "caformer": Network(
        {"models.metaformer.Attention": 3},
        functools.partial(MetaFormer, depths=(1, 1, 2, 1), dims=(16, 32, 64, 64), num_classes=5, **CAFORMER),
        64,
    ),
    # One block, as the channels of the model cannot be changed
    "nextvit": Network(
        {"models.nextvit.EfficientAttention": 1},
        functools.partial(NextTransformerBlock, 64, 64, drop_path=0.0, sr_ratio=2, head_dim=16, mix_block_ratio=0.5),
        (2, 64, 8, 8),
    ),
    "visformer_tiny": Network(
        {"models.visformer.Attention": 4}, timm_model("visformer_tiny", img_size=64, embed_dim=48, depth=(1, 2, 2)), 64
    ),
    "tiny_vit_5m_224": Network(
        {"models.tiny_vit.Attention": 4},
        timm_model(
            "tiny_vit_5m_224", embed_dims=[8, 16, 20, 40], num_heads=[1, 2, 5, 10], depths=[1, 1, 2, 1], window_sizes=[3] * 4
        ),
        64,
    ),
    "mobilenetv4": Network(
        {"layers.attention2d.MultiQueryAttention2d": 2, "layers.attention2d.Attention2d": 1}, mobile_attention, 16
    ),
    "botnet": Network(
        {"layers.bottleneck_attn.BottleneckAttn": 2},
        convolutional(depth=2, self_attn_layer="bottleneck", self_attn_kwargs={"num_heads": 2}, fixed_input_size=True),
    ),
    "halonet": Network(
        {"layers.halo_attn.HaloAttn": 2},
        convolutional(depth=2, self_attn_layer="halo", self_attn_kwargs={"block_size": 3, "halo_size": 1, "num_heads": 2}),
    ),
    "non-local": Network({"layers.non_local_attn.NonLocalAttn": 2}, convolutional(attn_layer="nl")),
    "clip resnet": Network(
        {"layers.attention_pool2d.AttentionPool2d": 1}, convolutional(head_type="attn_abs"), include=["head"]
    ),
    "clip resnet with rotary pool": Network(
        {"layers.attention_pool2d.RotAttentionPool2d": 1}, convolutional(head_type="attn_rot"), include=["head"]
    ),
    # What no model uses is tried alone
    "SimPool1d": Network(
        {"layers.other_pool.SimPool1d": 1}, functools.partial(SimPool1d, 24, num_heads=2), (8, 16, 24), ["*.SimPool1d"]
    ),
    "SimPool2d": Network(
        {"layers.other_pool.SimPool2d": 1}, functools.partial(SimPool2d, 24, num_heads=2), (8, 24, 4, 4), ["*.SimPool2d"]
    ),
}

UNREACHABLE = {"models.mvitv2.MultiScaleAttentionPoolFirst"}
"""Its forward fails in timm 1.0.31 (keys are not transposed); a test below notices when timm mends it."""

SOFTMAX_ONLY = {
    "convit_tiny", "tnt_s_legacy_patch16_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "gcvit_xxtiny", "mvitv2",
    "levit_128s", "efficientvit_m0", "shvit_s1", "efficientformer_l1", "efficientformerv2_s0", "botnet", "halonet", "non-local",
    "swin_tiny_patch4_window7_224", "visformer_tiny",
}  # fmt: skip
"""Networks that use no SDPA at level 1."""

EXPERIMENTAL = ["swin_tiny_patch4_window7_224", "visformer_tiny", "xcit_nano_12_p8_224"]
"""Networks with a class that uses SDPA only at level 2 (XCiT's is channel attention, to be left alone there too)."""


HEADS_DIFFER = {"iformer_t"}
"""By softmax its single head has no axis: samples count as heads there, and the mask of the same seed is another one."""


@functools.cache
def pristine(name: str) -> nn.Module:
    """The unpatched network; every parameter is perturbed, so that no branch is zero. Tests work on copies of it."""
    torch.manual_seed(5)
    model = NETWORKS[name].build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def inputs_for(name: str) -> Tensor:
    inputs = NETWORKS[name].inputs
    shape = (2, 3, inputs, inputs) if isinstance(inputs, int) else inputs
    return torch.randn(shape, generator=torch.Generator().manual_seed(6))


def patched(name: str, ratio: float) -> tuple[nn.Module, DropKeyPlan]:
    model = copy.deepcopy(pristine(name))
    return model, apply_dropkey(model, NETWORKS[name].settings(ratio), example_inputs=(inputs_for(name),))


def train_once(model: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of a training pass that starts from a fixed random state."""
    torch.manual_seed(1)
    model.train().zero_grad()
    output = model(inputs)
    output.square().sum().backward()
    return output.detach(), {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}


def assert_observed(plan: DropKeyPlan, ratio: float, passes: int = 1) -> None:
    """Each layer dropped ``ratio`` of its keys in so many passes from the same seed."""
    for layer, state in zip(plan.layers, plan.states, strict=True):
        dropped, draws = state.counts.tolist()
        independent = draws / passes  # passes with one seed count the same draws again
        assert independent > 0, layer.name
        assert abs(dropped / draws - ratio) < 5 * math.sqrt(ratio * (1 - ratio) / independent), layer.name


def test_every_known_class_has_its_network() -> None:
    known = {name.removeprefix("timm.") for name, rule in KNOWN.items() if name.startswith("timm.") and rule.kind != "refuse"}
    assert {name for network in NETWORKS.values() for name in network.layers} == known - UNREACHABLE


@pytest.mark.parametrize("name", NETWORKS)
def test_ratio_0_trains_bitwise_as_unpatched(name: str) -> None:
    inputs = inputs_for(name)
    plain = copy.deepcopy(pristine(name))
    model, plan = patched(name, ratio=0.0)
    output, gradients = train_once(model, inputs)
    expected_output, expected_gradients = train_once(plain, inputs)
    assert torch.equal(output, expected_output)
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.equal(gradients[key], expected_gradients[key]) for key in gradients)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
    assert all(state.counts.tolist() == [0, 0] for state in plan.states)


@pytest.mark.parametrize("name", NETWORKS)
def test_eval_is_bitwise_unpatched_and_removing_restores_the_model(name: str) -> None:
    inputs = inputs_for(name)
    plain, model = copy.deepcopy(pristine(name)).eval(), copy.deepcopy(pristine(name)).eval()
    with torch.no_grad():
        expected = model(inputs)  # some classes keep what they computed in eval, such as their biases
        plan = apply_dropkey(model, NETWORKS[name].settings(0.3), example_inputs=(inputs,))
        assert torch.equal(model(inputs), expected)
        state_dict, plain_state_dict = model.state_dict(), plain.state_dict()
        assert list(state_dict) == list(plain_state_dict)
        assert all(torch.equal(state_dict[key], plain_state_dict[key]) for key in state_dict)
        plan.remove()
        assert torch.equal(model(inputs), expected)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert not any("dropkey" in vars(module) for module in model.modules())
    output, _ = train_once(model, inputs)
    assert torch.equal(output, train_once(plain, inputs)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_training_drops_the_configured_share_in_every_layer(name: str) -> None:
    inputs = inputs_for(name)
    model, plan = patched(name, ratio=0.3)
    assert Counter(layer.class_name.removeprefix("timm.") for layer in plan.layers) == NETWORKS[name].layers
    assert all(layer.function == "softmax" for layer in plan.layers) == (name in SOFTMAX_ONLY)
    output, gradients = train_once(model, inputs)
    assert not torch.allclose(output, train_once(copy.deepcopy(pristine(name)), inputs)[0])
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert torch.equal(output, train_once(model, inputs)[0])  # the seed decides
    assert_observed(plan, 0.3, passes=2)


@pytest.mark.parametrize("name", NETWORKS)
def test_queries_that_lose_every_key_leave_outputs_and_gradients_finite(name: str) -> None:
    model, plan = patched(name, ratio=0.97)
    output, gradients = train_once(model, inputs_for(name))
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert_observed(plan, 0.97)


@pytest.mark.parametrize(
    ("name", "level"), [(name, 0) for name in NETWORKS if name not in SOFTMAX_ONLY] + [(name, 2) for name in EXPERIMENTAL]
)
def test_softmax_and_sdpa_drop_the_same_keys(name: str, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, settings = inputs_for(name).double(), NETWORKS[name].settings(0.3)
    usual = copy.deepcopy(pristine(name)).double()
    monkeypatch.setattr(FUSED, level)
    other = NETWORKS[name].build().double()
    other.load_state_dict(usual.state_dict())
    plans = [apply_dropkey(model, settings, example_inputs=(inputs,)) for model in (usual, other)]
    layers, other_layers = (
        [(layer.name, layer.class_name, layer.queries, layer.keys) for layer in plan.layers] for plan in plans
    )
    assert other_layers == layers
    assert plans[1].left_alone == plans[0].left_alone
    assert {layer.function for layer in plans[1].layers} == {"sdpa" if level else "softmax"}
    (output, gradients), (expected_output, expected_gradients) = train_once(other, inputs), train_once(usual, inputs)
    assert_observed(plans[1], 0.3)
    if name in HEADS_DIFFER:
        return
    # A layer's seed comes from the same place of the random stream, and the mask is a function of the seed alone.
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(gradients, expected_gradients)


def test_pool_first_attention_fails_in_timm_itself() -> None:
    config = MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=8, pool_first=True)
    with pytest.raises(RuntimeError, match="Expected size for first two dimensions"):
        MultiScaleVit(config, img_size=(32, 32))(torch.zeros(2, 3, 32, 32))
