"""Loads pretrained weights into a network of timm: never code that is in them, and never those of another network."""

import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import timm
from torch import nn

from dropkey_cli.errors import InputError


class Taken(NamedTuple):
    """What a network took of its weights."""

    total: int
    """Tensors of the network."""
    new: list[str]
    """Those that the weights have nothing for."""
    left_out: list[str]
    """Tensors of the weights that the network has no place for; a classifier of other classes is not counted."""


def load_pretrained(model_name: str, arguments: dict[str, Any], *, source: str, of_timm: bool, changed: list[str]) -> nn.Module:
    """The network with its pretrained weights; without them, it was tried already.

    Args:
        model_name: timm's name.
        arguments: What ``timm.create_model`` takes.
        source: The weights, in a phrase.
        of_timm: Whether timm itself gives these weights to this name.
        changed: Arguments that make the network another one than the weights were saved from. Then, as with timm's own
            weights, half of its tensors are enough; otherwise none but the classifier's may be missing.

    Raises:
        InputError: If the weights cannot be loaded, would run code, or are those of another network.
    """
    try:
        with _plain_weights_only(), _recorded_loads() as loads:
            model: nn.Module = timm.create_model(model_name, pretrained=True, **arguments)
    except Exception as error:  # each way to load them has its own kinds
        raise InputError(
            f"the pretrained weights of {model_name}, {source}, cannot be loaded ({_reason(error)}): give a file with nothing "
            "but the weights of this network, best as .safetensors, or train from scratch with --model.pretrained false"
        ) from error
    for loaded, new, left_out in loads:
        if loaded is model:
            taken = Taken(len(model.state_dict()), new, left_out)
            _check_taken(model_name, model, taken, source=source, half=of_timm or bool(changed), changed=changed)
            vars(model)["taken_weights"] = taken
    return model


def taken_line(network: nn.Module) -> str | None:
    """How many tensors a network took of its pretrained weights, in a phrase; None if it has none."""
    taken: Taken | None = vars(network).get("taken_weights")
    if taken is None:
        return None
    if not taken.new:
        text = f"all {taken.total} tensors are taken, the classifier's too"
    else:
        text = f"{taken.total - len(taken.new)} of {taken.total} tensors are taken; {_listed(taken.new)} start anew"
    return text + (f"; not used: {_listed(taken.left_out)}" if taken.left_out else "")


def _check_taken(model_name: str, model: nn.Module, taken: Taken, *, source: str, half: bool, changed: list[str]) -> None:
    """Refuse weights that leave the network as random as it was: timm loads what fits where the classes differ."""
    classifiers: Any = vars(model)["pretrained_cfg"].get("classifier") or ()
    classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
    own = [f"{name}.{part}" for name in classifiers for part in ("weight", "bias")]
    missing = [name for name in taken.new if name not in own]
    if not missing or (half and 2 * len(missing) <= taken.total):
        return
    found = f"; it has others, such as {taken.left_out[0]!r}" if taken.left_out else ""
    of_ours = any(name.startswith("network.") for name in taken.left_out)
    remedy = "make a model of it with dropkey export, or" if of_ours else "name the network that they are of, or"
    made = f", which has {', '.join(changed)} of its own" if changed else ""
    raise InputError(
        f"the pretrained weights {source} are not those of {model_name}{made}: {len(missing)} of its {taken.total} tensors are "
        f"not in them, such as {missing[0]!r}{found}; {remedy} train from scratch with --model.pretrained false"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) or isinstance(error.__cause__, pickle.UnpicklingError):
        return "the file is damaged, or loading it would run code that is in it"
    lines = str(error).strip().splitlines() or [""]
    if lines[0].startswith("Error(s) in loading state_dict"):
        return f"they are those of another network: {' '.join(' '.join(lines[1:]).split())[:150]} …"
    return f"{type(error).__name__}: {lines[0]}"


@contextmanager
def _recorded_loads() -> Iterator[list[tuple[nn.Module, list[str], list[str]]]]:
    """What every load_state_dict meanwhile found missing and left over: timm only logs it, at length, and that is silenced."""
    loads: list[tuple[nn.Module, list[str], list[str]]] = []
    original, logger = nn.Module.load_state_dict, logging.getLogger("timm.models._builder")
    level = logger.level

    def recording(self: nn.Module, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - torch's own
        result = original(self, *arguments, **options)
        loads.append((self, list(result.missing_keys), list(result.unexpected_keys)))
        return result

    nn.Module.load_state_dict = recording  # type: ignore[method-assign]  # only while timm loads
    logger.setLevel(logging.ERROR)
    try:
        yield loads
    finally:
        logger.setLevel(level)
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


@contextmanager
def _plain_weights_only() -> Iterator[None]:
    """Let torch.load take tensors and plain data only, whoever calls it.

    timm asks for that, but where a file from a URL makes torch raise a TypeError, timm 1.0.31 loads it again without asking.
    """
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})
