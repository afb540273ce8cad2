"""Reads the layout of class folders: which splits there are, which classes, which images."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path

from dropkey_cli.data.dataset import Sample, classes_of
from dropkey_cli.data.kept_listing import kept_listing
from dropkey_cli.data.reading import Stamps, extensions, is_folder, stamp, walk_images
from dropkey_cli.errors import InputError, near_path

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
RUNS = "runs"
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
        there = os.path.exists(folder)
        problem, near = ("is a file, not a folder", "") if there else ("does not exist", near_path(root))
        raise InputError(f"--data.root {root!r} {problem}; {LAYOUT}; check the path{near}")
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


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Names of classes in order; whole numbers by their size."""
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch(r"-?\d{1,18}", name) for name in names) else names


def find_classes(folder: Path) -> list[str]:
    """Names of the sub-folders, as `sorted_classes` has them; hidden ones are not classes, nor are dropkey's own runs."""
    try:
        with os.scandir(folder) as entries:
            names = sorted_classes(entry.name for entry in entries if is_folder(entry) and not entry.name.startswith("."))
        return [name for name in names if name != RUNS or not holds_runs(folder)]
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{str(folder)!r} cannot be listed ({reason}); expected a folder that you may read") from error


def holds_runs(folder: Path) -> bool:
    """Whether a folder's ``runs/`` is dropkey's: ``runs/NAME/version_N/``."""
    return any(version.is_dir() for version in folder.glob(f"{RUNS}/*/version_[0-9]*"))


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
    listed = class_images(folder, channels=channels)
    known = [(labels[name], str(folder / name) + os.sep, paths) for name, paths in listed.items() if name in labels]
    found = [Sample(prefix + path, label) for label, prefix, paths in known for path in paths]
    if not found:
        layout = LAYOUT.replace("*.jpg", f"*{extensions(channels)[0]}")
        raise InputError(f"no images in the class folders of {str(folder)!r}; {layout}; put images there")
    return sorted(found, key=lambda sample: sample.path.replace(os.sep, "/"))  # the same order on every system


def class_images(folder: Path, *, channels: int = 3) -> dict[str, list[str]]:
    """The images of each class, relative to its folder.

    Args:
        folder: Folder with one sub-folder per class.
        channels: The channels that the model sees.
    """
    key = f"classes {extensions(channels)} {os.path.abspath(folder)}"
    listed: dict[str, list[str]] = kept_listing(key, lambda stamps: _walk_classes(folder, channels, stamps))
    return listed


def _walk_classes(folder: Path, channels: int, stamps: Stamps) -> dict[str, list[str]]:
    stamps[os.path.abspath(folder)] = stamp(str(folder))
    with suppress(OSError), os.scandir(folder) as entries:
        stamps |= {os.path.abspath(entry.path): stamp(entry.path) for entry in entries if entry.is_symlink()}
    above, listed = os.path.realpath(folder), {}  # a link back up would bring the other classes
    for name in find_classes(folder):
        paths = walk_images(str(folder / name), {above}, channels=channels, stamps=stamps)
        listed[name] = [path[len(str(folder / name)) + 1 :] for path in paths]
    return listed


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
                f"{nearest_first(unknown[0], class_names)}; rename or remove the folder"
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
    counts = Counter(class_names[label] for sample in samples for label in classes_of(sample))
    refuse_scarce({name: counts[name] for name in find_classes(folder)}, str(folder), minimum=minimum)


def refuse_scarce(counts: Mapping[str, int], source: str, *, minimum: int) -> None:
    """Refuse classes with fewer images than parts are made of them.

    Args:
        counts: How many images each class has.
        source: Where they lie.
        minimum: Images that each class needs.

    Raises:
        InputError: If a class has fewer.
    """
    scarce = [name for name, count in counts.items() if count < minimum]
    if scarce:
        listed = ", ".join(f"{name!r} ({counts[name]})" for name in scarce[:5]) + (", …" if len(scarce) > 5 else "")
        raise InputError(
            f"{len(scarce)} class(es) in {source!r} have too few images: {listed}; expected at least {minimum}, "
            "one for each part that is made from them; add images or leave the class out"
        )


def nearest_first(given: str, known: Iterable[str], *, limit: int = 10) -> str:
    """Some of the known names, the nearest first.

    Args:
        given: The name that is none of them.
        known: The names.
        limit: How many are listed.
    """
    ranked = sorted(known, key=lambda name: -SequenceMatcher(None, given.lower(), name.lower()).ratio())
    return ", ".join(map(repr, ranked[:limit])) + (" …" if len(ranked) > limit else "")
