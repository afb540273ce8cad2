"""How the keys of an attention layer lie on the token grid: what the structures block and cross need to know.

Only square images, and what can have but one meaning: a wrong grid would train without a word.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.known import class_name
from dropkey_cli.patching.selection import AttentionLayer

UNORDERED = {
    "timm.layers.patch_dropout.PatchDropout": "patch_drop_rate leaves random tokens",
    "timm.layers.patch_dropout.PatchDropoutWithIndices": "patch_drop_rate leaves random tokens",
    "timm.models.naflexvit.NaFlexVit": "the model takes images of any proportions",
}
"""Modules in whose models no layer has a grid, and why."""


def key_layouts(
    layers: Sequence[AttentionLayer], model: nn.Module, example_inputs: tuple[Any, ...], settings: DropKeySettings
) -> list[KeyLayout | None]:
    """How each layer's keys lie on a grid; None where they do not.

    Args:
        layers: The layers that take DropKey.
        model: Their model.
        example_inputs: What the layers were found on; the first (B, C, height, width) of them are the images.
        settings: Structure and window size.

    Raises:
        InputError: If a layer has no grid and the structure (block or cross) needs one.
    """
    why_none = _why_no_layer_has_one(model, example_inputs)
    layouts: list[KeyLayout | None] = []
    for layer in layers:
        why = why_none or layer.rule.no_grid or _why_not(model.get_submodule(layer.name))
        layout = None if why else _layout(layer.keys, _prefix_tokens(model), settings.window_size)
        if layout is None and settings.structure in ("block", "cross"):
            raise InputError(
                f"structure {settings.structure!r} needs keys on a grid; layer {layer.name!r} ({layer.class_name}) has none: "
                f"{why or f'its {layer.keys} keys are not those of a square'}. Choose structure element or key, or leave the "
                f"layer out (exclude: [{layer.class_name!r}])"
            )
        layouts.append(layout)
    return layouts


def _why_no_layer_has_one(model: nn.Module, example_inputs: tuple[Any, ...]) -> str:
    images = [value for value in example_inputs if isinstance(value, Tensor) and value.dim() == 4]
    if not images:
        return "the model's input is no image (B, C, height, width)"
    height, width = images[0].shape[-2:]
    if height != width:
        return f"images are {height} × {width}, and only square ones are supported"
    return next((UNORDERED[name] for name in map(class_name, map(type, model.modules())) if name in UNORDERED), "")


def _why_not(module: nn.Module) -> str:
    window = getattr(module, "window_size", None)
    return f"its windows are {window}, not square" if isinstance(window, tuple) and len(set(window)) > 1 else ""


def _prefix_tokens(model: nn.Module) -> int:
    """Tokens in front of the patches, such as the class token; some layers may see the patches alone, or fewer of these."""
    for module in model.modules():  # the model may be wrapped
        if hasattr(module, "num_prefix_tokens"):
            return int(module.num_prefix_tokens)  # type: ignore[arg-type]  # timm's number
        if isinstance(getattr(module, "cls_token", None), Tensor):
            return len(module.cls_token[0])  # type: ignore[index]  # (1, prefix tokens, C)
    return 0


def _layout(keys: int, prefix_tokens: int, window_size: int) -> KeyLayout | None:
    """The only square of keys, behind all prefix tokens, one, or none, that adds up to ``keys``; None if there are more."""
    sides = {prefix: math.isqrt(keys - prefix) for prefix in {prefix_tokens, 0, 1} if prefix < keys}
    fitting = [KeyLayout(side, side, prefix, window_size) for prefix, side in sides.items() if prefix + side**2 == keys]
    return fitting[0] if len(fitting) == 1 else None
