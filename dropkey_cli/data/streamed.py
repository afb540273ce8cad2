"""Images that are read one after the other: a data set that moves on in a stream, and the order of its training images."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

from dropkey_cli.data.dataset import NO_LABEL, Example, ImageDataset
from dropkey_cli.data.loading import PADDING, Draw, TrainSampler
from dropkey_cli.data.named.hugging_face_streams import Stream
from dropkey_cli.data.reading import ImageFile, Names
from dropkey_cli.errors import InputError, one_line
from dropkey_cli.seeds import derived_seed


class StreamSampler(TrainSampler):
    """Deals out the training images in the order of the stream, epoch after epoch: place i of N in epoch e is e · N + i.

    The stream shuffles them. Where their number is no multiple of the number of processes, the last image is repeated.
    """

    def __iter__(self) -> Iterator[Draw]:
        """This process's images of the epoch."""
        epoch, num_images = self.epoch, len(cast(ImageDataset, self.dataset))
        own = range(self.rank, self.total_size, self.num_replicas)[self._start :]
        self._start = 0
        places = (min(place, num_images - 1) for place in own)
        return (Draw(epoch * num_images + place, derived_seed(self.run_seed, epoch, place)) for place in places)


class StreamedImages(ImageDataset):
    """Images of a stream by position. It is read on to the position, and anew from its start for one that lies behind.

    Whoever asks for ascending positions, as each process that loads images does, reads it once and decodes its own images only.

    Args:
        like: Prepares the images; it has none itself.
        stream: The images.
        labels: The label of each class as the stream says it.
        shuffle_buffer: For training, how many images that follow each other are mixed.

    Attributes:
        seed: The run's seed, of which each epoch's order is made; None is the order of the stream.
    """

    def __init__(
        self, like: ImageDataset, stream: Stream, labels: Mapping[int | str, int], *, shuffle_buffer: int = 1000
    ) -> None:
        super().__init__(
            [],
            like.transform,
            image_size=like.image_size,
            channels=like.channels,
            on_error=like.on_error,
            read=self._content,
        )
        self.stream = stream
        self.known_labels = labels
        self.shuffle_buffer = shuffle_buffer
        self.seed: int | None = None
        self.paths = _PlaceNames(stream)
        self._examples: Iterator[dict[str, Any]] = iter(())
        self._example: dict[str, Any] = {}
        self._opened: tuple[int, int] | None = None
        self._place = -1

    def __len__(self) -> int:
        """How many images an epoch has."""
        return self.stream.count

    def __getitem__(self, item: int | Draw) -> Example:
        """As of every data set; the positions from its length on are those of the next epochs."""
        position = item.position if isinstance(item, Draw) else item
        if position != PADDING:
            self._go_to(position)
        return super().__getitem__(item)

    def __getstate__(self) -> dict[str, Any]:
        """All but the place in the stream, which another process does not share."""
        return {**self.__dict__, "_examples": iter(()), "_example": {}, "_opened": None, "_place": -1}

    def class_counts(self, num_classes: int) -> list[int]:
        """Not known of a stream.

        Args:
            num_classes: Number of classes K.

        Raises:
            InputError: Always.
        """
        raise InputError("class_weights is 'balanced', but a stream's classes are not counted; give their weights as numbers")

    def _go_to(self, position: int) -> None:
        epoch, place = divmod(position, len(self))
        opened = (os.getpid(), epoch)  # what a forked process inherits is read by its parent, too
        if self._opened != opened or place < self._place:
            seed = None if self.seed is None else derived_seed(self.seed, epoch)
            self._examples = self.stream.examples(seed=seed, buffer_size=self.shuffle_buffer)
            self._opened, self._place = opened, -1
        while self._place < place:
            example = self._next()
            if example is None:
                raise self._wrong_count(f"ended after {self._place + 1}")
            self._example = example
            self._place += 1
        if place == len(self) - 1 and self._next() is not None:
            raise self._wrong_count("goes on after them")

    def _next(self) -> dict[str, Any] | None:
        try:
            return next(self._examples, None)
        except Exception as error:  # the library's own, fsspec's, the Hub's, and whatever its readers raise
            raise InputError(
                f"the stream of {self.stream.name!r} broke off after {self._place + 1} images ({one_line(error)}); "
                "expected to read on; look at the reason, then go on from the last checkpoint with --resume"
            ) from error

    def _wrong_count(self, what: str) -> InputError:
        return InputError(
            f"the data set says that {self.stream.name!r} has {len(self)} images, but it {what}; expected exactly so many; "
            "mend num_examples in its README.md, or give --data.root hfds/…"
        )

    def _content(self, _: int) -> ImageFile:
        return self.stream.content(self._example)

    def _label(self, index: int) -> int:
        if index == PADDING:
            return NO_LABEL
        given = self._example[self.stream.label_key]
        if not isinstance(given, int | str) or given not in self.known_labels:
            raise InputError(
                f"{self.paths[index]!r} has the class {given!r}; expected one of the {len(set(self.known_labels.values()))} "
                "known ones; look at --data.target_key and --data.class_map"
            )
        return self.known_labels[given]


class _PlaceNames(Names):
    """Names of images that go by their place in the stream: in validation and test those of hfds/."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(())
        self.stream = stream

    def __len__(self) -> int:
        """How many an epoch has."""
        return self.stream.count

    def __getitem__(self, position: int) -> str:
        """The name at a position; a training image's place is that in its epoch."""
        epoch, place = divmod(position, len(self))
        part = f"/epoch-{epoch}" if self.stream.name.endswith("/train") else ""
        return f"{self.stream.name}{part}/{place:06d}"
