"""WebDataset shards: tar files in which the files NAME.jpg and NAME.cls, or NAME.json, are one image and its class."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

from dropkey_cli.data.class_folders import SPLIT_NAMES, sorted_classes
from dropkey_cli.data.named.named_set import NamedSet, choose_splits, numbers
from dropkey_cli.data.named.tar_files import Place, find_tars, kept_rows, tar_members, tar_split
from dropkey_cli.data.reading import is_image_file
from dropkey_cli.errors import InputError

_LAYOUT = "expected WebDataset shards such as train-0000.tar, with NAME.jpg and NAME.cls (or NAME.json) for each image"
_SPLIT_IN_NAME = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![a-z])")
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")


def open_shards(
    root: str, path: str, *, splits: dict[str, str] | None = None, input_key: str | None = None, target_key: str | None = None
) -> NamedSet:
    """The images and classes of shards on a drive. They are read by position, not as a stream: in any order, each once.

    Args:
        root: What the user gave.
        path: A folder of shards, with or without timm's info.json, or a pattern with ``*`` or ``{000..003}``.
        splits: Which splits of the shards are train, val and test; by default as their names say.
        input_key: Extensions of the images, separated by semicolons; by default every known one.
        target_key: Field of each image's .json that holds its class; by default the .cls file does.

    Raises:
        InputError: If there are no such shards.
    """
    path = os.path.expanduser(path)
    known = _shards_by_split(root, path)
    kinds = [f".{kind.strip().lower()}" for kind in input_key.split(";")] if input_key else None
    places: dict[str, list[Place]] = {}
    for split, name in choose_splits(root, list(known), splits).items():
        rows = kept_rows(f"shards {kinds} {target_key}", known[name], lambda shard: _samples(shard, kinds, target_key))
        places[split] = [Place(sample, shard, *rest) for shard, samples in rows.items() for sample, *rest in samples]
        if not places[split]:
            raise InputError(f"the {name} shards of {root!r} hold no image; {_LAYOUT}; check them, and --data.input_key")
    given = {place.label for split in places.values() for place in split}
    class_names = _class_names(root, path if os.path.isdir(path) else os.path.dirname(path), given)
    # Numbers are places among the names, even where these are other numbers
    labels = {label: int(label) for label in given} if _are_numbers(given) else {name: n for n, name in enumerate(class_names)}
    return NamedSet(class_names, {split: tar_split(found, labels) for split, found in places.items()})


def _shards_by_split(root: str, path: str) -> dict[str, list[str]]:
    """The shards of each split by the name that it has there."""
    info = next((Path(path, name) for name in ("_info.json", "info.json") if Path(path, name).is_file()), None)
    if info is not None:
        return _shards_of_info(path, info)
    is_folder = os.path.isdir(path)
    shards = (
        find_tars(path) if is_folder else [shard for named in _counted_out(path) for shard in sorted(glob(named)) or [named]]
    )
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if missing or not shards:
        problem = f"{missing[0]!r} does not exist" if missing else f"{path!r} holds no .tar file"
        raise InputError(f"{root!r}: {problem}; {_LAYOUT}; check the path")
    found: dict[str, list[str]] = defaultdict(list)
    for shard in shards:
        names = _SPLIT_IN_NAME.findall(os.path.relpath(shard, path if is_folder else os.path.dirname(path)).lower())
        found[names[-1] if names else "train"].append(shard)
    return dict(found)


def _counted_out(path: str) -> list[str]:
    """The names that ``{000..003}`` in a path stands for."""
    found = _NUMBERS.search(path)
    if found is None:
        return [path]
    first, last = found.groups()
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [name for number in numbers for name in _counted_out(path[: found.start()] + number + path[found.end() :])]


def _shards_of_info(path: str, info: Path) -> dict[str, list[str]]:
    try:
        splits = json.loads(info.read_bytes())["splits"]
        return {name: [os.path.join(path, shard) for shard in split["filenames"]] for name, split in splits.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(info)!r} cannot be read ({type(error).__name__}: {error}); expected timm's "
            '{"splits": {"train": {"filenames": ["train-0000.tar", …]}}}; mend or remove it'
        ) from error


def _samples(shard: str, kinds: list[str] | None, target_key: str | None) -> list[list[Any]]:
    """Name, offset, size and class of each image of a shard; what has the same name up to the first dot belongs together."""
    samples: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for name, offset, size in tar_members(shard):
        folder, file = os.path.split(name)
        key, _, kind = file.partition(".")
        samples[f"{folder}/{key}" if folder else key][f".{kind.lower()}"] = (offset, size)
    with open(shard, "rb") as opened:

        def read(place: tuple[int, int]) -> bytes:
            opened.seek(place[0])
            return opened.read(place[1])

        rows = []
        for name, files in samples.items():
            image = next((kind for kind in kinds or files if kind in files and (kinds or is_image_file(f"x{kind}"))), None)
            if image is not None:
                name = f"{os.path.basename(shard).removesuffix('.tar')}/{name}"  # keys may begin anew in each shard
                rows.append([name, *files[image], _label(name, files, target_key, read)])
        return rows


def _label(name: str, files: dict[str, tuple[int, int]], field: str | None, read: Callable[[tuple[int, int]], bytes]) -> str:
    """What is said of an image's class."""
    kind = ".json" if field else ".cls"
    if kind not in files:
        advice = "check the shards" if field else "give --data.target_key FIELD if its class is in .json"
        raise InputError(f"{name!r} has no {kind} file (found: {', '.join(sorted(files))}); {_LAYOUT}; {advice}")
    if field is None:
        return read(files[kind]).decode(errors="replace").strip()
    try:
        fields = json.loads(read(files[kind]))
    except ValueError as error:
        raise InputError(f"the .json of {name!r} cannot be read ({error}); expected a field {field!r}; mend it") from error
    if not isinstance(fields, dict) or not isinstance(fields.get(field), str | int):
        raise InputError(
            f"the .json of {name!r} has no class in {field!r}; expected a number or a name there; "
            f"give --data.target_key, one of {', '.join(fields) if isinstance(fields, dict) else 'its fields'}"
        )
    return str(fields[field])


def _class_names(root: str, folder: str, given: set[str]) -> list[str]:
    """The names in classnames.txt beside the shards, as open_clip writes it; else numbers, or what the labels say."""
    file, are_numbers = Path(folder, "classnames.txt"), _are_numbers(given)
    largest = max(map(int, given)) if are_numbers else 0
    if not file.is_file():
        return numbers(root, largest) if are_numbers else sorted_classes(given)
    names = file.read_text(encoding="utf-8").splitlines()
    unknown = sorted(given - set(names)) if not are_numbers else [str(largest)] * (largest >= len(names))
    if unknown:
        raise InputError(f"{str(file)!r} has {len(names)} names, none for the class {unknown[0]!r}; add it, or remove the file")
    return names


def _are_numbers(given: set[str]) -> bool:
    return all(label.isdecimal() for label in given)
