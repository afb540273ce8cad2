"""Builds the network of a task: drop rates, gradient checkpointing, frozen layers."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal

from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dropkey_cli.errors import InputError, did_you_mean
from dropkey_cli.models.factory import create_model

Frozen = Literal["backbone"] | list[str] | None


def create_network(
    model_name: str,
    *,
    num_classes: int,
    image_size: int,
    pretrained: bool,
    model_args: dict[str, Any],
    class_names: list[str] | None = None,
    drop_path: float | None = None,
    patch_drop: float | None = None,
) -> nn.Module:
    """A timm network with its drop rates.

    Args:
        model_name: timm's name.
        num_classes: Outputs of the classifier.
        image_size: Height and width in pixels.
        pretrained: Load the pretrained weights.
        model_args: Further arguments of its constructor.
        class_names: Name of each class, by which weights that lie with names keep their classifier.
        drop_path: Stochastic depth; None leaves it to the network.
        patch_drop: Share of patches left out in training; None leaves it to the network.

    Raises:
        InputError: If the network has no such thing.
    """
    rates = {"drop_path": drop_path, "patch_drop": patch_drop}
    arguments = {f"{name}_rate": rate for name, rate in rates.items() if rate is not None}
    for name in arguments:
        if name in model_args:
            option = name.removesuffix("_rate")
            raise InputError(f"model_args has {name}, and {option} is given too: leave one of them out")
    try:
        network = create_model(
            model_name,
            num_classes=num_classes,
            image_size=image_size,
            pretrained=pretrained,
            model_args={**model_args, **arguments},
            class_names=class_names,
        )
    except InputError as error:
        if refused := next((name for name in arguments if f"'{name}'" in str(error.__cause__)), None):
            raise _lacks(model_name, refused.removesuffix("_rate")) from error
        raise
    for name, rate in rates.items():
        if rate and not any(_drops(module, name) for module in network.modules()):  # some take the argument, unused
            raise _lacks(model_name, name)
    return network


def _drops(module: nn.Module, what: str) -> bool:
    if what == "patch_drop":
        return isinstance(module, PatchDropout | PatchDropoutWithIndices) or bool(
            getattr(module, "patch_drop_rate", 0)
        )  # Hiera
    return bool(getattr(module, "drop_prob", 0))


def _lacks(model_name: str, what: str) -> InputError:
    words = {"drop_path": "drop path", "patch_drop": "patch dropout"}
    return InputError(f"{model_name} has no {words[what]}: leave out --model.{what}, or give another --model.model_name")


def prepare_training(network: nn.Module, model_name: str, *, frozen: Frozen, grad_checkpointing: bool, compiled: bool) -> None:
    """Freeze, checkpoint and compile a network as asked.

    Args:
        network: Any of timm's, DropKey patched in.
        model_name: timm's name.
        frozen: As `freeze_weights` takes it.
        grad_checkpointing: Compute activations anew in the backward pass.
        compiled: Compile its forward, in place: the names of the weights stay.

    Raises:
        InputError: If the network cannot.
    """
    freeze_weights(network, frozen)
    if grad_checkpointing:
        checkpoint_gradients(network, model_name)
    if compiled:
        network.compile()


def checkpoint_gradients(network: nn.Module, model_name: str) -> None:
    """Compute the blocks' activations anew in the backward pass instead of keeping them.

    Raises:
        InputError: If the network cannot.
    """
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's networks have it
    except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
        raise InputError(f"{model_name} has no gradient checkpointing: leave out --model.grad_checkpointing") from error


def freeze_weights(network: nn.Module, frozen: Frozen) -> None:
    """Exclude weights from training, and the running statistics of batch norms all of whose weights are excluded.

    Args:
        network: Any of timm's.
        frozen: ``backbone`` for all but the classifier; or patterns of names of weights or of the modules around them, such as
            ``patch_embed`` or ``blocks.[0-5]``; None for nothing.

    Raises:
        InputError: If a pattern matches nothing, or nothing is left to train.
    """
    if frozen is None:
        return
    names = [name for name, _ in network.named_parameters()]
    excluded = set(_all_but_classifier(network) if frozen == "backbone" else _matching(frozen, names))
    if excluded == set(names):
        raise InputError(f"freeze {frozen!r} leaves no weights to train: give fewer patterns with --model.freeze")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in excluded)
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()  # Lightning leaves it so


def _all_but_classifier(network: nn.Module) -> Iterator[str]:
    classifier: Any = network.get_classifier()  # type: ignore[operator]  # timm's networks have it
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    trained = {id(parameter) for head in heads for parameter in head.parameters()}
    return (name for name, parameter in network.named_parameters() if id(parameter) not in trained)


def _matching(patterns: Iterable[str], names: list[str]) -> Iterator[str]:
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not found:
            modules = {name[:end] for name in names for end, letter in enumerate(name) if letter == "."}
            raise InputError(
                f"freeze has {pattern!r}, which no weight's name matches; expected patterns such as patch_embed or "
                f"'blocks.[0-5]'; give --model.freeze{did_you_mean(pattern, {*names, *modules})}"
            )
        yield from found
