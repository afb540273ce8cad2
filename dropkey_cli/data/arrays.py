"""Reads images of any number of channels: image files as grey, RGB or RGBA, .npy arrays as they are."""

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image

from dropkey_cli.data.preprocessing import Picture
from dropkey_cli.data.reading import ImageFile, check_file, load_image, open_image


def load_picture(file: ImageFile, channels: int) -> Picture:
    """The image in a file with so many channels of 8 bits.

    Args:
        file: An image file or what stands for it, or a .npy file ``(height, width, channels)``; 16 bits per channel are
            scaled down to 8.
        channels: 1 for grey, 3 for red, green and blue, 4 with transparency; any other number is that of a .npy array.

    Raises:
        OSError: If it cannot be read so; the text says why.
    """
    if not isinstance(file, str | Path) or not is_array(file):
        _check_channels(channels)
        return load_image(file, channels=channels)
    pixels = _open_array(file, channels)
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if channels in (1, 3):  # as an image, which takes every augmentation
        return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if channels == 1 else pixels))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def check_header(path: str | Path, channels: int) -> None:
    """Refuse what `load_picture` would, as far as a file shows it without its pixels.

    Args:
        path: The file.
        channels: The channels that the model sees.

    Raises:
        OSError: The text says why.
    """
    if is_array(path):
        _open_array(path, channels)
        return
    _check_channels(channels)
    with open_image(path):
        pass


def is_array(path: str | Path) -> bool:
    """Whether a file name says that it holds an array."""
    return str(path).lower().endswith(".npy")


def _check_channels(channels: int) -> None:
    if channels not in (1, 3, 4):
        raise OSError(f"it is no array; {channels} channels are read from .npy files (height, width, {channels})")


def _open_array(path: str | Path, channels: int) -> np.ndarray:
    """The array in a file, (height, width, channels), not yet read."""
    expected = f"(height, width, {channels}) of uint8 or uint16"
    check_file(path)
    try:
        array: np.ndarray = open_memmap(path, mode="r")  # of objects, which are a pickle, it makes none
    except OSError:
        raise
    except Exception as error:  # of a damaged header: SyntaxError, ValueError, EOFError …
        raise OSError(f"it is no array that can be read ({type(error).__name__}: {error}); expected {expected}") from error
    if array.ndim == 2 and channels == 1:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] != channels or array.dtype not in (np.uint8, np.uint16) or not array.size:
        raise OSError(f"it is an array {array.shape} of {array.dtype}, expected {expected}; save it so")
    limit = 2 * (Image.MAX_IMAGE_PIXELS or array.size)  # as Pillow's for image files
    if array.shape[0] * array.shape[1] > limit:
        raise OSError(f"it has {array.shape[0] * array.shape[1]} pixels, more than {limit}; cut or shrink it")
    return array
