"""T2T-ViT (arXiv 2101.11986): tokens made by overlapping unfolds and two narrow attention layers, then a ViT; for timm."""
# ruff: noqa: ANN401 - timm passes keyword arguments on without looking at them

import argparse
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dropkey_cli.errors import InputError

TOKEN_DIM = 64  # width of the two layers that make the tokens, in all variants


class TokenPerformer(nn.Module):
    """One layer of linear attention (Performer, arXiv 2009.14794), from ``in_dim`` to ``TOKEN_DIM`` channels."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.kqv = nn.Linear(in_dim, 3 * TOKEN_DIM)
        self.proj = nn.Linear(TOKEN_DIM, TOKEN_DIM)
        self.proj_drop = nn.Dropout(0.1)
        self.norm1 = nn.LayerNorm(in_dim)
        self.norm2 = nn.LayerNorm(TOKEN_DIM)
        self.mlp = nn.Sequential(nn.Linear(TOKEN_DIM, TOKEN_DIM), nn.GELU(), nn.Linear(TOKEN_DIM, TOKEN_DIM), nn.Dropout(0.1))
        directions = nn.init.orthogonal_(torch.empty(TOKEN_DIM // 2, TOKEN_DIM))
        self.w = nn.Parameter(directions * math.sqrt(len(directions)), requires_grad=False)  # fixed, but in the state dict

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, N, in_dim)`` to tokens ``(B, N, TOKEN_DIM)``; the values are their own skip connection."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)  # (B, N, TOKEN_DIM) each
        with _without_autocast(x.device.type):  # sums of exponentials need float32
            keys, queries = self._features(k), self._features(q)  # (B, N, features)
            mixed = queries @ (keys.mT @ v.float())  # (B, N, TOKEN_DIM)
            mixed = mixed / (queries @ keys.sum(dim=1).unsqueeze(-1) + 1e-8)
        x = v + self.proj_drop(self.proj(mixed.to(v.dtype)))
        x = x + self.mlp(self.norm2(x))
        return x

    def _features(self, x: Tensor) -> Tensor:
        """φ(x) = exp(w·x − |x|²/2) / √features: positive random features, whose dot products are the attention weights."""
        x, w = x.float(), self.w.float()
        return torch.exp(x @ w.mT - x.square().sum(dim=-1, keepdim=True) / 2) / math.sqrt(len(w))


class TokenTransformer(nn.Module):
    """One transformer layer with a single head, from ``in_dim`` to ``TOKEN_DIM`` channels."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.scale = in_dim**-0.5  # of the tokens it takes, not of the head
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(in_dim, 3 * TOKEN_DIM, bias=False)})
        self.attn["proj"] = nn.Linear(TOKEN_DIM, TOKEN_DIM)
        self.norm2 = nn.LayerNorm(TOKEN_DIM)
        self.mlp = Mlp(TOKEN_DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, N, in_dim)`` to tokens ``(B, N, TOKEN_DIM)``; the values are their own skip connection."""
        q, k, v = self.attn["qkv"](self.norm1(x)).unsqueeze(1).chunk(3, dim=-1)  # (B, 1, N, TOKEN_DIM) each
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = (v + self.attn["proj"](mixed)).squeeze(1)
        x = x + self.mlp(self.norm2(x))
        return x


class TokensToToken(nn.Module):
    """Images to tokens of 16 × 16 pixels: three overlapping unfolds, a ``token_layer`` after the first and second.

    Raises:
        InputError: If ``img_size``, the images' height and width, are no multiples of 16.
    """

    def __init__(
        self, token_layer: Callable[[int], nn.Module], img_size: int | tuple[int, int], in_chans: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.set_input_size(img_size)
        self.attention1 = token_layer(in_chans * 7 * 7)
        self.attention2 = token_layer(TOKEN_DIM * 3 * 3)
        self.project = nn.Linear(TOKEN_DIM * 3 * 3, embed_dim)

    def set_input_size(self, img_size: int | tuple[int, int], patch_size: None = None) -> None:
        """Take images of ``img_size``; no weight depends on it. The patch size is 16 and stays."""
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height % 16 or width % 16:
            raise InputError(f"img_size={img_size!r} cannot be cut into 16 × 16 pixels: give multiples of 16, e.g. 224")
        self.img_size = (height, width)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the token grid of images of ``img_size``."""
        return img_size[0] // 16, img_size[1] // 16

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, height, width)`` to tokens ``(B, height/16 · width/16, embed_dim)``, row by row."""
        height, width = x.shape[-2:]
        if (height, width) != self.img_size:
            raise InputError(
                f"images of {height} × {width} pixels given to a network built with img_size={self.img_size}: resize them, "
                f"or build it with img_size=({height}, {width})"
            )
        x = self.attention1(F.unfold(x, 7, padding=2, stride=4).mT)  # (B, N, TOKEN_DIM), a token for 4 × 4 pixels
        x = x.mT.reshape(-1, TOKEN_DIM, height // 4, width // 4)
        x = self.attention2(F.unfold(x, 3, padding=1, stride=2).mT)  # for 8 × 8
        x = x.mT.reshape(-1, TOKEN_DIM, height // 8, width // 8)
        x = self.project(F.unfold(x, 3, padding=1, stride=2).mT)  # for 16 × 16
        return x


class T2TViT(VisionTransformer):
    """timm's vision transformer on the tokens of `TokensToToken`, with sinusoids as fixed position embeddings.

    Args:
        token_layer: What makes the tokens: ``TokenPerformer`` or ``TokenTransformer``.
        kwargs: Further arguments of timm's ``VisionTransformer``.
    """

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(self, token_layer: Callable[[int], nn.Module] = TokenPerformer, **kwargs: Any) -> None:
        super().__init__(
            patch_size=16,
            qkv_bias=False,
            class_token=True,
            pos_embed="learn",  # `init_weights` fills it in its place
            norm_layer=nn.LayerNorm,
            embed_layer=lambda patch_size, bias, dynamic_img_pad, device, dtype, **options: TokensToToken(
                token_layer, **options
            ).to(device=device, dtype=dtype),
            **({"fc_norm": False} | kwargs),  # the official weights normalise before the pooling
        )
        self.pos_embed.requires_grad = False
        # The official state dict has this name; timm's constructor needs its own, which is the property's from here on
        self.tokens_to_token = self.patch_embed
        del self.patch_embed

    @property
    def patch_embed(self) -> TokensToToken:
        """The module that makes the tokens, under timm's name."""
        return self.tokens_to_token

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Draw new weights; the position embeddings are always the same."""
        super().init_weights(mode, needs_reset)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        with torch.no_grad():
            self.pos_embed.copy_(sinusoid_table(*self.pos_embed.shape[1:]))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters are the stem and which a block, as timm's layer-wise learning rates ask."""
        return {**super().group_matcher(coarse), "stem": r"^cls_token|pos_embed|tokens_to_token"}


def sinusoid_table(num_positions: int, dim: int) -> Tensor:
    """Position p as sin(p / 10000^(2i/dim)) in channel 2i and its cosine in channel 2i + 1: ``(num_positions, dim)``."""
    positions = torch.arange(num_positions, dtype=torch.float64, device="cpu")
    angles = positions[:, None] / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: T2TViT) -> dict[str, Tensor]:
    """The weights in an official checkpoint, for a model of any image size.

    Raises:
        InputError: If they are for images with another number of channels.
    """
    weights = state_dict.get("state_dict_ema") or state_dict.get("state_dict") or state_dict
    weights = {name.removeprefix("module."): weight for name, weight in weights.items()}
    channels = len(weights["tokens_to_token.attention1.norm1.weight"]) // 49
    if channels != model.in_chans:
        raise InputError(
            f"T2T-ViT with in_chans={model.in_chans} cannot take weights for {channels} channels, which its first layer "
            f"normalises together: give images with {channels} channels, or train from scratch with pretrained=False"
        )
    if weights["pos_embed"].shape != model.pos_embed.shape:
        weights["pos_embed"] = resample_abs_pos_embed(
            weights["pos_embed"], model.patch_embed.grid_size, num_prefix_tokens=1, antialias=False
        )
    return weights


def _without_autocast(device_type: str) -> AbstractContextManager[None]:
    """No autocast inside; devices such as meta have none."""
    active = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if active else nullcontext()


def _create(variant: str, pretrained: bool, **kwargs: Any) -> T2TViT:
    # The official training script saves its command line, a Namespace, along with the weights
    with torch.serialization.safe_globals([argparse.Namespace]):
        return build_model_with_cfg(
            T2TViT,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": 3, "feature_cls": "getter"},
            **kwargs,
        )


def _cfg(file: str, **kwargs: Any) -> dict[str, Any]:
    """Where timm's defaults hold for these weights (224 pixels, bicubic, ImageNet's mean and std, 1000 classes), they stay."""
    return {
        "url": f"https://github.com/yitu-opensource/T2T-ViT/releases/download/main/{file}",
        "fixed_input_size": True,
        "crop_pct": 0.9,
        "classifier": "head",
        "license": "bsd-3-clause-clear",
        "origin_url": "https://github.com/yitu-opensource/T2T-ViT",
        "paper_ids": "arXiv:2101.11986",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "t2t_vit_7.yitu_in1k": _cfg("71.7_T2T_ViT_7.pth.tar"),
        "t2t_vit_10.yitu_in1k": _cfg("75.2_T2T_ViT_10.pth.tar"),
        "t2t_vit_12.yitu_in1k": _cfg("76.5_T2T_ViT_12.pth.tar"),
        "t2t_vit_14.yitu_in1k": _cfg("81.5_T2T_ViT_14.pth.tar"),
        "t2t_vit_14.yitu_in1k_384": _cfg("83.3_T2T_ViT_14.pth.tar", input_size=(3, 384, 384)),
        "t2t_vit_19.yitu_in1k": _cfg("81.9_T2T_ViT_19.pth.tar"),
        "t2t_vit_24.yitu_in1k": _cfg("82.3_T2T_ViT_24.pth.tar"),
        "t2t_vit_t_14.yitu_in1k": _cfg("81.7_T2T_ViTt_14.pth.tar"),
        "t2t_vit_t_19.yitu_in1k": _cfg("82.4_T2T_ViTt_19.pth.tar"),
        "t2t_vit_t_24.yitu_in1k": _cfg("82.6_T2T_ViTt_24.pth.tar"),
    }
)
_LITE = {"embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0}
_T2T_14 = {"embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0}
_T2T_19 = {"embed_dim": 448, "depth": 19, "num_heads": 7, "mlp_ratio": 3.0}
_T2T_24 = {"embed_dim": 512, "depth": 24, "num_heads": 8, "mlp_ratio": 3.0}
_VARIANTS: dict[str, dict[str, Any]] = {
    "t2t_vit_7": _LITE | {"depth": 7},
    "t2t_vit_10": _LITE | {"depth": 10},
    "t2t_vit_12": _LITE | {"depth": 12},
    "t2t_vit_14": _T2T_14,
    "t2t_vit_19": _T2T_19,
    "t2t_vit_24": _T2T_24,
    "t2t_vit_t_14": _T2T_14 | {"token_layer": TokenTransformer},
    "t2t_vit_t_19": _T2T_19 | {"token_layer": TokenTransformer},
    "t2t_vit_t_24": _T2T_24 | {"token_layer": TokenTransformer},
}


def _register(variant: str) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> T2TViT:
        return _create(variant, pretrained, **(_VARIANTS[variant] | kwargs))

    build.__name__ = variant  # the name under which timm knows it
    register_model(build)


for _variant in _VARIANTS:
    _register(_variant)
