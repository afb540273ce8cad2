"""Data sets that the datasets library reads as a stream, without a copy on this machine: hfids/NAME."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from dropkey_cli.data.named.hugging_face_sets import columns, library, load, span_of
from dropkey_cli.data.named.named_set import choose_splits
from dropkey_cli.data.reading import ImageFile
from dropkey_cli.errors import InputError


@dataclass(frozen=True)
class Stream:
    """The images of one split, one after the other.

    Attributes:
        name: What the names of its images begin with.
        count: How many they are, as the data set says.
        table: The IterableDataset.
        image_key: Its column of the images.
        label_key: Its column of the classes.
    """

    name: str
    count: int
    table: Any
    image_key: str
    label_key: str

    def examples(self, *, seed: int | None = None, buffer_size: int = 1) -> Iterator[dict[str, Any]]:
        """All images from the first on, as the library holds them.

        Args:
            seed: Of the order; None is that of the stream.
            buffer_size: Each image is drawn from so many that follow each other.
        """
        table = self.table if seed is None else self.table.shuffle(seed=seed, buffer_size=buffer_size)
        # The library's other iterator deals files out to the processes that load images, as many as there are files
        for batch in table.iter(batch_size=1):
            yield {key: values[0] for key, values in batch.items()}

    def content(self, example: dict[str, Any]) -> ImageFile:
        """The file of an image, or its content."""
        image = example[self.image_key]
        if image is None:
            raise OSError("the data set has no image there")
        if image["bytes"]:
            return BytesIO(image["bytes"])
        path: str = image["path"]
        return BytesIO(_fetched(path)) if "://" in path else path


@dataclass(frozen=True)
class StreamedSet:
    """The splits train, val and test of a data set, as far as it has them, and its classes; none where they have no names."""

    class_names: list[str]
    splits: dict[str, Stream]


def open_stream(
    root: str,
    name: str,
    *,
    data_dir: str | None = None,
    splits: dict[str, str] | None = None,
    input_key: str | None = None,
    target_key: str | None = None,
) -> StreamedSet:
    """A data set that the datasets library streams; the arguments are those of `open_hugging_face`.

    Args:
        root: What the user gave.
        name: Its name on the Hub, or a folder in one of the Hub's formats.
        data_dir: The library's cache folder, for the little that it keeps.
        splits: Which splits are train, val and test; by default as their names say.
        input_key: The column of the images.
        target_key: The column of the classes.

    Raises:
        InputError: If it cannot be reached, its columns or splits are not clear, or its length is not known.
    """
    datasets = library(root)
    loaded = load(datasets, root, name, data_dir, streaming=True)
    chosen = choose_splits(root, list(loaded), splits)
    features = loaded[span_of(next(iter(chosen.values())))[0]].features
    if features is None:
        raise InputError(f"{root!r} does not say its columns; expected them in its files; give --data.root hfds/{name}")
    image_key, label_key = columns(datasets, root, features, input_key, target_key)
    found = {}
    for split, given in chosen.items():
        part, span = span_of(given)
        every = _count(root, name, part, loaded[part])
        first, last, _ = span.indices(every)
        if last <= first:
            raise InputError(f"splits has {given!r}, in which there is no image; expected some of the {every} of {part!r}")
        table = loaded[part].to_iterable_dataset() if hasattr(loaded[part], "__len__") else loaded[part]
        table = table.select_columns([image_key, label_key]).cast_column(image_key, datasets.Image(decode=False))
        if last - first < every:
            table = table.skip(first).take(last - first)
        found[split] = Stream(f"{os.path.basename(name.rstrip('/'))}/{split}", last - first, table, image_key, label_key)
    return StreamedSet(list(getattr(features[label_key], "names", None) or []), found)


def _count(root: str, name: str, part: str, table: Any) -> int:  # noqa: ANN401 - the library has no types
    """How many images a split has: a table knows it, a stream's data set says it."""
    if hasattr(table, "__len__"):
        return len(table)
    said = (table.info.splits or {}).get(part)
    if said is None or not said.num_examples:
        raise InputError(
            f"{root!r} does not say how many images its split {part!r} has; expected num_examples in the dataset_info of its "
            f"README.md, as push_to_hub writes it; give --data.root hfds/{name}, which reads a copy on this machine"
        )
    return int(said.num_examples)


def _fetched(path: str) -> bytes:
    """The content of a file somewhere else, or in an archive."""
    import fsspec  # type: ignore[import-untyped]  # the library's own way to all places

    with fsspec.open(path, "rb") as file:
        content: bytes = file.read()
    return content
