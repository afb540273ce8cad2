"""The one data set of all sources: images from files or from memory, with label, index and path."""

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, TypedDict, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dropkey_cli.data.arrays import load_picture
from dropkey_cli.data.loading import PADDING, Draw, seeded
from dropkey_cli.data.preprocessing import Transform
from dropkey_cli.data.reading import ImageFile, Names
from dropkey_cli.errors import InputError, one_line

NO_LABEL = -1


class Sample(NamedTuple):
    """One image before it is read: its file (or its name, if it is in memory) and the index of its class, or of each."""

    path: str
    label: int | tuple[int, ...]


def classes_of(sample: Sample) -> tuple[int, ...]:
    """The classes of an image, one or several or none, as a tuple."""
    return (sample.label,) if isinstance(sample.label, int) else sample.label


class LabelSets:
    """The classes of each image, any number of them, in one block of memory.

    Args:
        labels: The indices of each image's classes; they are gone through once.
        num_classes: Number of classes K.
    """

    def __init__(self, labels: Iterable[tuple[int, ...]], num_classes: int) -> None:
        self.num_classes = num_classes
        self.members, self._ends = array("i"), array("Q", [0])
        for members in labels:
            self.members.extend(members)
            self._ends.append(len(self.members))

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> tuple[int, ...]:
        """The classes of the image at a position, from 0."""
        return tuple(self.members[self._ends[position] : self._ends[position + 1]])

    def as_tensor(self, position: int) -> Tensor:
        """Those classes as (K,), 1 where the image has it, else 0; a position below 0 has none."""
        tensor = torch.zeros(self.num_classes)
        if position >= 0:
            tensor[list(self[position])] = 1.0
        return tensor


class Example(TypedDict):
    """One image as the data set gives it; ``error`` is empty unless the file could not be read."""

    image: Tensor  # (C, height, width), 8-bit
    label: int | Tensor  # (K,), 0 or 1 for each class, where an image may have several
    index: int
    path: str
    error: str


class Batch(TypedDict):
    """What a data loader gives: one entry per image in each of the fields."""

    image: Tensor  # (B, C, height, width): 8-bit from the loader, normalised floats in the steps of a task
    label: Tensor  # (B,), int64, -1 where it is unknown; or (B, K), 0 or 1, where an image may have several classes
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
        read: Gives the image at a position, or its file's content, where images are no files of their own.
        num_labels: The number of classes K where an image may have any number of them; None where it has one.

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
        read: Callable[[int], ImageFile] | None = None,
        num_labels: int | None = None,
    ) -> None:
        self.paths = Names(sample.path for sample in samples)
        self._labels: array[int] | LabelSets
        if num_labels is None:
            self._labels = array("q", (cast(int, sample.label) for sample in samples))
        else:
            self._labels = LabelSets(map(classes_of, samples), num_labels)
        self.transform = transform
        self.image_size = image_size
        self.channels = channels
        self.on_error = on_error
        self.read = read

    def __len__(self) -> int:
        """How many images there are, readable or not."""
        return len(self._labels)

    def __getitem__(self, item: int | Draw) -> Example:
        """The image at a position, transformed; a `Draw` augments it by its seed, `PADDING` is an image of zeros."""
        index, seed = item if isinstance(item, Draw) else (item, None)
        if index == PADDING:
            return Example(image=self._zeros(), label=self._label(PADDING), index=PADDING, path="", error="")
        path, label = self.paths[index], self._label(index)
        error = ""
        try:
            picture = load_picture(path if self.read is None else self.read(index), self.channels)
        except OSError as reason:
            error = one_line(reason)
            folder = os.path.dirname(path) or "."
            if self.on_error != "record" and self.read is None and not os.path.isdir(folder):
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

    def _label(self, index: int) -> int | Tensor:
        if isinstance(self._labels, LabelSets):
            return self._labels.as_tensor(index)
        return NO_LABEL if index == PADDING else self._labels[index]

    def _zeros(self) -> Tensor:
        return torch.zeros(self.channels, self.image_size, self.image_size, dtype=torch.uint8)

    @property
    def samples(self) -> list[Sample]:
        """File and label of each image, in order."""
        return [Sample(self.paths[index], self._labels[index]) for index in range(len(self))]

    @property
    def labels(self) -> list[int | tuple[int, ...]]:
        """The class index of each image, in order, -1 where it is unknown; or the indices of its classes."""
        return [self._labels[index] for index in range(len(self))]

    def class_counts(self, num_classes: int) -> list[int]:
        """How many images each class has.

        Args:
            num_classes: Number of classes K; the list has K entries, 0 for a class without images.
        """
        counts = Counter(self._labels.members if isinstance(self._labels, LabelSets) else self._labels)
        return [counts[label] for label in range(num_classes)]
