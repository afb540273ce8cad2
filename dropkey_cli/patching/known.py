"""The attention classes DropKey knows: what each one's softmax runs over. Data, checked against timm 1.0.31.

The table is closed on purpose: no shape tells a key from a channel, so a class that is missing here is refused, not guessed.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["key", "class", "pool", "refuse"]


@dataclass(frozen=True)
class Rule:
    """What an attention class attends over, and what is special about it.

    Args:
        kind: key (self- or cross-attention over tokens), class (a class token's query over tokens), pool (an
            attention-pooling head); refuse never takes DropKey.
        why: Why a class is refused, or takes DropKey only when included on purpose.
        share_mask: All calls of one forward run over the same keys and share one mask.
        keep_empty_rows: The module divides by the sum of the weights, so no query may lose all its keys.
        shared_heads: In one softmax over all its heads, so many neighbours run over the same keys and share one mask.
        talking_heads: The module mixes its heads after the softmax.
        heads_axis: Axis of the heads in the logits; None where they are folded into the samples.
        no_grid: Why its keys do not lie on a grid of image tokens, row by row.
        finite_mask: The argument ``mask`` of its forward forbids with a finite number (-100).
        finite_fill: The finite number that the module fills in where it forbids (-100).
    """

    kind: Kind
    why: str = ""
    share_mask: bool = False
    keep_empty_rows: bool = False
    shared_heads: int = 1
    talking_heads: bool = False
    heads_axis: int | None = -3
    no_grid: str = ""
    finite_mask: bool = False
    finite_fill: float | None = None


KEY = Rule("key")
CLASS = Rule("class")
POOL = Rule("pool", "is a pooling head")
INCLUDED = Rule("key", no_grid="DropKey does not know what its keys are")  # a class that only the user knows
DIFFERENTIAL = Rule("key", share_mask=True, shared_heads=2)  # two maps over the same keys, subtracted
TALKING_HEADS = Rule("key", talking_heads=True)
SHIFTED_WINDOW = Rule("key", finite_mask=True)
FILLED_WINDOW = Rule("key", finite_fill=-100.0)  # torchvision's shifted windows

_CHANNELS = Rule("refuse", "attends over channels, not tokens")
_BRANCHES = Rule("refuse", "weights branches, not tokens")
_NO_QUERY = Rule("refuse", "has one distribution for all queries")
_LINEAR = Rule("refuse", "is linear attention, without query-key logits")

KNOWN: dict[str, Rule] = {
    "timm.layers.attention.Attention": KEY,
    "timm.layers.attention.AttentionRope": KEY,
    "timm.layers.attention2d.Attention2d": KEY,
    "timm.layers.attention2d.MultiQueryAttention2d": KEY,
    "timm.layers.attention2d.MultiQueryAttentionV2": Rule("refuse", "has logits whose axes of queries and heads are swapped"),
    "timm.layers.attention_pool.AttentionPoolLatent": POOL,
    "timm.layers.attention_pool.AttentionPoolPrr": POOL,
    "timm.layers.attention_pool2d.AttentionPool2d": POOL,
    "timm.layers.attention_pool2d.RotAttentionPool2d": POOL,
    "timm.layers.bottleneck_attn.BottleneckAttn": KEY,
    "timm.layers.diff_attention.DiffAttention": DIFFERENTIAL,
    "timm.layers.halo_attn.HaloAttn": Rule("key", heads_axis=None),
    "timm.layers.non_local_attn.NonLocalAttn": KEY,
    "timm.layers.other_pool.SimPool1d": POOL,
    "timm.layers.other_pool.SimPool2d": POOL,
    "timm.models.beit.Attention": KEY,
    "timm.models.cait.ClassAttn": CLASS,
    "timm.models.cait.TalkingHeadAttn": TALKING_HEADS,
    "timm.models.convit.GPSA": Rule("key", share_mask=True, keep_empty_rows=True),  # content and position, renormalised
    "timm.models.convit.MHSA": KEY,
    "timm.models.cpubone.ConvAttention": KEY,
    "timm.models.crossvit.CrossAttention": CLASS,
    "timm.models.davit.WindowAttention": KEY,
    "timm.models.efficientformer.Attention": KEY,
    "timm.models.efficientformer_v2.Attention2d": TALKING_HEADS,
    "timm.models.efficientformer_v2.Attention2dDownsample": KEY,
    "timm.models.efficientvit_msra.CascadedGroupAttention": KEY,
    "timm.models.eva.EvaAttention": KEY,
    "timm.models.fastvit.Attention": KEY,
    "timm.models.gcvit.WindowAttentionGlobal": KEY,
    "timm.models.gemma4_vit.Gemma4Attention": KEY,
    "timm.models.hiera.MaskUnitAttention": Rule("key", heads_axis=1, no_grid="its tokens are sorted by mask unit"),
    "timm.models.hieradet_sam2.MultiScaleAttention": KEY,
    "timm.models.iformer.SHMA": KEY,
    "timm.models.levit.Attention": KEY,
    "timm.models.levit.AttentionDownsample": KEY,
    "timm.models.lowformer.ConvAttention": KEY,
    "timm.models.maxxvit.Attention2d": KEY,
    "timm.models.maxxvit.AttentionCl": KEY,
    "timm.models.metaformer.Attention": KEY,
    "timm.models.mvitv2.MultiScaleAttention": KEY,
    "timm.models.mvitv2.MultiScaleAttentionPoolFirst": KEY,
    "timm.models.nest.Attention": Rule("key", heads_axis=1),
    "timm.models.nextvit.EfficientAttention": Rule("key", no_grid="its keys are means over runs of tokens"),
    "timm.models.pvt_v2.Attention": KEY,
    "timm.models.shvit.SHSA": KEY,
    "timm.models.swin_transformer.WindowAttention": SHIFTED_WINDOW,
    "timm.models.swin_transformer_v2.WindowAttention": SHIFTED_WINDOW,
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": SHIFTED_WINDOW,
    "timm.models.tiny_vit.Attention": KEY,
    "timm.models.tnt.Attention": KEY,
    "timm.models.twins.GlobalSubSampleAttn": KEY,
    "timm.models.twins.LocallyGroupedAttn": KEY,
    "timm.models.visformer.Attention": KEY,
    "timm.models.vision_transformer.DiffParallelScalingBlock": DIFFERENTIAL,
    "timm.models.vision_transformer.ParallelScalingBlock": KEY,
    "timm.models.vision_transformer_relpos.RelPosAttention": KEY,
    "timm.models.vision_transformer_sam.Attention": KEY,
    "timm.models.volo.Attention": KEY,
    "timm.models.volo.ClassAttention": CLASS,
    # Its keys may be anything, such as the object queries of a decoder.
    "torch.nn.modules.activation.MultiheadAttention": Rule("key", no_grid="torch does not say what its keys are"),
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": KEY,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": FILLED_WINDOW,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": FILLED_WINDOW,
    "torchvision.models.video.mvit.MultiscaleAttention": KEY,
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d": FILLED_WINDOW,
    # Softmaxes that do not run over keys.
    "timm.layers.global_context.GlobalContext": _NO_QUERY,
    "timm.layers.lambda_layer.LambdaLayer": _LINEAR,
    "timm.layers.selective_kernel.SelectiveKernelAttn": _BRANCHES,
    "timm.layers.split_attn.RadixSoftmax": _BRANCHES,
    "timm.models.coat.FactorAttnConvRelPosEnc": _LINEAR,
    "timm.models.csatv2.SpatialTransformerBlock": Rule("refuse", "attends across the images of a batch"),
    "timm.models.davit.ChannelAttention": _CHANNELS,
    "timm.models.davit.ChannelAttentionV2": _CHANNELS,
    "timm.models.edgenext.CrossCovarianceAttn": _CHANNELS,
    "timm.models.efficientvim.EfficientViM": _BRANCHES,
    "timm.models.efficientvim.EfficientViMDistilled": _BRANCHES,
    "timm.models.efficientvim.HSMSSD": Rule("refuse", "mixes states of a state-space model, not tokens"),
    "timm.models.mobilevit.LinearSelfAttention": _NO_QUERY,
    "timm.models.volo.OutlookAttention": Rule("refuse", "predicts its weights from the query alone, there are no keys"),
    "timm.models.xcit.XCA": _CHANNELS,
    # Our own networks: attention outside of the stack of blocks that the paper regularises.
    "dropkey_cli.models.ceit.LayerwiseClassAttention": Rule(
        "class", "attends over the layers' class tokens", no_grid="its keys are the layers' class tokens"
    ),
    "dropkey_cli.models.t2t_vit.TokenTransformer": Rule("key", "makes the tokens, before the first block"),
}


def rule_for(cls: type) -> Rule | None:
    """The rule of an attention class, or of the nearest known parent whose forward it has; None for an unknown class."""
    parents = (parent for parent in cls.__mro__ if getattr(parent, "forward", None) is getattr(cls, "forward", None))
    return next((KNOWN[name] for name in map(class_name, parents) if name in KNOWN), None)


def class_name(cls: type) -> str:
    """Module and name of a class: bare names repeat (timm has eleven classes called Attention)."""
    return f"{cls.__module__}.{cls.__qualname__}"
