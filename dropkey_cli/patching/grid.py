"""How the keys of an attention layer lie on the token grid: what the structures block and cross need to know."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.selection import AttentionLayer


def key_layouts(
    layers: Sequence[AttentionLayer], model: nn.Module, example_inputs: tuple[Any, ...], settings: DropKeySettings
) -> list[KeyLayout | None]:
    """How each layer's keys lie on a grid; None where they do not.

    Args:
        layers: The layers that take DropKey.
        model: Their model; timm's ``num_prefix_tokens`` counts the keys in front of the grid.
        example_inputs: What the layers were found on; the first (B, C, height, width) of them are the images.
        settings: Structure and window size.

    Raises:
        InputError: If a layer has no grid and the structure (block or cross) needs one.
    """
    images = [value for value in example_inputs if isinstance(value, Tensor) and value.dim() == 4]
    layouts: list[KeyLayout | None] = [None] * len(layers)
    if images:
        height, width = images[0].shape[-2:]
        prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        layouts = [_layout(layer, height, width, prefix_tokens, settings.window_size) for layer in layers]
    if settings.structure in ("block", "cross"):
        for layer, layout in zip(layers, layouts, strict=True):
            if layout is None:
                raise InputError(_no_grid(layer, settings.structure))
    return layouts


def _layout(layer: AttentionLayer, height: int, width: int, prefix_tokens: int, window_size: int) -> KeyLayout | None:
    if layer.rule.no_grid:
        return None
    # What the model says of its prefix first; some with a class token say nothing, and in some it joins late.
    for prefix in dict.fromkeys((prefix_tokens, 0, 1)):
        # The grid of the image, or a square window of it
        grids = {grid for sides in ((height, width), (1, 1)) if (grid := _grid(layer.keys - prefix, *sides))}
        if len(grids) == 1:
            rows, columns = grids.pop()
            return KeyLayout(rows, columns, prefix, window_size)
    return None


def _grid(keys: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of ``keys`` keys in the exact proportions height : width."""
    columns = math.isqrt(max(keys, 0) * width // height)
    rows = keys // columns if columns else 0
    return (rows, columns) if rows and rows * columns == keys and rows * width == columns * height else None


def _no_grid(layer: AttentionLayer, structure: str) -> str:
    why = layer.rule.no_grid or f"its {layer.keys} keys form no grid in the proportions of the images"
    return (
        f"structure {structure!r} needs keys on a grid; layer {layer.name!r} ({layer.class_name}) has none: {why}. "
        f"Choose --model.dropkey.structure element or key, or leave the layer out (exclude: [{layer.class_name!r}])"
    )
