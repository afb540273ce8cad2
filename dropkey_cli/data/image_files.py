"""What sources of labelled image files share: preprocessing, held-out splits, a quick look at the files."""

import os
from collections import Counter
from typing import Any

from dropkey_cli.data.check import missing_note, refuse_unreadable
from dropkey_cli.data.class_folders import refuse_scarce
from dropkey_cli.data.dataset import Sample, classes_of
from dropkey_cli.data.source import ImageSource
from dropkey_cli.data.split import stratified_split
from dropkey_cli.errors import InputError


class ImageFiles(ImageSource):
    """Labelled images in splits, or to be split here. A source finds them in ``read_splits`` and hands on these ``**options``.

    Args:
        val_fraction: Share of each class held out for validation where there are no images for it.
        test_fraction: Share of each class held out for the test where there are no images for it; 0 holds out none.
        split_seed: Which images are held out; the same number and file names give the same split, and an image that is
            added or removed moves at most one other of its class.
        class_names: Classes in label order. By default those of the training images, sorted; in test and validation the
            checkpoint's.
    """

    def __init__(
        self,
        *,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        class_names: list[str] | None = None,
        **options: Any,  # noqa: ANN401 - those of ImageSource
    ) -> None:
        super().__init__(**options)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.class_names = list(class_names or [])

    def setup(self, stage: str) -> None:
        """Find the images; refuse unreadable ones before anything is computed, as far as a quick look shows them."""
        super().setup(stage)
        if self.on_error == "raise":
            used = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ())
            files = [self.splits[split] for split in used if split in self.splits and self.splits[split].read is None]
            refuse_unreadable(self.root or "ROOT", [dataset.paths for dataset in files], channels=self.preprocessing.channels)

    def make_splits(self, samples: dict[str, list[Sample]], class_names: list[str], *, base: str) -> None:
        """Hold out the splits that have no images, and make the data sets.

        Args:
            samples: The images of each split that is there, sorted by path.
            class_names: The classes in label order.
            base: The folder that the images' names are relative to: they decide which are held out.
        """
        if "train" in samples:
            samples = samples | self._hold_out(samples["train"], self.shares_to_hold_out([*samples]), base)
        if "train" in samples and self.max_train_images is not None:
            pool = samples["train"]
            chosen = self.choose_train_images(_names(pool, base), _strata(pool), seed=self.split_seed)
            samples["train"] = [pool[position] for position in chosen]
        self.split_note = " ".join(filter(None, (self.split_note, missing_note(samples, class_names)))) or None
        self.class_names = class_names
        self.splits = self.datasets(samples)

    def check_class_counts(self, samples: dict[str, list[Sample]], class_names: list[str]) -> None:
        """Refuse training classes with fewer images than the parts that are made of them; a class without any counts nowhere.

        Args:
            samples: The images of each split that is there, one label each.
            class_names: The classes in label order.
        """
        counts = Counter(sample.label for sample in samples["train"])
        present = {name: counts[label] for label, name in enumerate(class_names) if counts[label]}
        refuse_scarce(present, str(self.root), minimum=1 + len(self.shares_to_hold_out([*samples])))

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
        parts = stratified_split(_names(pool, base), _strata(pool), shares, seed=self.split_seed)
        held = " and ".join(f"{len(parts[split])} for {split} ({share:.0%})" for split, share in shares.items())
        self.split_note = f"Of {len(pool)} images, {held} are held out of training (split_seed {self.split_seed})."
        return {split: [pool[position] for position in positions] for split, positions in parts.items()}


def _strata(pool: list[Sample]) -> list[int]:
    """The class that each image is split by: its own or, of several, the rarest; -1 where it has none."""
    counts = Counter(label for sample in pool for label in classes_of(sample))
    return [min(classes_of(sample), key=lambda label: (counts[label], label), default=-1) for sample in pool]


def _names(pool: list[Sample], base: str) -> list[str]:
    """The paths from a folder on, the same on every system."""
    return [_relative(sample.path, base).replace(os.sep, "/") for sample in pool]


def _relative(path: str, base: str) -> str:
    """The path from a folder on; ``relpath`` takes seconds for a million files."""
    start = os.path.join(base, "")
    below = path.startswith(start) and not (base == "" and os.path.isabs(path))
    return path[len(start) :] if below else os.path.relpath(path, base or os.curdir)
