"""The network of a checkpoint, without the trainer, the task and the data that made it."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dropkey_cli.checkpoints import load_checkpoint
from dropkey_cli.errors import InputError
from dropkey_cli.models.factory import create_model

PREFIX = "network."  # under which a task keeps it
COMPILED = "_orig_mod."  # which torch.compile writes into names


def load_network(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A network as it is in evaluation, without DropKey, and what its checkpoint says of it.

    Args:
        path: A checkpoint that dropkey fit wrote.

    Returns:
        The network on the CPU in float32, in evaluation mode; and the description, see ``checkpoints.read_checkpoint``.

    Raises:
        InputError: If it is no such checkpoint, would run code, or its tensors are not those of the network it names.
    """
    checkpoint = load_checkpoint(path)
    description: dict[str, Any] = checkpoint["dropkey"]
    model = description["model"]
    if not (isinstance(model.get("name"), str) and isinstance(model.get("args"), dict | None)):
        raise InputError(f"{str(path)!r} is damaged, its model {model!r} cannot be: give one that dropkey fit wrote")
    if not isinstance(model.get("image_size"), int):
        raise InputError(f"{str(path)!r} is damaged, its image_size {model.get('image_size')!r} cannot be: give another one")
    network = create_model(
        model["name"],
        num_classes=len(description["class_names"]),
        image_size=model["image_size"],
        pretrained=False,
        model_args=model["args"],
    )
    try:
        network.load_state_dict(network_tensors(checkpoint["state_dict"]))
    except RuntimeError as error:  # torch lists every name
        detail = " ".join(str(error).split())[:200]
        raise InputError(
            f"{str(path)!r} is damaged, its tensors are not those of {model['name']} ({detail} …): give another one"
        ) from error
    return network.eval(), description


def network_tensors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors among those of a task, under the names that they have in the network."""
    named = {name.replace(COMPILED, ""): tensor for name, tensor in state_dict.items()}
    return {name.removeprefix(PREFIX): tensor for name, tensor in named.items() if name.startswith(PREFIX)}
