"""What sources of labelled image files share: preprocessing, held-out splits, a quick look at the files."""

import os
from collections import Counter
from typing import Literal

from dropkey_cli.data.check import missing_note, refuse_unreadable
from dropkey_cli.data.dataset import ImageDataset, Sample, classes_of
from dropkey_cli.data.module import ImageData
from dropkey_cli.data.preprocessing import Preprocessing, Transform, eval_transform, train_transform
from dropkey_cli.data.split import stratified_split
from dropkey_cli.errors import InputError


class ImageFiles(ImageData):
    """Labelled image files. A source finds them in ``read_splits``; its constructor sets the options below.

    Attributes:
        val_fraction: Share of each class held out for validation where there are no validation images.
        test_fraction: Share of each class held out for the test where there are no test images; 0 holds out none.
        split_seed: Which images are held out.
        image_size: Height and width that the model sees; as the next five, None until it is known from the model.
        mean: Mean of red, green and blue.
        std: Standard deviation of red, green and blue.
        interpolation: How images are resized.
        crop_pct: Share of the resized image that the centre crop keeps in evaluation.
        crop_mode: What evaluation does with an image that is not square.
        crop_scale: Smallest and largest share of the area that a training crop covers.
        hflip: Probability of mirroring a training image.
        on_error: What an image that cannot be read does.
    """

    val_fraction: float
    test_fraction: float
    split_seed: int
    image_size: int | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    interpolation: str | None
    crop_pct: float | None
    crop_mode: str | None
    crop_scale: tuple[float, float]
    hflip: float
    on_error: Literal["raise", "skip"]

    @property
    def preprocessing(self) -> Preprocessing:
        """How images reach the model.

        Raises:
            InputError: If one of the five values is neither given nor filled in from the model.
        """
        size, mean, std = self.image_size, self.mean, self.std
        interpolation, crop_pct = self.interpolation, self.crop_pct
        if size is None or mean is None or std is None or interpolation is None or crop_pct is None:
            names = ("image_size", "mean", "std", "interpolation", "crop_pct")
            missing = [name for name in names if getattr(self, name) is None]
            raise InputError(
                f"{', '.join(missing)} not given and not known from the model; "
                f"give {', '.join('--data.' + name for name in missing)}"
            )
        return Preprocessing(size, mean, std, interpolation, crop_pct, self.crop_mode or "center")

    def setup(self, stage: str) -> None:
        """Find the images; refuse unreadable ones before anything is computed, as far as a quick look shows them."""
        super().setup(stage)
        if self.on_error == "raise":
            used = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ())
            refuse_unreadable(self.root, [self.splits[split].paths for split in used if split in self.splits])

    def transforms(self) -> dict[str, Transform]:
        """What is done to the images of each split; to be called first, because it refuses options that cannot work."""
        preprocessing = self.preprocessing
        train = train_transform(preprocessing, crop_scale=self.crop_scale, hflip=self.hflip)
        evaluation = eval_transform(preprocessing)
        return {"train": train, "val": evaluation, "test": evaluation}

    def make_splits(
        self, samples: dict[str, list[Sample]], class_names: list[str], transforms: dict[str, Transform], *, base: str
    ) -> None:
        """Hold out the splits that have no images, and make the data sets.

        Args:
            samples: The images of each split that is there, sorted by path.
            class_names: The classes in label order.
            transforms: From `transforms`.
            base: The folder that the images' names are relative to: they decide which are held out.
        """
        if "train" in samples:
            samples = samples | self._hold_out(samples["train"], self.shares_to_hold_out([*samples]), base)
        self.split_note = " ".join(filter(None, (self.split_note, missing_note(samples, class_names)))) or None
        self.class_names = class_names
        self.splits = {
            split: ImageDataset(
                samples[split],
                transform,
                image_size=self.preprocessing.image_size,
                on_error=self.on_error,
                num_labels=len(class_names) if self.multi_label else None,
            )
            for split, transform in transforms.items()
            if split in samples
        }

    def shares_to_hold_out(self, splits: list[str]) -> dict[str, float]:
        """Share of the training images for each split that has none of its own.

        Args:
            splits: Those that have.
        """
        if "test" in splits and self.test_fraction:
            raise InputError(
                f"test_fraction is {self.test_fraction!r}, but {self.root!r} has test/ already; expected one of them; "
                "give --data.test_fraction 0"
            )
        shares = {} if "val" in splits else {"val": self.val_fraction}
        if self.test_fraction:
            shares["test"] = self.test_fraction
        for split, share in shares.items():
            if not 0 < share < 1:
                raise InputError(
                    f"{split}_fraction is {share!r}; expected a share between 0 and 1; "
                    f"give e.g. --data.{split}_fraction 0.2, or {self.remedy.format(split)}"
                )
        if sum(shares.values()) >= 1:
            raise InputError(
                f"val_fraction {self.val_fraction!r} and test_fraction {self.test_fraction!r} leave nothing "
                "to train on; expected less than 1 together; give e.g. --data.val_fraction 0.2 --data.test_fraction 0.1"
            )
        return shares

    def _hold_out(self, pool: list[Sample], shares: dict[str, float], base: str) -> dict[str, list[Sample]]:
        if not shares:
            return {"train": pool}
        names = [_relative(sample.path, base).replace(os.sep, "/") for sample in pool]
        parts = stratified_split(names, _strata(pool), shares, seed=self.split_seed)
        held = " and ".join(f"{len(parts[split])} for {split} ({share:.0%})" for split, share in shares.items())
        self.split_note = f"Of {len(pool)} images, {held} are held out of training (split_seed {self.split_seed})."
        return {split: [pool[position] for position in positions] for split, positions in parts.items()}


def _strata(pool: list[Sample]) -> list[int]:
    """The class that each image is split by: its own or, of several, the rarest; -1 where it has none."""
    counts = Counter(label for sample in pool for label in classes_of(sample))
    return [min(classes_of(sample), key=lambda label: (counts[label], label), default=-1) for sample in pool]


def _relative(path: str, base: str) -> str:
    """The path from a folder on; ``relpath`` takes seconds for a million files."""
    start = os.path.join(base, "")
    below = path.startswith(start) and not (base == "" and os.path.isabs(path))
    return path[len(start) :] if below else os.path.relpath(path, base or os.curdir)
