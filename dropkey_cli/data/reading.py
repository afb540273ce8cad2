"""Finds image files and reads each as 8-bit RGB, the way a viewer would show it."""

import os
from array import array
from collections.abc import Iterable, Iterator
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


class Names:
    """File names, or others, in one block of memory.

    As Python strings each would take 60 bytes more, and again in every process that loads images: to look at an object is to
    write its reference count, which copies its page.

    Args:
        names: The names; they are gone through once.
    """

    def __init__(self, names: Iterable[str]) -> None:
        text = bytearray()
        self._ends = array("Q", [0])
        for name in names:
            text += os.fsencode(name)
            self._ends.append(len(text))
        self._text = bytes(text)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> str:
        """The name at a position, from 0."""
        return os.fsdecode(self._text[self._ends[position] : self._ends[position + 1]])


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
    found = list(_walk("" if root == Path() else str(root), seen=set()))
    if not found:
        raise InputError(
            f"--data.root {str(root)!r} holds no images; expected files ending in {', '.join(IMG_EXTENSIONS)}; "
            "check the path, or name one file"
        )
    return found


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    """The images in a folder and its sub-folders by name; ``seen`` are the folders visited so far."""
    seen.add(os.path.realpath(folder))
    try:
        with os.scandir(folder or ".") as entries:
            known = [entry for entry in entries if _is_wanted(entry, seen)]
    except OSError:  # a folder of somebody else's, such as lost+found
        return
    for entry in sorted(known, key=lambda entry: os.path.normcase(entry.name)):
        path = os.path.join(folder, entry.name)
        if _is_folder(entry):
            yield from _walk(path, seen)
        else:
            yield path


def _is_wanted(entry: os.DirEntry[str], seen: set[str]) -> bool:
    if not _is_folder(entry):
        return is_image_file(entry.name)
    return not entry.name.startswith(".") and os.path.realpath(entry.path) not in seen  # a link can lead back up


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or where one may not look
        return False
