"""What there is to say of one image file: whether training can read it, and what is converted then."""

import hashlib
import os
from typing import NamedTuple

from PIL import Image

from dropkey_cli.data.arrays import is_array, load_picture
from dropkey_cli.data.reading import open_image, orientation
from dropkey_cli.errors import one_line

# What is read all the same, by a short name for programs.
NOTES = {
    "cmyk": "CMYK colours, converted to RGB",
    "palette": "colours from a palette, converted to RGB",
    "transparency": "transparency, put on white",
    "grey": "grey or black and white, repeated as red, green and blue",
    "grey_16_bit": "16-bit grey, scaled to 8 bits",
    "rotated": "turned or mirrored as their EXIF says",
    "frames": "several frames, of which the first is used",
    "other_format": "another format inside than their name says",
    "large": "so large that Pillow warns of them, and slow to read",
    "tiny": "less than 8 pixels high or wide",
}
_TO_RGB = ("cmyk", "palette", "transparency", "grey")
_TINY = 8


class Finding(NamedTuple):
    """One file: its size in bytes, why it cannot be read ("" if it can), and which of the `NOTES` hold for it."""

    size: int
    error: str
    notes: tuple[str, ...]


def inspect_file(path: str, channels: int = 3) -> Finding:
    """Read an image as training does, and say what was found.

    Args:
        path: The file.
        channels: The channels that the model sees.
    """
    try:
        load_picture(path, channels)
        size = os.path.getsize(path)
        if is_array(path):
            return Finding(size, "", ())
        with open_image(path) as image:
            notes = _notes(image, path)
            return Finding(size, "", tuple(note for note in notes if channels == 3 or note not in _TO_RGB))
    except OSError as error:
        return Finding(0, one_line(error), ())


def content_hash(path: str) -> bytes:
    """A number that two files share only if they hold the same bytes; empty if the file is gone."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return b""


def _notes(image: Image.Image, path: str) -> tuple[str, ...]:
    holds = {
        "cmyk": image.mode == "CMYK",
        "palette": image.mode in ("P", "PA"),
        "transparency": image.has_transparency_data,
        "grey": image.mode in ("1", "L", "LA", "La"),
        "grey_16_bit": image.mode.startswith("I"),
        "rotated": orientation(image) != 1,
        "frames": _has_frames(image),
        "other_format": _format_of_name(path) not in (None, "JPEG" if image.format == "MPO" else image.format),
        "large": image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")),
        "tiny": min(image.size) < _TINY,
    }
    return tuple(name for name in NOTES if holds[name])


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is damaged, the first was read
        return True


def _format_of_name(path: str) -> str | None:
    """The format that an extension stands for; None if it is none of an image, as in prediction."""
    return Image.registered_extensions().get(os.path.splitext(path)[1].lower())
