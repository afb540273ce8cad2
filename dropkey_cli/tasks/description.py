"""What a checkpoint says of its network, as plain data, and whether it is the network at hand."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from dropkey_cli.data.preprocessing import Preprocessing
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings


def describe(
    *,
    model_name: str,
    model_args: dict[str, Any],
    class_names: list[str],
    preprocessing: Preprocessing,
    dropkey: DropKeySettings | None,
) -> dict[str, Any]:
    """All that prediction needs besides the weights, as plain data.

    Args:
        model_name: timm's name of the network.
        model_args: Further arguments of its constructor.
        class_names: Name of each of the K classes.
        preprocessing: How images reach the network.
        dropkey: How keys were dropped; None for not at all.
    """
    images = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(preprocessing).items()}
    return {
        "format": 1,
        "versions": {name: version(name) for name in ("dropkey", "timm", "torch", "lightning")},
        "model": {"name": model_name, "args": model_args, "image_size": preprocessing.image_size},
        "class_names": class_names,
        "preprocessing": images,
        "dropkey": None if dropkey is None else asdict(dropkey),
    }


def check_same_network(checkpoint: dict[str, Any], mine: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Refuse the weights of another network in a sentence instead of a page of tensor names.

    Args:
        checkpoint: As Lightning loaded it.
        mine: What `describe` says of the network at hand.
        tensors: Its state_dict.

    Raises:
        InputError: If they differ.
    """
    saved = checkpoint.get("dropkey")
    if saved is None:
        raise InputError("this checkpoint was not written by dropkey: it says neither its network nor its classes")
    for what in ("model", "class_names"):
        if (given := saved.get(what)) != mine[what]:
            raise InputError(
                f"the checkpoint has {what} {given}, the options or the data give {mine[what]}: leave those options "
                "out to take the checkpoint's, or give data of the same classes"
            )
    own = _shapes(tensors)
    stored = _shapes(checkpoint["state_dict"]) if "state_dict" in checkpoint else own  # FSDP2 has loaded it by itself
    if wrong := [name for name in {**own, **stored} if own.get(name) != stored.get(name)]:
        raise InputError(
            f"the checkpoint is damaged, {len(wrong)} of its tensors are not those of the network, such as {wrong[0]!r}: "
            "give one that dropkey fit wrote"
        )


def _shapes(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}
