"""CeiT (arXiv 2103.11816): a ViT with convolutions in stem and feed-forwards, and attention over its layers; for timm."""
# ruff: noqa: ANN401 - timm passes keyword arguments on without looking at them

from collections import OrderedDict
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.drop import DropPath, calculate_drop_path_rates
from timm.layers.helpers import to_2tuple
from timm.layers.mlp import Mlp
from timm.layers.pool1d import global_pool_nlc
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from dropkey_cli.errors import InputError

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class ImageToTokens(nn.Module):
    """A convolutional stem with one token for 16 × 16 pixels; it refuses sizes that these do not fill (InputError)."""

    def __init__(self, img_size: int | tuple[int, int], *, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        if any(side % 16 for side in self.img_size):
            raise InputError(f"img_size={img_size!r} cannot be cut into 16 × 16 pixels: give multiples of 16, e.g. 224")
        self.grid_size = (self.img_size[0] // 16, self.img_size[1] // 16)
        conv = nn.Conv2d(in_chans, 64, kernel_size=7, stride=2, padding=3, bias=False)
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        # No activation: the official code has none either
        self.backbone = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(64), pool=pool))
        self.proj = nn.Conv2d(64, embed_dim, kernel_size=4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, height, width)`` to tokens ``(B, height/16 · width/16, embed_dim)``, row by row."""
        if (size := tuple(x.shape[2:])) != self.img_size:
            raise InputError(f"images of {size} pixels given to a network of {self.img_size}: build it with img_size={size}")
        x = self.proj(self.backbone(x))  # (B, embed_dim, rows, columns)
        return x.flatten(2).mT


class LocallyEnhancedFeedForward(nn.Module):
    """A feed-forward with a depthwise convolution over the grid of patch tokens; the class token passes unchanged."""

    def __init__(self, dim: int, *, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.conv1 = nn.Conv2d(dim, 4 * dim, kernel_size=1)
        self.bn1 = nn.BatchNorm2d(4 * dim)
        self.conv2 = nn.Conv2d(4 * dim, 4 * dim, kernel_size=3, padding=1, groups=4 * dim)
        self.bn2 = nn.BatchNorm2d(4 * dim)
        self.conv3 = nn.Conv2d(4 * dim, dim, kernel_size=1)
        self.bn3 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, 1 + N, C)``, the class token first, to tokens of the same shape."""
        class_token, patches = x[:, :1], x[:, 1:].mT.reshape(x.shape[0], -1, *self.grid_size)
        patches = F.gelu(self.bn1(self.conv1(patches)))
        patches = F.gelu(self.bn2(self.conv2(patches)))
        patches = self.bn3(self.conv3(patches))
        return torch.cat((class_token, patches.flatten(2).mT), dim=1)


class Block(nn.Module):
    """Self-attention and a locally enhanced feed-forward."""

    def __init__(
        self, dim: int, num_heads: int, *, grid_size: tuple[int, int], attn_drop: float, proj_drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias=True, attn_drop=attn_drop, proj_drop=proj_drop)
        self.norm2 = LayerNorm(dim)
        self.leff = LocallyEnhancedFeedForward(dim, grid_size=grid_size)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, 1 + N, C)`` to tokens of the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.leff(self.norm2(x)))
        return x


class LayerwiseClassAttention(Attention):
    """Attention of the last layer's class token, the only query, to the class tokens of all layers."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # takes no mask
        """Class tokens ``(B, L, C)`` to ``(B, 1, C)``."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, D) each
        x = F.scaled_dot_product_attention(q[:, :, -1:], k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        x = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
        return x


class LayerwiseClassBlock(nn.Module):
    """Layer-wise class-token attention and a feed-forward."""

    def __init__(self, dim: int, num_heads: int, *, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = LayerwiseClassAttention(dim, num_heads, qkv_bias=True, attn_drop=attn_drop, proj_drop=proj_drop)
        self.norm2 = LayerNorm(dim)
        self.feedforward = Mlp(dim, 4 * dim, drop=proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Class tokens of the layers ``(B, L, C)`` to one class token ``(B, 1, C)``."""
        x = x[:, -1:] + self.attn(self.norm1(x))
        x = x + self.feedforward(self.norm2(x))
        return x


class CeiT(nn.Module):
    """Convolution-enhanced image transformer. Its arguments and methods mean what they mean in timm's ``VisionTransformer``.

    ``img_size`` takes multiples of 16. ``global_pool`` is token (the class token), avg (the mean of the patch tokens: then
    the attention over the layers has no part in the output) or "" (all tokens). ``proj_drop_rate`` also acts in the class
    token's feed-forward; those of the blocks have no dropout. ``drop_path_rate`` is the last block's and grows from 0.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Literal["token", "avg", ""] = "token",
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.grad_checkpointing = False
        self.feature_info = [{"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": 16} for i in range(depth)]
        drops = {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}
        self.i2t = ImageToTokens(img_size, in_chans=in_chans, embed_dim=embed_dim)
        rows, columns = grid_size = self.i2t.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, embed_dim))
        drop_paths: list[Any] = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, grid_size=grid_size, drop_path=drop_path, **drops) for drop_path in drop_paths
        )
        self.pos_layer_embed = nn.Parameter(torch.zeros(1, depth, embed_dim))
        self.lca: nn.Module | None = LayerwiseClassBlock(embed_dim, num_heads, **drops)
        self.norm: nn.Module = LayerNorm(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for weight in (self.cls_token, self.pos_embed, *(module.weight for module in linear)):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in linear:
            nn.init.zeros_(module.bias)

    @property
    def patch_embed(self) -> ImageToTokens:
        """The module that makes the tokens, under timm's name."""
        return self.i2t

    def no_weight_decay(self) -> set[str]:
        """The parameters that the official training does not decay (it does decay ``pos_layer_embed``)."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters are the stem, a block or the end, as timm's layer-wise learning rates ask."""
        return {"stem": r"cls_token|pos_embed|i2t", "blocks": [(r"blocks\.(\d+)", None)], "end": r"pos_layer_embed|lca|norm"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass; batch norm then counts a batch twice, as in timm's other networks."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Literal["token", "avg", ""] | None = None) -> None:
        """Put a new classifier in place, and another pooling where one is given."""
        if global_pool not in (None, "token", "avg", ""):
            raise InputError(f"global_pool={global_pool!r} is unknown to CeiT: give token, avg or '' (none)")
        if global_pool is not None:
            self.global_pool: str = global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes).to(self.cls_token) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to normalised tokens ``(B, 1 + N, C)``, the class token first."""
        return self._attend_to_layers(self._block_outputs(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalised tokens to logits ``(B, K)``; with ``pre_logits`` to what the classifier takes."""
        x = self.head_drop(global_pool_nlc(x, self.global_pool, num_prefix_tokens=self.num_prefix_tokens))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, height, width)`` to logits ``(B, K)``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """What `forward_features` gives, and the patch tokens after some blocks."""
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt={output_fmt!r} is unknown to CeiT: give NCHW or NLC")
        chosen, last = feature_take_indices(len(self.blocks), indices)
        outputs = self._block_outputs(x, num_blocks=last + 1 if stop_early else None)
        intermediates = [(self.norm(outputs[i]) if norm else outputs[i])[:, 1:] for i in chosen]
        if output_fmt == "NCHW":
            intermediates = [tokens.mT.reshape(x.shape[0], -1, *self.i2t.grid_size) for tokens in intermediates]
        return intermediates if intermediates_only else (self._attend_to_layers(outputs), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last chosen one and, as asked, the final norm and head; gives the chosen ones."""
        chosen, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.lca = None
            self.register_parameter("pos_layer_embed", None)
            self.reset_classifier(0, "")
        return chosen

    def _block_outputs(self, x: Tensor, *, num_blocks: int | None = None) -> list[Tensor]:
        """The tokens ``(B, 1 + N, C)`` after each of the first ``num_blocks`` blocks."""
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), self.i2t(x)), dim=1) + self.pos_embed
        outputs = []
        for block in self.blocks[:num_blocks]:
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            outputs.append(x)
        return outputs

    def _attend_to_layers(self, outputs: list[Tensor]) -> Tensor:
        """The last output, normalised, with a class token that has attended to those of all outputs."""
        x: Tensor = outputs[-1]
        if self.lca is not None:
            class_tokens = torch.stack([output[:, 0] for output in outputs], dim=1)  # (B, L, C)
            x = torch.cat((self.lca(class_tokens + self.pos_layer_embed[:, : len(outputs)]), x[:, 1:]), dim=1)
        x = self.norm(x)
        return x


def checkpoint_filter_fn(state_dict: dict[str, Any], model: CeiT) -> dict[str, Tensor]:
    """The weights in an official checkpoint, for a model of any image size."""
    weights = state_dict.get("model") or state_dict.get("model_ema") or state_dict
    weights = {name.removeprefix("module."): weight for name, weight in weights.items()}
    if weights["pos_embed"].shape != model.pos_embed.shape:
        weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], list(model.i2t.grid_size), antialias=False)
    return weights


_EMBED_DIMS = {"tiny": 192, "small": 384, "base": 768}
# Untrained: the weights lie behind a download page. Crop 0.875, bicubic and ImageNet's mean and std are timm's defaults.
_CFG = {
    "fixed_input_size": True,
    "first_conv": "i2t.backbone.conv",
    "classifier": "head",
    "license": "apache-2.0",
    "origin_url": "https://github.com/coeusguo/ceit",
    "paper_ids": "arXiv:2103.11816",
}
default_cfgs = generate_default_cfgs(
    {f"ceit_{size}_patch16_{px}.untrained": {**_CFG, "input_size": (3, px, px)} for size in _EMBED_DIMS for px in (224, 384)}
)


def _register(variant: str, embed_dim: int) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> CeiT:
        features = {"out_indices": 3, "feature_cls": "getter"}
        kwargs = {"embed_dim": embed_dim, "num_heads": embed_dim // 64, "feature_cfg": features, **kwargs}
        return build_model_with_cfg(CeiT, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)

    build.__name__ = variant  # timm registers a function under its name
    register_model(build)


for _variant in default_cfgs:
    _register(_variant, _EMBED_DIMS[_variant.split("_")[1]])
