"""The classes that run where no config names others, and what a checkpoint says; light, for what must answer at once."""

from collections.abc import Iterator
from typing import Any

from dropkey_cli.commands.signatures import outline, wrong_values
from dropkey_cli.errors import InputError

DEFAULT_TASK = "dropkey_cli.tasks.classification.Classification"
DEFAULT_DATA = "dropkey_cli.data.image_folder.ImageFolder"


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
    return parts


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
