"""A data set as the readers of archives and libraries give it: its classes, and each split's images by position."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dropkey_cli.data.class_folders import SPLIT_NAMES
from dropkey_cli.data.reading import ImageFile
from dropkey_cli.errors import InputError, did_you_mean

MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class NamedSplit:
    """The images of one split.

    Attributes:
        names: Name of each image, which stays the same in every run, e.g. cifar10/train/00012.
        labels: Class index of each image.
        read: Gives the image at a position, or its file's content; raises OSError for one that is damaged.
    """

    names: Sequence[str]
    labels: Sequence[int]
    read: Callable[[int], ImageFile]


@dataclass(frozen=True)
class NamedSet:
    """The splits train, val and test of a data set, as far as it has them, and its classes in label order."""

    class_names: list[str]
    splits: dict[str, NamedSplit]


@dataclass(frozen=True)
class Picked:
    """Reads the images at some of the positions."""

    read: Callable[[int], ImageFile]
    positions: Sequence[int]

    def __call__(self, index: int) -> ImageFile:
        """The image at the index-th of them."""
        return self.read(self.positions[index])


def numbered(prefix: str, count: int) -> list[str]:
    """Names of images that have none of their own."""
    return [f"{prefix}/{position:06d}" for position in range(count)]


def numbers(root: str, largest: int) -> list[str]:
    """The names of classes that have only numbers.

    Args:
        root: What the user gave.
        largest: The largest number.

    Raises:
        InputError: If that is no number of a class.
    """
    if largest >= MAX_CLASSES:
        raise InputError(f"{root!r} has the class number {largest}; expected numbers below {MAX_CLASSES}; check its labels")
    return [str(label) for label in range(largest + 1)]


def choose_splits(root: str, known: Sequence[str], asked: dict[str, str] | None) -> dict[str, str]:
    """Which of a source's splits are train, val and test.

    Args:
        root: What the user gave.
        known: The source's own names.
        asked: The user's choice; by default what the names say.

    Raises:
        InputError: If none is for training, or one that was asked for is not there.
    """
    if asked is None:
        asked = {}
        for name in known:
            split = SPLIT_NAMES.get(name.lower())
            if split in asked:
                raise InputError(
                    f"{root!r} has both the splits {asked[split]!r} and {name!r}; expected one for {split}; "
                    f"give --data.splits '{{{split}: {name}, …}}'"
                )
            if split is not None:
                asked[split] = name
        if not asked:
            raise InputError(
                f"{root!r} has the splits {', '.join(map(repr, known))}; expected train, val or test among them; "
                f"give --data.splits '{{train: {known[0] if known else 'NAME'}}}'"
            )
    for split, name in asked.items():
        if split not in ("train", "val", "test"):
            raise InputError(f"splits has {split!r}; expected train, val and test; give --data.splits '{{train: NAME}}'")
        if name.partition("[")[0] not in known:
            raise InputError(f"{root!r} has no split {name!r}; expected one of {', '.join(known)}{did_you_mean(name, known)}")
    return asked
