"""Images in class folders: the folder name is the class; missing splits are made here, reproducibly."""

import os
from typing import Any

from dropkey_cli.data.check import missing_note, refuse_unreadable
from dropkey_cli.data.class_folders import LAYOUT, check_classes, check_counts, find_classes, find_splits, list_samples
from dropkey_cli.data.dataset import Sample
from dropkey_cli.data.source import ImageSource
from dropkey_cli.data.split import stratified_split
from dropkey_cli.errors import InputError


class ImageFolder(ImageSource):
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
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        class_names: list[str] | None = None,
        **options: Any,  # noqa: ANN401 - those of ImageSource
    ) -> None:
        super().__init__(root=root, **options)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.class_names = list(class_names or [])

    def setup(self, stage: str) -> None:
        """Find the images; refuse unreadable ones before anything is computed, as far as a quick look shows them."""
        super().setup(stage)
        if self.on_error == "raise":
            used = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ())
            splits = [self.splits[split].paths for split in used if split in self.splits]
            refuse_unreadable(self.root, splits, channels=self.preprocessing.channels)

    def read_splits(self) -> None:
        """Find the images of every split; hold out those that have no folder."""
        folders = find_splits(self.root)
        if not self.class_names and "train" not in folders:
            raise InputError(f"{self.root!r} has no train/ that names the classes; {LAYOUT}; add train/")
        channels = self.preprocessing.channels
        class_names = self.class_names or find_classes(folders["train"])
        check_classes(folders, class_names)
        samples = {split: list_samples(folder, class_names, channels=channels) for split, folder in folders.items()}
        if "train" in samples:
            shares = self._shares_to_hold_out(samples)
            check_counts(samples["train"], folders["train"], class_names, minimum=1 + len(shares))
            samples |= self._hold_out(samples["train"], shares)
        self.split_note = " ".join(filter(None, (self.split_note, missing_note(samples, class_names)))) or None
        self.class_names = class_names
        self.splits = self.datasets(samples)

    def _shares_to_hold_out(self, samples: dict[str, list[Sample]]) -> dict[str, float]:
        """Share of the training images for each split that has no folder of its own."""
        if "test" in samples and self.test_fraction:
            raise InputError(
                f"test_fraction is {self.test_fraction!r}, but {self.root!r} has test/ already; expected one of them; "
                "give --data.test_fraction 0"
            )
        shares = {} if "val" in samples else {"val": self.val_fraction}
        if self.test_fraction:
            shares["test"] = self.test_fraction
        for split, share in shares.items():
            if not 0 < share < 1:
                raise InputError(
                    f"{split}_fraction is {share!r}; expected a share between 0 and 1; "
                    f"give e.g. --data.{split}_fraction 0.2, or put images in {split}/"
                )
        if sum(shares.values()) >= 1:
            raise InputError(
                f"val_fraction {self.val_fraction!r} and test_fraction {self.test_fraction!r} leave nothing "
                "to train on; expected less than 1 together; give e.g. --data.val_fraction 0.2 --data.test_fraction 0.1"
            )
        return shares

    def _hold_out(self, pool: list[Sample], shares: dict[str, float]) -> dict[str, list[Sample]]:
        if not shares:
            return {"train": pool}
        names = [os.path.relpath(sample.path, self.root).replace(os.sep, "/") for sample in pool]
        parts = stratified_split(names, [sample.label for sample in pool], shares, seed=self.split_seed)
        held = " and ".join(f"{len(parts[split])} for {split} ({share:.0%})" for split, share in shares.items())
        self.split_note = f"Of {len(pool)} images, {held} are held out of training (split_seed {self.split_seed})."
        return {split: [pool[position] for position in positions] for split, positions in parts.items()}
