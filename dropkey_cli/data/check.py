"""Checks class folders and tables: unreadable files, one image in two splits or with two labels, classes without images."""

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch.utils.data import DataLoader, Dataset

from dropkey_cli.data.arrays import check_header
from dropkey_cli.data.class_folders import check_classes, find_classes, find_splits, list_samples, sorted_classes
from dropkey_cli.data.dataset import Sample, classes_of
from dropkey_cli.data.inspection import NOTES, Finding, content_hash, inspect_file
from dropkey_cli.data.reading import Names
from dropkey_cli.data.table_rows import TableOptions, read_tables
from dropkey_cli.errors import InputError, one_line

_FILES_PER_TASK = 16


class Progress(Protocol):
    """Shows how far a loop is, as `rich.progress.track` does."""

    def __call__(self, sequence: Iterable[Any], description: str, total: float) -> Iterable[Any]:
        """The same items; ``total`` is how many there are."""


class Image(NamedTuple):
    """One listed file, with its split and its class; several classes have a | between them."""

    path: str
    split: str
    class_name: str


class Note(NamedTuple):
    """What holds for some files: a sentence's end, how many they are, and one of them."""

    text: str
    num_files: int
    example: str


class Unreadable(NamedTuple):
    """A file that training cannot read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        images: How many files each class has in each split: ``images[split][class_name]``.
        unreadable: Every file that cannot be read.
        in_two_splits: Groups of files with the same content of which two lie in different splits.
        two_labels: Groups of files with the same content of which two lie in different classes.
        repeated: How many files repeat the content of another one of the same class and split.
        notes: What is converted on reading, by the names in `NOTES`.
    """

    images: dict[str, dict[str, int]]
    unreadable: list[Unreadable]
    in_two_splits: list[list[Image]]
    two_labels: list[list[Image]]
    repeated: int
    notes: dict[str, Note]

    @property
    def is_clean(self) -> bool:
        """Whether nothing must be done."""
        return not (self.unreadable or self.in_two_splits or self.two_labels)

    @property
    def missing(self) -> dict[str, list[str]]:
        """The classes without an image, for each split that lacks some."""
        return missing_classes(self.images)


def check_folder(root: str | None, *, num_workers: int, channels: int = 3, progress: Progress | None = None) -> Report:
    """Read every image in class folders.

    Args:
        root: Folder with train/, val/ and test/ as far as they exist, or with the classes themselves.
        num_workers: Processes that read; 0 reads in this one.
        channels: The channels that the model sees.
        progress: Shows how far it is.

    Raises:
        InputError: If the folders are no such layout, or a split has no image.
    """
    folders = find_splits(root)
    named_by = [folders["train"]] if "train" in folders else list(folders.values())
    class_names = sorted_classes({name for folder in named_by for name in find_classes(folder)})
    check_classes(folders, class_names)
    samples = {split: list_samples(folder, class_names, channels=channels) for split, folder in folders.items()}
    return _check_samples(samples, class_names, num_workers, channels, progress)


def check_table(
    root: str, columns: TableOptions, *, num_workers: int, channels: int = 3, progress: Progress | None = None
) -> Report:
    """Read every image that a table lists, as `check_folder` does.

    Args:
        root: The table.
        columns: How it is read.
        num_workers: Processes that read; 0 reads in this one.
        channels: The channels that the model sees.
        progress: Shows how far it is.

    Raises:
        InputError: If the table cannot be read, or a row in it cannot be used.
    """
    rows = read_tables({None: root}, columns)
    class_names = sorted_classes(rows.names("train") or rows.names("val") | rows.names("test"))
    samples = rows.samples(class_names, look=False)
    if not samples:
        raise InputError(f"{root!r} has no rows; expected an image and its label in each; check the file")
    return _check_samples(samples, class_names, num_workers, channels, progress)


def _check_samples(
    samples: Mapping[str, Sequence[Sample]], class_names: list[str], num_workers: int, channels: int, progress: Progress | None
) -> Report:
    counts = {split: dict.fromkeys(class_names, 0) for split in _in_order(samples)}
    images: list[Image] = []
    for split, of_classes in counts.items():
        for sample in samples[split]:
            names = [class_names[label] for label in classes_of(sample)]
            images.append(Image(sample.path, split, "|".join(names)))
            for name in names:
                of_classes[name] += 1
    findings: list[Finding] = _in_processes(
        partial(inspect_file, channels=channels), [image.path for image in images], num_workers, progress, "reading"
    )
    found = list(zip(images, findings, strict=True))
    readable = [(image, finding) for image, finding in found if not finding.error]
    groups = _same_content(readable, num_workers, progress)
    return Report(
        images=counts,
        unreadable=[Unreadable(image.path, finding.error) for image, finding in found if finding.error],
        in_two_splits=[group for group in groups if len({image.split for image in group}) > 1],
        two_labels=[group for group in groups if len({image.class_name for image in group}) > 1],
        repeated=sum(len(group) - len({(image.split, image.class_name) for image in group}) for group in groups),
        notes=_count_notes(readable),
    )


def refuse_unreadable(root: str | None, splits: Sequence[Names], *, channels: int = 3, limit: int = 1000) -> None:
    """Open the headers of some images, evenly spread over the splits and always the same ones.

    Args:
        root: The folder that the user gave.
        splits: The files of each split.
        channels: The channels that the model sees.
        limit: How many headers are opened at most, about.

    Raises:
        InputError: If one of them cannot be read; the message counts them and names five.
    """
    total = sum(map(len, splits))
    step = max(1, math.ceil(total / limit))
    opened = [paths[position] for paths in splits for position in range(0, len(paths), step)]
    broken = [f"{path!r} ({error})" for path in opened if (error := _header_error(path, channels))]
    if broken:
        looked_at = f"all {total} images" if step == 1 else f"{len(opened)} of {total} images looked at"
        of = "" if channels == 3 else f" --channels {channels}"
        raise InputError(
            f"of {looked_at}, {len(broken)} cannot be read: {', '.join(broken[:5])}{', …' if len(broken) > 5 else ''}; "
            f"expected images; dropkey check {shlex.quote(str(root))}{of} lists every one: repair or remove them, "
            "or leave them out with --data.on_error skip"
        )


def missing_note(samples: Mapping[str, Sequence[Sample]], class_names: Sequence[str]) -> str | None:
    """A sentence on the classes that a split has no image of; None if every split has all.

    Args:
        samples: The images of each split.
        class_names: The classes in label order.
    """
    labels = {split: (label for sample in samples[split] for label in classes_of(sample)) for split in _in_order(samples)}
    counted = {split: Counter(class_names[label] for label in labels[split]) for split in labels}
    gaps = missing_classes({split: {name: counts[name] for name in class_names} for split, counts in counted.items()})
    named = {split: ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "") for split, names in gaps.items()}
    sentences = [f"{split} has no image of {len(names)} class(es): {named[split]}." for split, names in gaps.items()]
    return " ".join(sentences) or None


def missing_classes(images: Mapping[str, Mapping[str, int]]) -> dict[str, list[str]]:
    """The classes without an image, for each split that lacks some.

    Args:
        images: How many images each class has in each split.
    """
    gaps = {split: [name for name, count in counts.items() if not count] for split, counts in images.items()}
    return {split: names for split, names in gaps.items() if names}


def _in_order(splits: Iterable[str]) -> list[str]:
    return sorted(splits, key=("train", "val", "test").index)


def _same_content(readable: list[tuple[Image, Finding]], num_workers: int, progress: Progress | None) -> list[list[Image]]:
    """Groups of files that hold the same bytes; only files of the same size are compared."""
    sizes = Counter(finding.size for _, finding in readable)
    compared = [image for image, finding in readable if sizes[finding.size] > 1]
    hashes: list[bytes] = _in_processes(content_hash, [image.path for image in compared], num_workers, progress, "comparing")
    groups: dict[bytes, list[Image]] = defaultdict(list)
    for image, content in zip(compared, hashes, strict=True):
        if content:
            groups[content].append(image)
    return [group for group in groups.values() if len(group) > 1]


def _count_notes(readable: list[tuple[Image, Finding]]) -> dict[str, Note]:
    examples: dict[str, list[str]] = {name: [] for name in NOTES}
    for image, finding in readable:
        for name in finding.notes:
            examples[name].append(image.path)
    return {name: Note(NOTES[name], len(paths), paths[0]) for name, paths in examples.items() if paths}


def _header_error(path: str, channels: int) -> str:
    try:
        check_header(path, channels)
        return ""
    except OSError as error:
        return one_line(error)


class _Results(Dataset[Any]):
    """What a function gives for each path."""

    def __init__(self, function: Callable[[str], Any], paths: Sequence[str]) -> None:
        self.function = function
        self.paths = Names(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - the function's own
        return self.function(self.paths[index])


def _in_processes(
    function: Callable[[str], Any], paths: Sequence[str], num_workers: int, progress: Progress | None, description: str
) -> list[Any]:
    """What a function gives for each path, in order, computed in the processes that training would use."""
    num_tasks = math.ceil(len(paths) / _FILES_PER_TASK)
    loader = DataLoader(
        _Results(function, paths), batch_size=_FILES_PER_TASK, num_workers=min(num_workers, num_tasks), collate_fn=list
    )
    tasks = loader if progress is None else progress(loader, description, num_tasks)
    return [result for task in tasks for result in task]
