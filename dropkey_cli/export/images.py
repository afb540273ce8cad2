"""The images on which an export is compared with its network: those it was trained on, where they still are."""

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from dropkey_cli.data.arrays import load_picture
from dropkey_cli.data.preprocessing import Preprocessing, eval_transform
from dropkey_cli.data.reading import list_images, walk_images
from dropkey_cli.errors import InputError

NUM_IMAGES = 8
MOST_TRIED = 100


def images_to_compare(preprocessing: Preprocessing, *, given: str | None, root: object) -> tuple[Tensor, str]:
    """Images as the network sees them, and what they are, in a phrase.

    Args:
        preprocessing: How images reach the network.
        given: A file or folder to take them of; None for ``root``.
        root: What the network was trained on; where it is no folder, or has no image, they are random.

    Returns:
        float32, (8, C, height, width); fewer images are repeated.

    Raises:
        InputError: If none of the ``given`` ones can be read.
    """
    channels = preprocessing.channels
    if given is not None:
        if not Path(given).expanduser().exists():
            raise InputError(f"--images {given!r} does not exist: give an image or a folder of images")
        found = [images for path in list_images(given, channels=channels)[:MOST_TRIED] for images in _read(path, preprocessing)]
        if not found:
            raise InputError(f"--images {given!r} has no image that can be read: give another file or folder")
    else:
        folder = str(root) if isinstance(root, str) and Path(root).expanduser().is_dir() else None
        paths = islice(walk_images(str(Path(folder).expanduser()), seen=set(), channels=channels), MOST_TRIED) if folder else ()
        found = list(islice((image for path in paths for image in _read(path, preprocessing)), NUM_IMAGES))
        given = folder
    if not found:
        size = (NUM_IMAGES, len(preprocessing.mean), preprocessing.image_size, preprocessing.image_size)
        random = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return preprocessing.normalize(random), f"{NUM_IMAGES} random images (--images PATH gives real ones)"
    found = found[:NUM_IMAGES]
    text = f"{len(found)} image{'s'[: len(found) != 1]} of {given}"
    return preprocessing.normalize(torch.stack([found[place % len(found)] for place in range(NUM_IMAGES)])), text


def _read(path: str, preprocessing: Preprocessing) -> list[Tensor]:
    """The image, 8-bit; nothing where it cannot be read."""
    try:
        return [eval_transform(preprocessing)(load_picture(path, preprocessing.channels))]
    except OSError:
        return []
