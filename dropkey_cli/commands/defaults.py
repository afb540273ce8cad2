"""The classes that run where no config names others, and what a checkpoint says; light, for what must answer at once."""

from typing import Any

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
        InputError: If the checkpoint names another class, which importing would run.
    """
    parts = {part: description["config"][part] for part in (["model"] if command == "predict" else ["model", "data"])}
    for part, options in parts.items():
        class_path = options["class_path"]
        if not class_path.startswith("dropkey_cli.") and not any(class_path in word for word in words):
            raise InputError(
                f"the checkpoint wants the class {class_path!r}, not dropkey's own: if you trust it, add --{part} {class_path}"
            )
    return parts
