"""Class folders in tar files: one archive, or a folder of them, each of which is a folder that bears its name."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile

from dropkey_cli.data.class_folders import SPLIT_NAMES, sorted_classes
from dropkey_cli.data.named.named_set import NamedSet
from dropkey_cli.data.named.tar_files import Member, Place, find_tars, kept_rows, tar_members, tar_split
from dropkey_cli.data.reading import is_image_file
from dropkey_cli.errors import InputError

_LAYOUT = "expected an archive with CLASS/*.jpg, or with train/CLASS/*.jpg and val/CLASS/*.jpg, or a folder of such archives"


def open_tars(root: str, path: str) -> NamedSet:
    """The images and classes of archives.

    Args:
        root: What the user gave.
        path: The archive or the folder.

    Raises:
        InputError: If there is no such layout.
    """
    path = os.path.expanduser(path)
    names = _folder_names(path)
    if not names:
        problem = "holds no .tar file" if os.path.isdir(path) else "does not exist"
        raise InputError(f"{root!r}: {path!r} {problem}; {_LAYOUT}; check the path")
    listed = kept_rows("images", names, lambda archive: [m for m in tar_members(archive) if is_image_file(m.name)])
    # Of files with the same name the last one counts, as for tar
    found = {names[archive] + row[0]: (archive, Member(*row)) for archive, rows in listed.items() for row in rows}
    splits: dict[str, list[Place]] = defaultdict(list)
    for laid_out, (archive, member) in zip(_laid_out([_parts(name) for name in found]), found.values(), strict=True):
        split, above, parts = laid_out
        if split is not None and len(parts) > 1:
            splits[split].append(Place("/".join([*above, *parts]), archive, member.offset, member.size, parts[0]))
    if not splits:
        raise InputError(f"{root!r} holds no image in a class folder; {_LAYOUT}; check the archive")
    class_names = sorted_classes({place.label for places in splits.values() for place in places})
    labels = {name: label for label, name in enumerate(class_names)}
    return NamedSet(class_names, {split: tar_split(sorted(places), labels) for split, places in splits.items()})


def _folder_names(path: str) -> dict[str, str]:
    """The folder that each archive stands for: none for one that was named itself."""
    if os.path.isfile(path):
        return {path: ""}
    return {
        archive: os.path.relpath(archive, path).removesuffix(".tar").replace(os.sep, "/") + "/" for archive in find_tars(path)
    }


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _laid_out(paths: Sequence[list[str]]) -> Iterator[tuple[str | None, list[str], list[str]]]:
    """The split of each path, None where it lies beside those; its folder, if it has one; and the parts from the class on.

    What all have in common above splits and classes is left out: photos.tar may hold photos/train/CLASS/.
    """
    folders = [parts[:-1] for parts in paths]
    ends = zip(min(folders, default=[]), max(folders, default=[]), strict=False)
    common = [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], ends)]
    common = common[: max(map(len, folders), default=1) - 1]  # the last may be the only class
    depth = next((depth for depth, part in enumerate(common) if part.lower() in SPLIT_NAMES), len(common))
    has_splits = any(len(parts) > depth + 1 and parts[depth].lower() in SPLIT_NAMES for parts in paths)
    for parts in paths:
        split: str | None = "train"
        above, inner = [], parts[depth:]
        if has_splits:
            above, inner = inner[:1], inner[1:]
            split = SPLIT_NAMES.get(above[0].lower()) if above else None
            if len(inner) > 2 and SPLIT_NAMES.get(inner[0].lower()) == split:
                inner = inner[1:]  # train.tar with train/CLASS/ in it
        yield split, above, inner
