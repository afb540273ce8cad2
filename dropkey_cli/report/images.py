"""Small pictures of images, alone and under an attention map, for a page."""

import matplotlib
import torch
from PIL import Image
from torch import Tensor

from dropkey_cli.report.pictures import data_address

SIDE = 160
"""Of a picture in the page, in pixels; smaller images are enlarged by the browser, pixel by pixel."""
PHOTO = 64
"""Images with a longer side are photos, which JPEG shows as well in a fifth of the bytes."""


def thumbnail(image: Tensor) -> str:
    """The address of a picture of an image.

    Args:
        image: (C, height, width), 8-bit.
    """
    picture = to_picture(image)
    photo = max(picture.size) > PHOTO
    picture.thumbnail((SIDE, SIDE))
    return data_address(picture, photo=photo)


def overlay(image: Tensor, attention: Tensor, *, largest: float) -> str:
    """The address of a picture of an image in grey under its attention map, token by token.

    Args:
        image: (C, height, width), 8-bit.
        attention: (rows, columns) of the token grid.
        largest: The attention of the brightest colour.
    """
    grey = to_picture(image).convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST if image.shape[-1] <= PHOTO else None)
    colors = matplotlib.colormaps["inferno"]((attention / max(largest, 1e-12)).clamp(0, 1).numpy(), bytes=True)[..., :3]
    heat = Image.fromarray(colors).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return data_address(Image.blend(grey.convert("RGB"), heat, 0.65), photo=True)


def to_picture(image: Tensor) -> Image.Image:
    """(C, height, width), 8-bit, as PIL in RGB: transparency on white, of 2 channels the first, of many the first three."""
    channels = len(image)
    shown = image[:4] if channels == 4 else image[:3] if channels > 2 else image[:1].expand(3, -1, -1)
    picture = Image.fromarray(shown.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    if channels == 4:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
