"""The one data set of all sources: images from files or from memory, with label, index and path."""

import os
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dropkey_cli.data.arrays import load_picture
from dropkey_cli.data.loading import PADDING, Draw, seeded
from dropkey_cli.data.preprocessing import Transform
from dropkey_cli.data.reading import Names
from dropkey_cli.errors import InputError, one_line

NO_LABEL = -1


class Sample(NamedTuple):
    """One image before it is read: its file (or its name, if it is in memory) and the index of its class."""

    path: str
    label: int


class Example(TypedDict):
    """One image as the data set gives it; ``error`` is empty unless the file could not be read."""

    image: Tensor  # (C, height, width), 8-bit
    label: int
    index: int
    path: str
    error: str


class Batch(TypedDict):
    """What a data loader gives: one entry per image in each of the fields."""

    image: Tensor  # (B, C, height, width): 8-bit from the loader, normalised floats in the steps of a task
    label: Tensor  # (B,), int64; -1 where it is unknown
    index: Tensor  # (B,), int64: the position in the data set; -1 for padding, which counts nowhere
    path: list[str]  # "" for padding
    error: list[str]  # "" where the file could be read


def counted(batch: Batch) -> list[int]:
    """Which images of a batch count: neither padding nor unreadable. Known without waiting for the device."""
    return [place for place, (path, error) in enumerate(zip(batch["path"], batch["error"], strict=True)) if path and not error]


class ImageDataset(Dataset[Example]):
    """Images with label, index and path, each put through one transform.

    Args:
        samples: File and label of each image; the label is -1 where it is unknown.
        transform: From a PIL image to an 8-bit tensor ``(C, image_size, image_size)``.
        image_size: Height and width of that tensor, for the zeros that stand in for an unreadable file.
        channels: Channels C of that tensor.
        on_error: What an unreadable file does: ``raise`` stops, ``skip`` and ``record`` give zeros and fill ``error``; where
            the file's whole folder is gone, only ``record`` does not stop.
        images: The images themselves, if they are in memory; then no file is read.

    Raises:
        InputError: From reading an item, if its file cannot be read and ``on_error`` says to stop.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Transform,
        *,
        image_size: int,
        channels: int = 3,
        on_error: Literal["raise", "skip", "record"] = "raise",
        images: Sequence[Image.Image] | None = None,
    ) -> None:
        assert images is None or len(images) == len(samples)
        self.paths = Names(sample.path for sample in samples)
        self._labels = array("q", (sample.label for sample in samples))
        self.transform = transform
        self.image_size = image_size
        self.channels = channels
        self.on_error = on_error
        self.images = images

    def __len__(self) -> int:
        """How many images there are, readable or not."""
        return len(self._labels)

    def __getitem__(self, item: int | Draw) -> Example:
        """The image at a position, transformed; a `Draw` augments it by its seed, `PADDING` is an image of zeros."""
        index, seed = item if isinstance(item, Draw) else (item, None)
        if index == PADDING:
            return Example(image=self._zeros(), label=NO_LABEL, index=PADDING, path="", error="")
        path, label = self.paths[index], self._labels[index]
        error = ""
        try:
            picture = load_picture(path, self.channels) if self.images is None else self.images[index]
        except OSError as reason:
            error = one_line(reason)
            if self.on_error != "record" and not os.path.isdir(folder := os.path.dirname(path) or "."):
                raise InputError(f"cannot read {path!r}: the folder {folder!r} is gone; mount or restore it") from reason
            if self.on_error == "raise":
                raise InputError(
                    f"cannot read {path!r} ({error}); expected an image; repair or remove it, or skip what cannot be read: "
                    "--data.on_error skip"
                ) from reason
            image = self._zeros()
        else:
            with seeded(seed):
                image = self.transform(picture)
        return Example(image=image, label=label, index=index, path=path, error=error)

    def _zeros(self) -> Tensor:
        return torch.zeros(self.channels, self.image_size, self.image_size, dtype=torch.uint8)

    @property
    def samples(self) -> list[Sample]:
        """File and label of each image, in order."""
        return [Sample(self.paths[index], label) for index, label in enumerate(self._labels)]

    @property
    def labels(self) -> list[int]:
        """The class index of each image, in order; -1 where it is unknown."""
        return self._labels.tolist()

    def class_counts(self, num_classes: int) -> list[int]:
        """How many images each class has.

        Args:
            num_classes: Number of classes K; the list has K entries, 0 for a class without images.
        """
        counts = Counter(self.labels)
        return [counts[label] for label in range(num_classes)]
