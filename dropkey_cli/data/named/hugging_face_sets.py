"""Data sets of the Hugging Face Hub, or in its formats on a drive, by the datasets library: hfds/NAME."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from types import ModuleType
from typing import Any, cast

from dropkey_cli.data.class_folders import sorted_classes
from dropkey_cli.data.named.named_set import NamedSet, NamedSplit, choose_splits, numbered, numbers
from dropkey_cli.data.reading import ImageFile
from dropkey_cli.errors import InputError, one_line


def open_hugging_face(
    root: str,
    name: str,
    *,
    data_dir: str | None = None,
    download: bool = False,
    splits: dict[str, str] | None = None,
    input_key: str | None = None,
    target_key: str | None = None,
) -> NamedSet:
    """A data set that the datasets library loads.

    Args:
        root: What the user gave.
        name: Its name on the Hub, or a folder of images, parquet files or what ``save_to_disk`` wrote.
        data_dir: The library's cache folder; by default its own.
        download: Whether what is not in the cache is downloaded.
        splits: Which splits are train, val and test; by default as their names say.
        input_key: The column of the images; by default the only one that has images.
        target_key: The column of the classes; by default label, or else the only one that has classes.

    Raises:
        InputError: If it is not there, or its columns or splits are not clear.
    """
    datasets = library(root)
    loaded = load(datasets, root, name, data_dir, download=download)
    chosen = choose_splits(root, list(loaded), splits)
    tables = {split: _part(loaded, given) for split, given in chosen.items()}
    features = next(iter(tables.values())).features
    image_key, label_key = columns(datasets, root, features, input_key, target_key)
    given = {split: list(table[label_key]) for split, table in tables.items()}
    class_names = _class_names(root, label_key, features[label_key], given)
    number = {name: label for label, name in enumerate(class_names)}
    return NamedSet(
        class_names,
        {
            split: NamedSplit(
                numbered(f"{os.path.basename(name.rstrip('/'))}/{split}", len(table)),
                [number[label] if isinstance(label, str) else label for label in given[split]],
                _Reader(table.cast_column(image_key, datasets.Image(decode=False)), image_key),
            )
            for split, table in tables.items()
        },
    )


def columns(
    datasets: ModuleType, root: str, features: Mapping[str, Any], input_key: str | None, target_key: str | None
) -> tuple[str, str]:
    """The columns of the images and of the classes, as `open_hugging_face` takes them."""
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    image_key = input_key or _only(root, "input_key", images)
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    label_key = target_key or ("label" if "label" in features else _only(root, "target_key", classes))
    for option, key in (("input_key", image_key), ("target_key", label_key)):
        if key not in features:
            raise InputError(f"{root!r} has no column {key!r}; expected one of {', '.join(features)}; give --data.{option}")
    return image_key, label_key


def library(root: str) -> ModuleType:
    """The datasets library."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{root!r} needs the package datasets ({error}); pip install 'dropkey[hf]'") from error
    return cast(ModuleType, datasets)


def load(
    datasets: ModuleType, root: str, name: str, data_dir: str | None, *, download: bool = False, streaming: bool = False
) -> Any:  # noqa: ANN401 - it has no types
    """All splits by name; what is streamed comes from the Hub whether or not there is a copy."""
    folder = os.path.expanduser(name)
    try:
        if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
            return datasets.load_from_disk(folder)
        local = os.path.isdir(folder)
        with _offline(datasets, not download and (local or not streaming)), _silent(datasets):
            # A bare name such as parquet would be a kind of files
            place = os.path.abspath(folder) if local else name
            return datasets.load_dataset(place, cache_dir=data_dir, streaming=streaming)
    except Exception as error:  # the library's own, fsspec's, the Hub's, and whatever its readers raise
        if streaming:
            raise InputError(
                f"{root!r} cannot be streamed ({one_line(error)}); expected a folder, or a data set of the Hub and a "
                "connection to it; look at the reason"
            ) from error
        where = f"in {data_dir!r}" if data_dir else "in the cache of the datasets library"
        advice = "look at the reason" if download else "give --data.download true, or a folder: --data.root hfds/FOLDER"
        raise InputError(
            f"{root!r} cannot be loaded ({one_line(error)}); expected a folder, or a data set that lies {where}; {advice}"
        ) from error


@contextmanager
def _offline(datasets: ModuleType, offline: bool) -> Iterator[None]:
    """Keep the library from asking the Hub; it reads its own switch at every use."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _silent(datasets: ModuleType) -> Iterator[None]:
    """Without the library's progress bars, which every process would draw."""
    was_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()


def span_of(given: str) -> tuple[str, slice]:
    """The name of a split and which of its images, of what was given such as train[:1000]."""
    name, bracket, span = given.partition("[")
    first, colon, last = span.removesuffix("]").partition(":")
    if bracket and not (colon and all(limit == "" or limit.isdecimal() for limit in (first, last))):
        raise InputError(f"splits has {given!r}; expected a name such as train, or images by number such as train[:1000]")
    return name, slice(int(first or 0), int(last) if last else None)


def _part(loaded: Any, given: str) -> Any:  # noqa: ANN401 - the library has no types
    """A split, or what a slice leaves of it."""
    name, span = span_of(given)
    table = loaded[name]
    return table if span == slice(0, None) else table.select(range(*span.indices(len(table))))


def _only(root: str, option: str, keys: Sequence[str]) -> str:
    if len(keys) != 1:
        kind = "images" if option == "input_key" else "classes"
        raise InputError(
            f"{root!r} has {len(keys)} columns with {kind} ({', '.join(keys) or 'none'}); expected one; "
            f"give --data.{option} COLUMN"
        )
    return keys[0]


def _class_names(root: str, key: str, feature: Any, given: dict[str, list[Any]]) -> list[str]:  # noqa: ANN401 - the library's
    """The names that the data set says, else numbers, or what the labels say."""
    every = [label for found in given.values() for label in found]
    wrong = [
        label for label in every if not isinstance(label, str | int) or label == "" or (isinstance(label, int) and label < 0)
    ]
    if wrong:
        raise InputError(
            f"the column {key!r} of {root!r} has the class {wrong[0]!r}; expected numbers from 0, or names; "
            "give --data.target_key, or the splits that have classes: --data.splits '{train: train}'"
        )
    labels = set(every)
    names: list[str] | None = getattr(feature, "names", None)
    if names is not None:
        return list(names)
    if all(isinstance(label, str) for label in labels):
        return sorted_classes(labels)
    return numbers(root, max(int(label) for label in labels))


@dataclass(frozen=True)
class _Reader:
    """Gives the images of a table of the datasets library."""

    table: Any
    key: str

    def __call__(self, position: int) -> ImageFile:
        """The file at a position, or its content."""
        image = self.table[position][self.key]
        if image is None:
            raise OSError("the data set has no image there")
        if image["bytes"] is not None:
            return BytesIO(image["bytes"])
        path: str = image["path"]
        return path
