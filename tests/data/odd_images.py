"""Odd and damaged files, each with what reading it must give, worked out by hand."""

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

Write = Callable[[Path], object]
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
# 32 × 16 pixels: the left half red, the right half blue
PIXELS = np.zeros((16, 32, 3), dtype=np.uint8)
PIXELS[:, :16], PIXELS[:, 16:] = RED, BLUE
PICTURE = Image.fromarray(PIXELS)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


class Odd(NamedTuple):
    """One file and what reading must give: pixels as (height, width, 3), or a reason that matches."""

    write: Write
    pixels: np.ndarray | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


def good(write: Write, pixels: np.ndarray = PIXELS, *notes: str) -> Odd:
    """A file that can be read."""
    return Odd(write, pixels=pixels, notes=notes)


def bad(write: Write, reason: str) -> Odd:
    """A file that cannot."""
    return Odd(write, reason=reason)


def save(image: Image.Image, kind: str, **options: object) -> Write:
    """Write an image as a kind of file, whatever the name says."""
    return content(encoded(image, kind, **options))


def content(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    options = {"quality": 95, "subsampling": 0, **options} if kind in ("JPEG", "MPO") else options
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def link(target: str) -> Write:
    return lambda path: path.symlink_to(target)


def forbidden(path: Path) -> None:
    path.write_bytes(PLAIN_PNG)
    path.chmod(0)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one row."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def with_text_bomb(png: bytes) -> bytes:
    """The PNG with 5 megabytes of compressed text after its header."""
    after_header = 8 + 25
    return png[:after_header] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b" " * 5_000_000)) + png[after_header:]


def with_broken_exif(jpeg: bytes, exif: bytes) -> bytes:
    """The JPEG with an EXIF segment of its own in front."""
    segment = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def grey(values: list[int], dtype: type) -> Image.Image:
    return Image.fromarray(np.tile(np.array(values, dtype=dtype), (8, 4)))  # (8, 4 × values)


def as_rgb(values: list[int]) -> np.ndarray:
    """The pixels of `grey` as reading must give them."""
    return np.repeat(np.tile(np.array(values, dtype=np.uint8), (8, 4))[..., None], 3, axis=2)


def on_white(alpha_left: int) -> np.ndarray:
    """The picture whose left half has an alpha of 0 or 255."""
    pixels = PIXELS.copy()
    pixels[:, :16] = RED if alpha_left else WHITE
    return pixels


def rgba() -> Image.Image:
    alpha = Image.fromarray(np.where(np.arange(32) < 16, 0, 255).astype(np.uint8)[None].repeat(16, axis=0))
    image = PICTURE.copy()
    image.putalpha(alpha)
    return image


def palette() -> Image.Image:
    image = Image.fromarray((np.arange(32) >= 16).astype(np.uint8)[None].repeat(16, axis=0), mode="P")
    image.putpalette([*RED, *BLUE])
    return image


def cmyk() -> Image.Image:
    image = Image.new("CMYK", (32, 16), (0, 255, 255, 0))  # red
    image.paste((255, 255, 0, 0), (16, 0, 32, 16))  # blue
    return image


def many_texts() -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    for number in range(20):
        texts.add_text(f"key{number}", "a word " * 100, zip=True)
    return texts


JPEG, PNG, WEBP = encoded(NOISE, "JPEG"), encoded(NOISE, "PNG"), encoded(NOISE, "WEBP", quality=95)
PLAIN_JPEG, PLAIN_PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")
TURNED = np.rot90(PIXELS, k=-1)  # clockwise: red on top
OTHER = Image.new("RGB", (32, 16), "green")
FRAMES: dict[str, object] = {"save_all": True, "append_images": [OTHER]}

ODD: dict[str, Odd] = {
    # what can be read
    "plain.png": good(save(PICTURE, "PNG")),
    "UPPER.JPG": good(save(PICTURE, "JPEG")),
    "ünï ☃.png": good(save(PICTURE, "PNG")),
    "new\nline.png": good(save(PICTURE, "PNG")),
    "link.png": good(link("plain.png")),
    "folder.jpg/inner.png": good(save(PICTURE, "PNG")),
    "content_is_png.jpg": good(save(PICTURE, "PNG"), PIXELS, "other_format"),
    "texts.png": good(save(PICTURE, "PNG", pnginfo=many_texts())),
    "cmyk.jpg": good(save(cmyk(), "JPEG"), PIXELS, "cmyk"),
    "cmyk.tif": good(save(cmyk(), "TIFF"), PIXELS, "cmyk"),
    "palette.png": good(save(palette(), "PNG"), PIXELS, "palette"),
    "palette_transparent.png": good(save(palette(), "PNG", transparency=b"\0\xff"), on_white(0), "palette", "transparency"),
    "rgba.png": good(save(rgba(), "PNG"), on_white(0), "transparency"),
    "colour_key.png": good(save(PICTURE, "PNG", transparency=RED), on_white(0), "transparency"),
    "la.png": good(
        save(Image.merge("LA", (grey([0, 9], np.uint8), grey([0, 255], np.uint8))), "PNG"),
        as_rgb([255, 9]),
        "transparency",
        "grey",
    ),
    "grey.png": good(save(grey([3, 200], np.uint8), "PNG"), as_rgb([3, 200]), "grey"),
    "grey_16_bit.png": good(save(grey([0, 257, 65535], np.uint16), "PNG"), as_rgb([0, 1, 255]), "grey_16_bit"),
    "one_bit.png": good(save(grey([0, 255], np.uint8).convert("1"), "PNG"), as_rgb([0, 255]), "grey"),
    "animated.gif.png": good(save(palette(), "GIF", **FRAMES), PIXELS, "palette", "frames", "other_format"),
    "animated.webp": good(save(PICTURE, "WEBP", lossless=True, **FRAMES), PIXELS, "frames"),
    "animated.png": good(save(PICTURE, "PNG", **FRAMES), PIXELS, "frames"),
    "pages.tif": good(save(PICTURE, "TIFF", **FRAMES), PIXELS, "frames"),
    "stereo.jpg": good(save(PICTURE, "MPO", **FRAMES), PIXELS, "frames"),
    "rotated.jpg": good(save(PICTURE, "JPEG", exif=exif(6)), TURNED, "rotated"),
    "rotated.tif": good(save(PICTURE, "TIFF", exif=exif(6)), TURNED, "rotated"),
    "rotated.png": good(save(PICTURE, "PNG", exif=exif(6)), TURNED, "rotated"),
    "mirrored.webp": good(save(PICTURE, "WEBP", lossless=True, exif=exif(2)), PIXELS[:, ::-1], "rotated"),
    "unknown_orientation.jpg": good(save(PICTURE, "JPEG", exif=exif(99))),
    "exif_is_noise.jpg": good(content(with_broken_exif(PLAIN_JPEG, b"no EXIF at all"))),
    "exif_is_cut.jpg": good(content(with_broken_exif(PLAIN_JPEG, b"MM\0*\0\0\0\x08\0\x05\x01\x12"))),
    # A whole orientation, then an entry that points outside: turned all the same
    "exif_tail_broken.jpg": good(
        content(
            with_broken_exif(
                PLAIN_JPEG,
                b"MM\0*\0\0\0\x08\0\x02"
                + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
                + struct.pack(">HHII", 0x10F, 2, 99, 1 << 30),
            )
        ),
        TURNED,
        "rotated",
    ),
    "without_end.png": good(content(PLAIN_PNG[:-12])),
    "tiny.png": good(save(Image.new("RGB", (1, 1), RED), "PNG"), np.array([[RED]]), "tiny"),
    # what cannot
    "empty.jpg": bad(content(b""), "^the file is empty$"),
    "text.jpg": bad(content(b"not an image"), "cannot identify image file"),
    "page.jpg": bad(content(b"<!DOCTYPE html><html><body>404 Not Found</body></html>"), "cannot identify image file"),
    "postscript.jpg": bad(save(PICTURE, "EPS"), "it is a PostScript program"),
    "cut_20_bytes.jpg": bad(content(JPEG[:20]), "cannot identify|truncated"),
    "cut_half.jpg": bad(content(JPEG[: len(JPEG) // 2]), "truncated"),
    "cut_tenth.jpg": bad(content(JPEG[: -len(JPEG) // 10]), "truncated"),
    "cut_in_header.png": bad(content(PNG[:20]), "cannot identify|[Tt]runcated"),
    "cut_half.png": bad(content(PNG[: len(PNG) // 2]), "truncated"),
    "cut_tenth.png": bad(content(PNG[: -len(PNG) // 10]), "truncated"),
    "cut_half.webp": bad(content(WEBP[: len(WEBP) // 2]), "cannot identify|decode|truncated"),
    "header_checksum.png": bad(content(flipped(PLAIN_PNG, 29)), "cannot identify|broken PNG"),
    "pixels_damaged.png": bad(content(flipped(PNG, len(PNG) // 2)), "broken|[Dd]ecod|truncated"),
    "float.tif": bad(save(Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "TIFF"), "32-bit floats"),
    "range.tif": bad(save(grey([0, 70000], np.int32), "TIFF"), r"grey values lie in 0\.\.70000"),
    "bomb.png": bad(content(png_of_size(50_000, 50_000)), r"2500000000 pixels\) exceeds limit of 178956970 pixels"),
    "text_bomb.png": bad(content(with_text_bomb(PLAIN_PNG)), "MAX_TEXT"),
    "dead_link.jpg": bad(link("nowhere.jpg"), "^it is a link to 'nowhere.jpg', which does not exist$"),
    "own_link.jpg": bad(link("own_link.jpg"), "symbolic links"),
}
if hasattr(os, "mkfifo"):
    ODD["pipe.jpg"] = bad(os.mkfifo, "^it is a pipe, not a file$")
if Path("/dev/zero").is_char_device():
    ODD["device.jpg"] = bad(link("/dev/zero"), "^it is a device, not a file$")
if os.name == "posix" and os.uname().sysname == "Linux":
    ODD[os.fsdecode(b"latin \xff.png")] = good(save(PICTURE, "PNG"))
if hasattr(os, "geteuid") and os.geteuid():
    ODD["forbidden.png"] = bad(forbidden, "Permission denied")


def write_all(folder: Path) -> None:
    """Make them all in a folder."""
    for name, odd in ODD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        odd.write(folder / name)
