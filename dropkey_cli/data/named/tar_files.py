"""Files inside tar archives: where each lies, so that any process reads any of them by itself."""

import os
import re
import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from glob import glob
from io import BytesIO
from typing import IO, Any, NamedTuple

from dropkey_cli.data.kept_listing import kept_listing
from dropkey_cli.data.named.named_set import NamedSplit
from dropkey_cli.data.reading import Stamps, stamp
from dropkey_cli.errors import InputError


class Member(NamedTuple):
    """One file in an archive: its path there, and where its bytes lie."""

    name: str
    offset: int
    size: int


class Place(NamedTuple):
    """One image: its name, where it lies, and what is said of its class."""

    name: str
    archive: str
    offset: int
    size: int
    label: str


def tar_members(archive: str) -> Iterator[Member]:
    """The files in an archive, in order, and those of archives in it below the name of that without .tar.

    Args:
        archive: An uncompressed tar file.

    Raises:
        InputError: If it is none.
    """
    try:
        with open(archive, "rb") as file:
            yield from _members(file, prefix="", start=0)
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"{archive!r} cannot be read as a tar file ({error}); expected an uncompressed tar; unpack it if it is compressed, "
            "or fetch it again"
        ) from error


def _members(file: IO[bytes], prefix: str, start: int) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r:") as opened:
        for member in opened:
            name, offset = prefix + member.name.removeprefix("./"), start + member.offset_data
            if member.isreg() and member.name.endswith(".tar"):
                inner = opened.extractfile(member)
                assert inner is not None, "a regular file"
                yield from _members(inner, f"{name.removesuffix('.tar')}/", offset)
            elif member.isreg() and not member.issparse():
                yield Member(name, offset, member.size)


def find_tars(folder: str) -> list[str]:
    """The archives in a folder and its sub-folders, sorted."""
    escaped = re.sub(r"([*?[])", r"[\1]", folder)
    return sorted(glob(os.path.join(escaped, "**", "*.tar"), recursive=True))


def kept_rows(what: str, archives: Iterable[str], rows: Callable[[str], list[Any]]) -> dict[str, list[Any]]:
    """What a function gives for each archive, kept until one of them changes.

    Args:
        what: What the function does.
        archives: The files.
        rows: Gives rows of texts and numbers for one file.
    """
    paths = {os.path.abspath(archive): archive for archive in archives}

    def make(stamps: Stamps) -> dict[str, list[Any]]:
        stamps |= {path: stamp(path) for path in paths}
        return {path: rows(archive) for path, archive in paths.items()}

    kept: dict[str, list[Any]] = kept_listing(f"{what} {sorted(paths)}", make)
    return {paths[path]: found for path, found in kept.items()}


class TarReader:
    """Reads the files that lie at some places in archives.

    Args:
        places: The places.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        numbers: dict[str, int] = {}
        self._numbers, self._offsets, self._sizes = array("L"), array("Q"), array("Q")
        for place in places:
            self._numbers.append(numbers.setdefault(place.archive, len(numbers)))
            self._offsets.append(place.offset)
            self._sizes.append(place.size)
        self._archives = list(numbers)

    def __call__(self, position: int) -> BytesIO:
        """The content of a file; the archive is opened for it, because processes that share an open file share its place."""
        archive, size = self._archives[self._numbers[position]], self._sizes[position]
        with open(archive, "rb", buffering=0) as file:
            file.seek(self._offsets[position])
            content = file.read(size)
        if len(content) < size:
            raise OSError(f"{archive} ends too early")
        return BytesIO(content)


def tar_split(places: list[Place], labels: dict[str, int]) -> NamedSplit:
    """The images at some places.

    Args:
        places: The places.
        labels: Class index by what is said of the class.
    """
    return NamedSplit([place.name for place in places], [labels[place.label] for place in places], TarReader(places))
