"""Reads the layout of class folders: which splits there are, which classes, which images."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from pathlib import Path

from dropkey_cli.data.dataset import Sample
from dropkey_cli.data.reading import extensions, is_folder, walk_images
from dropkey_cli.errors import InputError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LAYOUT = "expected ROOT/train/CLASS/*.jpg with ROOT/val/CLASS/*.jpg, or just ROOT/CLASS/*.jpg, for two or more classes"


def find_splits(root: str | None) -> dict[str, Path]:
    """The folder of each split: train, val and test as far as they exist, or the root itself as train.

    Args:
        root: The folder that the user gave.

    Raises:
        InputError: If there is no such folder, or its sub-folders mix splits and classes.
    """
    if not root:
        raise InputError(f"--data.root is not given; {LAYOUT}; give --data.root ROOT")
    folder = Path(root).expanduser()
    if not os.path.isdir(folder):  # unlike Path.is_dir, also for names that are too long
        problem = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        raise InputError(f"--data.root {root!r} {problem}; {LAYOUT}; check the path")
    subfolders = find_classes(folder)
    splits: dict[str, Path] = {}
    for name in subfolders:
        split = SPLIT_NAMES.get(name.lower())
        if split in splits:
            raise InputError(f"{root!r} has both {splits[split].name}/ and {name}/; expected one {split} folder; keep one")
        if split is not None:
            splits[split] = folder / name
    if splits and "train" not in splits and len(splits) < len(subfolders):
        found = ", ".join(name + "/" for name in subfolders[:5])
        raise InputError(
            f"{root!r} has {', '.join(path.name + '/' for path in splits.values())} but no train/ (found: {found}); "
            f"{LAYOUT}; rename the folder of the training images to train"
        )
    return splits or {"train": folder}


def find_classes(folder: Path) -> list[str]:
    """Names of the sub-folders, sorted; hidden ones are not classes."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_folder(entry) and not entry.name.startswith("."))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{str(folder)!r} cannot be listed ({reason}); expected a folder that you may read") from error


def list_samples(folder: Path, class_names: list[str], *, channels: int = 3) -> list[Sample]:
    """The images in the class folders of one split, with their labels, sorted by path.

    Args:
        folder: Folder with one sub-folder per class; images may lie deeper, hidden files and folders are skipped.
        class_names: The classes in label order; a class without a folder here has no images.
        channels: The channels that the model sees.

    Raises:
        InputError: If there is no image at all.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    above = os.path.realpath(folder)  # a link back up would bring the other classes
    found = [
        Sample(path, labels[name])
        for name in find_classes(folder)
        if name in labels
        for path in walk_images(str(folder / name), seen={above}, channels=channels)
    ]
    if not found:
        layout = LAYOUT.replace("*.jpg", f"*{extensions(channels)[0]}")
        raise InputError(f"no images in the class folders of {str(folder)!r}; {layout}; put images there")
    return sorted(found, key=lambda sample: sample.path.replace(os.sep, "/"))  # the same order on every system


def check_classes(splits: Mapping[str, Path], class_names: list[str]) -> None:
    """Refuse folders that would be scored as a wrong class or seen in two splits.

    Args:
        splits: The folder of each split.
        class_names: The classes in label order.

    Raises:
        InputError: If there are fewer than two classes, a class folder is unknown, or two splits share a folder.
    """
    if len(class_names) < 2 or len(set(class_names)) < len(class_names):
        found = ", ".join(map(repr, class_names)) or "none"
        where = "".join(f" in {str(folder)!r}" for folder in list(splits.values())[:1])
        raise InputError(f"found {len(class_names)} class(es) ({found}){where}; {LAYOUT}; give each class its own folder")
    seen: dict[Path, str] = {}
    for split, folder in splits.items():
        folder_names = find_classes(folder)
        unknown = [name for name in folder_names if name not in set(class_names)]
        if unknown:
            raise InputError(
                f"{str(folder)!r} has {len(unknown)} unknown class folder(s): {', '.join(map(repr, unknown[:5]))}; "
                f"expected only the {len(class_names)} known classes, nearest first: "
                f"{_nearest_first(unknown[0], class_names)}; rename or remove the folder"
            )
        for path in (folder / name for name in folder_names):
            if seen.setdefault(path.resolve(), split) != split:
                raise InputError(
                    f"{str(path)!r} is the same folder in {seen[path.resolve()]} and {split}; "
                    "expected different images in each split; remove one of the links"
                )


def check_counts(samples: list[Sample], folder: Path, class_names: list[str], *, minimum: int) -> None:
    """Refuse training classes with too few images.

    Args:
        samples: The training images before anything is held out.
        folder: Their folder; classes that have no sub-folder in it are not counted.
        class_names: The classes in label order.
        minimum: Images that each class needs: one for every part that it is split into.

    Raises:
        InputError: If a class has fewer.
    """
    counts = Counter(class_names[sample.label] for sample in samples)
    scarce = [name for name in find_classes(folder) if counts[name] < minimum]
    if scarce:
        listed = ", ".join(f"{name!r} ({counts[name]})" for name in scarce[:5]) + (", …" if len(scarce) > 5 else "")
        raise InputError(
            f"{len(scarce)} class(es) in {str(folder)!r} have too few images: {listed}; expected at least {minimum}, "
            f"one for each part that is made from this folder; add images or remove the class folder"
        )


def _nearest_first(given: str, known: Iterable[str], *, limit: int = 10) -> str:
    ranked = sorted(known, key=lambda name: -SequenceMatcher(None, given.lower(), name.lower()).ratio())
    return ", ".join(map(repr, ranked[:limit])) + (" …" if len(ranked) > limit else "")
