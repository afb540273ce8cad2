"""Images in class folders: the folder name is the class; missing splits are made here, reproducibly."""

import os
from typing import Literal

from dropkey_cli.data.class_folders import LAYOUT, check_classes, check_counts, find_classes, find_splits, list_samples
from dropkey_cli.data.image_files import ImageFiles
from dropkey_cli.errors import InputError


class ImageFolder(ImageFiles):
    """Images in class folders: ROOT/train/CLASS/, ROOT/val/CLASS/ and ROOT/test/CLASS/, or just ROOT/CLASS/.

    A validation split that is not there is held out from the training images, class by class, always the same one.
    Size, mean, std, interpolation and crop are the model's own unless they are given.

    Args:
        root: Folder with the images. In prediction: an image, or a folder that is searched with its sub-folders.
        val_fraction: Share of each class held out for validation where there is no val/, validation/ or valid/.
        test_fraction: Share of each class held out for the test where there is no test/; 0 holds out none.
        split_seed: Which images are held out; the same number and file names give the same split, and an image that is
            added or removed moves at most one other of its class.
        class_names: Classes in label order. By default the training folders', sorted; in test and validation the
            checkpoint's.
        image_size: Height and width that the model sees, in pixels.
        mean: Mean of red, green and blue, for values in [0, 1].
        std: Standard deviation of red, green and blue, for values in [0, 1].
        interpolation: How images are resized, e.g. ``bicubic``.
        crop_pct: Share of the resized image that the centre crop keeps in evaluation.
        crop_mode: What evaluation does with an image that is not square: center, squash or border.
        crop_scale: Smallest and largest share of the area that a training crop covers.
        hflip: Probability of mirroring a training image left and right.
        on_error: What an image that cannot be read does: raise ends the run with its name; skip leaves it out, of training
            and of metrics, names it and counts it.
        batch_size: Images per step and device.
        num_workers: Processes that load images; by default one per usable core, at most 8. 0 needs no extra process.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        class_names: list[str] | None = None,
        image_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
        crop_scale: tuple[float, float] = (0.35, 1.0),
        hflip: float = 0.5,
        on_error: Literal["raise", "skip"] = "raise",
        batch_size: int = 64,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(root=root, batch_size=batch_size, num_workers=num_workers)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.class_names = list(class_names or [])
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.crop_pct = crop_pct
        self.crop_mode = crop_mode
        self.crop_scale = crop_scale
        self.hflip = hflip
        self.on_error = on_error

    def read_splits(self) -> None:
        """Find the images of every split; hold out those that have no folder."""
        transforms = self.transforms()
        folders = find_splits(self.root)
        if not self.class_names and "train" not in folders:
            raise InputError(f"{self.root!r} has no train/ that names the classes; {LAYOUT}; add train/")
        class_names = self.class_names or find_classes(folders["train"])
        check_classes(folders, class_names)
        samples = {split: list_samples(folder, class_names) for split, folder in folders.items()}
        if "train" in samples:
            num_parts = 1 + len(self.shares_to_hold_out([*samples]))
            check_counts(samples["train"], folders["train"], class_names, minimum=num_parts)
        self.make_splits(samples, class_names, transforms, base=os.path.expanduser(str(self.root)))
