"""Finds image files and reads each as 8-bit RGB, the way a viewer would show it, or as grey or with transparency."""

import os
import stat
import warnings
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from dropkey_cli.errors import InputError, near_path

_TURNS = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


ImageFile = str | Path | BytesIO | Image.Image
"""A file, its content in memory, or an image that a library has decoded."""
Stamp = tuple[int, ...] | None
Stamps = dict[str, Stamp]
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def load_image(file: ImageFile, *, channels: int = 3) -> Image.Image:
    """The image in a file as 8-bit RGB: EXIF rotation applied, transparency on white, 16-bit grey scaled down.

    Of several frames, it is the first. EXIF that is damaged turns nothing.

    Args:
        file: The file, or what stands for it.
        channels: 1 for grey instead of RGB, 4 for RGB with its transparency.

    Raises:
        OSError: If it is no file, is missing, damaged or too large, or its pixels' range is unknown; the text says which.
    """
    with open_image(file) as image:
        image.load()
        method = _TURNS.get(orientation(image))
        return _convert(image if method is None else image.transpose(method), _MODES[channels])


@contextmanager
def open_image(file: ImageFile) -> Iterator[Image.Image]:
    """The image in a file with its header read and no pixel; all that Pillow raises for it is an OSError.

    Args:
        file: The file, or what stands for it.

    Raises:
        OSError: If the header shows that `load_image` would refuse it; the text says why.
    """
    try:
        if isinstance(file, str | Path):
            check_file(file)
        elif isinstance(file, BytesIO) and not file.getbuffer():
            raise OSError("the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image is read or refused; Pillow's remarks would come from every process
            with file if isinstance(file, Image.Image) else Image.open(file) as image:
                if image.format == "EPS":  # which Pillow would give to Ghostscript, to run
                    raise OSError("it is a PostScript program, not an image; save it as PNG or JPEG")
                if image.mode == "F":
                    raise OSError("its pixels are 32-bit floats, whose range is unknown; save it with 8 or 16 bits per channel")
                yield image
    except Exception as error:  # Pillow's decoders raise SyntaxError, ValueError, struct.error … for damaged files
        if isinstance(error, UnidentifiedImageError) and isinstance(file, BytesIO):
            raise OSError("cannot identify image file") from error  # Pillow names the place in memory
        if isinstance(error, OSError) and str(error):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 is upright, and so is what its EXIF does not say or is too damaged to say."""
    try:
        given = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # what it raises depends on where the damage is
        return 1
    return given if given in _TURNS else 1


def check_file(path: str | Path) -> None:
    """Refuse what holds no bytes; opening a pipe would wait for its writer.

    Args:
        path: The file.

    Raises:
        OSError: The text says why.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        if not os.path.islink(path):
            raise
        raise OSError(f"it is a link to {os.readlink(path)!r}, which does not exist") from error
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise OSError(f"it is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file")
    if status.st_size == 0:
        raise OSError("the file is empty")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = _to_8_bit(image)
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255; ``convert`` would clip everything above 255 to white."""
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


def extensions(channels: int) -> tuple[str, ...]:
    """The ends of the names of images with so many channels; .npy is an array, which for RGB would rather be features."""
    images = IMG_EXTENSIONS if channels in _MODES else ()
    return images if channels == 3 else (*images, ".npy")


def is_image_file(path: str | Path, *, channels: int = 3) -> bool:
    """Whether a file name says that it is an image: a known extension in any case, and not hidden.

    Args:
        path: The file; only its name is looked at.
        channels: The channels that the model sees.
    """
    name = os.path.basename(path)
    return not name.startswith(".") and name.lower().endswith(extensions(channels))


def list_images(root: str | Path, *, channels: int = 3) -> list[str]:
    """The images that a path stands for: the file itself, or all in a folder and its sub-folders, sorted.

    Args:
        root: A file of any extension, or a folder; hidden files and folders in it are skipped.
        channels: The channels that the model sees.

    Raises:
        InputError: If the path does not exist or the folder holds no image.
    """
    root = Path(root).expanduser()
    if root.exists() and not root.is_dir():
        return [str(root)]
    if not root.is_dir():
        near = near_path(str(root))
        raise InputError(f"--data.root {str(root)!r} does not exist; expected an image or a folder; check the path{near}")
    found = list(walk_images("" if root == Path() else str(root), seen=set(), channels=channels))
    if not found:
        raise InputError(
            f"--data.root {str(root)!r} holds no images; expected files ending in {', '.join(extensions(channels))}; "
            "check the path, or name one file"
        )
    return found


def walk_images(folder: str, seen: set[str], *, channels: int = 3, stamps: Stamps | None = None) -> Iterator[str]:
    """What is named like an image in a folder and its sub-folders, by name; hidden files and folders are skipped.

    Args:
        folder: The folder; empty for the current one.
        seen: The real paths of folders that are not entered; those that were visited are added.
        channels: The channels that the model sees.
        stamps: Gets the state of all that was looked at, as it was before.
    """
    seen.add(os.path.realpath(folder))
    if stamps is not None:
        stamps[os.path.abspath(folder)] = stamp(folder or ".")
    try:
        with os.scandir(folder or ".") as entries:
            known = [entry for entry in entries if _is_wanted(entry, seen, channels, stamps)]
    except OSError:  # a folder of somebody else's, such as lost+found
        return
    prefix = os.path.join(folder, "")
    for entry in sorted(known, key=lambda entry: os.path.normcase(entry.name)):
        path = prefix + entry.name
        if not is_folder(entry):
            yield path
        elif os.path.realpath(path) not in seen:  # nor may it have been visited since
            yield from walk_images(path, seen, channels=channels, stamps=stamps)


def stamp(path: str) -> Stamp:
    """What changes when a folder gets, loses or renames an entry, or when a link leads elsewhere; None if there is nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns  # st_dev is another after a reboot


def _is_wanted(entry: os.DirEntry[str], seen: set[str], channels: int, stamps: Stamps | None) -> bool:
    if stamps is not None and entry.is_symlink() and not is_image_file(entry.name, channels=channels):
        stamps[os.path.abspath(entry.path)] = stamp(entry.path)  # what it leads to may be a folder, or become one
    if not is_folder(entry):
        return is_image_file(entry.name, channels=channels)
    return not entry.name.startswith(".") and os.path.realpath(entry.path) not in seen  # a link can lead back up


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; a link to itself, or where one may not look, does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False
