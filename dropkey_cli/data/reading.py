"""Finds image files and reads each as 8-bit RGB, the way a viewer would show it."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from dropkey_cli.errors import InputError


def load_image(path: str | Path) -> Image.Image:
    """The image in a file as 8-bit RGB: EXIF rotation applied, transparency on white, 16-bit grey scaled down.

    Args:
        path: The file.

    Raises:
        OSError: If the file is missing, damaged, or holds pixels whose range is unknown; the text says which.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except OSError:
        raise
    except Exception as error:  # Pillow's decoders raise SyntaxError, ValueError, struct.error … for damaged files
        raise OSError(f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255; ``convert`` would clip everything above 255 to white."""
    if image.mode == "F":
        raise OSError("its pixels are 32-bit floats, whose range is unknown; save it with 8 or 16 bits per channel")
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise OSError(
            f"its grey values lie in {pixels.min()}..{pixels.max()}, expected 0..65535; save it with 8 or 16 bits per channel"
        )
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def is_image_file(path: str | Path) -> bool:
    """Whether a file name says that it is an image: a known extension in any case, and not hidden.

    Args:
        path: The file; only its name is looked at.
    """
    name = os.path.basename(path)
    return not name.startswith(".") and name.lower().endswith(IMG_EXTENSIONS)


def list_images(root: str | Path) -> list[str]:
    """The images that a path stands for: the file itself, or all in a folder and its sub-folders, sorted.

    Args:
        root: A file of any extension, or a folder; hidden files and folders in it are skipped.

    Raises:
        InputError: If the path does not exist or the folder holds no image.
    """
    root = Path(root).expanduser()
    if root.is_file():
        return [str(root)]
    if not root.is_dir():
        raise InputError(f"--data.root {str(root)!r} does not exist; expected an image or a folder; check the path")
    found: list[Path] = []
    seen: set[str] = set()  # a link can lead back to a folder above it
    for folder, subfolders, names in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(folder))
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and os.path.realpath(Path(folder, name)) not in seen
        ]
        found += [Path(folder, name) for name in names if is_image_file(name)]
    if not found:
        raise InputError(
            f"--data.root {str(root)!r} holds no images; expected files ending in {', '.join(IMG_EXTENSIONS)}; "
            "check the path, or name one file"
        )
    return [str(path) for path in sorted(found)]
