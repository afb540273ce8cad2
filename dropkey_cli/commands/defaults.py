"""The classes that run where no config names others, and what a checkpoint says; light, for what must answer at once."""

import os
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from dropkey_cli.commands.command_line import ROOTS, given_data, given_root, root_of
from dropkey_cli.commands.signatures import constructor_options, outline, wrong_values
from dropkey_cli.data.table_file import ENDINGS, open_table
from dropkey_cli.errors import InputError

DEFAULT_TASK = "dropkey_cli.tasks.classification.Classification"
MULTI_LABEL_TASK = "dropkey_cli.tasks.multi_label.MultiLabelClassification"
DEFAULT_DATA = "dropkey_cli.data.image_folder.ImageFolder"
TABLE_DATA = "dropkey_cli.data.table.ImageTable"
NAMED_DATA = "dropkey_cli.data.named_images.NamedImages"
DATA_BY_ROOT = {**{f"*{ending}": TABLE_DATA for ending in ENDINGS}, "*.tar": NAMED_DATA}
DATA_BY_ROOT |= {f"{kind}/*": NAMED_DATA for kind in ("torch", "hfds", "hfids", "tfds", "wds", "tar")}
"""What reads a root that is no folder: a class path by a pattern of the root in lower case; the first that fits."""

READ_BY_ROOT = {DEFAULT_DATA, *DATA_BY_ROOT.values()}


def data_class(root: str | None) -> str:
    """The class that reads a root where none is named: by `DATA_BY_ROOT`, or else the image folder."""
    if root is None or os.path.isdir(os.path.expanduser(root)):
        return DEFAULT_DATA
    fitting = (class_path for pattern, class_path in DATA_BY_ROOT.items() if fnmatchcase(root.lower(), pattern))
    return next(fitting, DEFAULT_DATA)


def default_classes(command: str, words: list[str]) -> dict[str, str]:
    """The class of each part where none is named, by part.

    Args:
        command: For predict, the data are files and folders, whatever they are called.
        words: Its options, with the configs that they name.
    """
    if command == "predict":
        return {"model": DEFAULT_TASK, "data": DEFAULT_DATA}
    root = given_root(words)
    data = data_class(root)
    several = data == TABLE_DATA and _has_several_labels(str(root), words)
    return {"model": MULTI_LABEL_TASK if several else DEFAULT_TASK, "data": data}


def _has_several_labels(table: str, words: list[str]) -> bool:
    """Whether the labels of a table are several per image: they have a separator, or the first one is a list."""
    given = list(given_data(words))
    if any(options.get("label_separator") for options in given):
        return True
    with suppress(InputError):  # it is refused where all of it is read
        return open_table(table).has_lists(next(filter(None, (options.get("label_column") for options in given)), None))
    return False


def named_by_root(command: str, words: list[str]) -> list[str]:
    """The words with the class that reads the given root, where a config names the one for a root of another kind.

    So a run's config.yaml can be used with a table in the place of its folder: the command line wins over the config.

    Args:
        command: fit, validate, test or predict.
        words: Its options, configs first.
    """
    layers = list(given_data(words))
    roots, named = map(root_of, layers), [str(options.get("class_path") or "") for options in layers]
    first_root = next((place for place, root in enumerate(roots) if root), len(layers))
    first_class = next((place for place, class_path in enumerate(named) if class_path), 0)
    if command == "predict" or first_root >= first_class or named[first_class] not in READ_BY_ROOT:
        return words
    class_path = data_class(root_of(layers[first_root]))
    end = 2 * (len(layers) - first_class)  # of the config that names the class: each is two words, the last is the first layer
    return words if class_path == named[first_class] else [*words[:end], f"--data={class_path}", *words[end:]]


def checkpoint_defaults(description: dict[str, Any], command: str, words: list[str]) -> dict[str, Any]:
    """What a checkpoint says, as defaults of a command's options.

    Args:
        description: The checkpoint's own description.
        command: For predict, the data are files and folders, whatever the network was trained on.
        words: The command line: a class from outside dropkey is imported only if it stands there.

    Raises:
        InputError: If the checkpoint names another class, which importing would run, or says what cannot be.
    """
    parts = {part: description["config"][part] for part in (["model"] if command == "predict" else ["model", "data"])}
    for part, options in parts.items():
        asked = _values(words, f"--{part}")
        for name, class_path in _class_paths(options, part):
            if not class_path.startswith("dropkey_cli.") and class_path not in asked:
                raise InputError(
                    f"the checkpoint wants the class {class_path!r}, not dropkey's own: "
                    f"if you trust it, add --{name} {class_path}"
                )
        _check_values(part, options["class_path"], options.get("init_args", {}))
    _check_values("preprocessing", DEFAULT_DATA, description.get("preprocessing", {}))
    if (root := given_root(words)) is not None and "data" in parts:
        parts["data"] = _read_by(data_class(root), parts["data"])
    return parts


def _read_by(class_path: str, data: dict[str, Any]) -> dict[str, Any]:
    """The options of data for a root of perhaps another kind: those that both kinds take stay, but for the old root."""
    if data["class_path"] == class_path or data["class_path"] not in READ_BY_ROOT:
        return data
    kept = constructor_options(outline(class_path)) - {*ROOTS}
    options = {name: value for name, value in data.get("init_args", {}).items() if name in kept}
    return {"class_path": class_path, "init_args": options}


def _values(words: list[str], prefix: str) -> set[str]:
    """The values of the options whose names begin so."""
    options = [(*word.partition("="), after) for word, after in zip(words, [*words[1:], ""], strict=False)]
    return {value if equals else after for name, equals, value, after in options if name.startswith(prefix)}


def _class_paths(options: Any, name: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any part of a config
    """Every class that options name, with the name of the option that would name it on the command line."""
    if isinstance(options, list):
        for option in options:
            yield from _class_paths(option, name)
    elif isinstance(options, dict):
        if "class_path" in options:
            yield (name if "." not in name else f"{name}.class_path"), str(options["class_path"])
        for key, option in options.items():
            yield from _class_paths(option, f"{name}.{key}")


def _check_values(what: str, class_path: str, options: dict[str, Any]) -> None:
    """Refuse what an option of ours cannot be: some texts would be imported for an option that is a class."""
    if not class_path.startswith("dropkey_cli."):
        return
    try:
        ours = outline(class_path)
    except (AssertionError, OSError) as error:
        raise InputError(
            f"the checkpoint wants the class {class_path!r}, which this version of dropkey does not have"
        ) from error
    if wrong := wrong_values(ours, options):
        raise InputError(
            f"the checkpoint is damaged, its {what} has {wrong[0]} {options[wrong[0]]!r}: give one that dropkey fit wrote"
        )
