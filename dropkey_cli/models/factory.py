"""Builds a timm network by name; outside this folder nothing calls ``timm.create_model``."""

import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from dropkey_cli.errors import InputError, did_you_mean
from dropkey_cli.models.availability import HUB_WEIGHTS, check_address, check_hub_file
from dropkey_cli.models.loading import load_pretrained
from dropkey_cli.models.sources import Saved, saved_beside

FROM_SCRATCH = "train from scratch with --model.pretrained false"
# What timm.create_model takes besides constructor arguments: other weights than those that the plan names
_NO_MODEL_ARGS = ("pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir")
_SOURCES = ("file", "hf_hub_id", "hf_hub_filename", "url")
# Arguments that change no tensor
_NOT_SHAPING = ("pretrained_cfg_overlay", "dynamic_img_size")


@dataclass(frozen=True)
class ImageConfig:
    """The images that a network's weights were trained on: side length in pixels, channels, statistics, resizing, crop."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    channels: int = 3


def pretrained_config(model_name: str) -> PretrainedCfg:
    """What timm knows about a model name: weights, their licence, the images they expect.

    Raises:
        InputError: If timm has no such model or no such weights (the part after the dot).
    """
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise InputError(
            f"{model_name!r} is not a model that timm {timm.__version__} or dropkey has: "
            f"give one of those that dropkey models lists{did_you_mean(architecture, known)}"
        )
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*") if "." in name]
    if tag and tag not in tags:
        raise InputError(f"{architecture} has no weights {tag!r}: give one of {', '.join(tags)}{did_you_mean(tag, tags)}")
    config = timm.get_pretrained_cfg(model_name)
    return config if config is not None else PretrainedCfg()


def image_config(model_name: str, model_args: dict[str, Any] | None = None, *, channels: int = 3) -> ImageConfig:
    """The images that the weights of ``model_name``, or those in ``model_args``, were made for.

    Args:
        model_name: timm's name, with or without the weights' tag.
        model_args: Further arguments of its constructor; they may name other weights.
        channels: Channels of the images; where they are not those of the weights, all have the average of their statistics,
            as in timm's loader.

    Raises:
        InputError: If timm has no such model, or the number of channels cannot be.
    """
    if not 1 <= channels <= 10_000:
        raise InputError(f"channels is {channels!r}; expected 1 to 10000; give --data.channels 3")
    config = weights_config(model_name, model_args)
    mean, std = (
        tuple(values) if len(values) == channels else (fmean(values),) * channels for values in (config.mean, config.std)
    )
    size = max(config.input_size[1:])
    return ImageConfig(size, mean, std, config.interpolation, config.crop_pct, config.crop_mode, channels)


def with_channels(model_args: dict[str, Any], channels: int) -> dict[str, Any]:
    """The arguments of a network's constructor for images of so many channels.

    Args:
        model_args: Those that were asked for.
        channels: Channels of the images.

    Raises:
        InputError: If they ask for another number.
    """
    given = model_args.get("in_chans", channels)
    if given != channels:
        raise InputError(
            f"model_args has in_chans {given!r}, but the images have {channels} channels; expected the same; "
            f"leave it out and give --data.channels {given}"
        )
    return model_args if channels == 3 else {**model_args, "in_chans": channels}


def create_model(
    model_name: str,
    *,
    num_classes: int,
    image_size: int,
    pretrained: bool,
    model_args: dict[str, Any] | None = None,
    class_names: list[str] | None = None,
) -> nn.Module:
    """A timm network for ``num_classes`` classes and square images.

    Args:
        model_name: timm's name, with or without the weights' tag.
        num_classes: Outputs of the classifier.
        image_size: Height and width in pixels; where it is not the model's own, timm resamples the position embeddings.
        pretrained: Load the pretrained weights: from the cache, or from the hub.
        model_args: Further arguments of the model's constructor, e.g. ``{"drop_path_rate": 0.1}``; with
            ``{"pretrained_cfg_overlay": {"file": "weights.pth"}}`` the pretrained weights come from this file.
        class_names: Name of each class. Weights that lie with the names of theirs keep their classifier only for the same.

    Raises:
        InputError: If the name or an argument is unknown, or the weights can neither be found nor fetched, are those of
            another network, or would run code when they are loaded.
    """
    config = weights_config(model_name, model_args)
    arguments = {"num_classes": num_classes, **(model_args or {})}
    if "img_size" in arguments:
        raise InputError("model_args has img_size: give the image size with --data.image_size, for the images and the model")
    if "num_classes" in (model_args or {}):
        raise InputError(f"model_args has num_classes: the data say how many classes there are, {num_classes}; leave it out")
    sizes = {max(known.input_size[1:]) for known in (config, pretrained_config(model_name))}
    arguments = _fit_to_images(model_name, arguments, image_size, native=sizes == {image_size})
    if not pretrained:
        model: nn.Module = timm.create_model(model_name, **arguments)
        return model
    _check_weights(model_name, config)
    saved = saved_beside(config)
    if saved is not None and class_names is not None and saved.class_names not in (None, class_names):
        overlay = arguments.get("pretrained_cfg_overlay") or {}
        arguments = {**arguments, "pretrained_cfg_overlay": {**overlay, "num_classes": 0}}  # timm: a new classifier
    return load_pretrained(
        model_name,
        arguments,
        source=describe_weights(model_name, model_args),
        of_timm=not _is_elsewhere(config, pretrained_config(model_name)),
        changed=_changed(model_args or {}, saved),
    )


def create_saved(folder: Path) -> nn.Module:
    """The model in a folder that timm saved, with its weights, in evaluation mode: as whoever gets the folder loads it."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


def _changed(model_args: dict[str, Any], saved: Saved | None) -> list[str]:
    """The arguments that make the network another one than its weights were saved from."""
    before = {} if saved is None else saved.model_args
    return [
        name
        for name, value in model_args.items()
        if name not in _NOT_SHAPING and not name.endswith("_rate") and before.get(name) != value
    ]


def describe_weights(model_name: str, model_args: dict[str, Any] | None = None) -> str:
    """The pretrained weights of ``model_name`` with their source and licence, in one phrase."""
    config, known = weights_config(model_name, model_args), pretrained_config(model_name)
    if not config.has_weights:
        return "none are published"
    source = config.file or config.hf_hub_id or config.url or "unknown source"
    if _is_elsewhere(config, known):
        stated = "license" in ((model_args or {}).get("pretrained_cfg_overlay") or {})
        licence = f" (licence: {config.license or 'not stated'})" if stated else ""
        of_hub = config.file is None and config.hf_hub_id and config.hf_hub_filename
        return f"from {source}" + (f", file {config.hf_hub_filename}" if of_hub else "") + licence
    return f"{config.tag or 'default'} weights from {source} (licence: {config.license or 'not stated by timm'})"


def licence_and_source(model_name: str, model_args: dict[str, Any] | None = None) -> tuple[str | None, str | None]:
    """The licence of the pretrained weights and the model of the hub that they are; None for what is not known."""
    config, known = weights_config(model_name, model_args), pretrained_config(model_name)
    stated = "license" in ((model_args or {}).get("pretrained_cfg_overlay") or {}) or not _is_elsewhere(config, known)
    return (config.license if stated else None), (config.hf_hub_id if config.file is None else None)


def _is_elsewhere(config: PretrainedCfg, known: PretrainedCfg) -> bool:
    """Whether the weights are others than timm's of that name."""
    return any(getattr(config, name) != getattr(known, name) for name in _SOURCES)


def _fit_to_images(model_name: str, arguments: dict[str, Any], image_size: int, *, native: bool) -> dict[str, Any]:
    """``arguments``, with ``img_size`` where the images are not of the native size and the model takes it.

    Raises:
        InputError: If the constructor refuses them; nothing is fetched or allocated to find that out.
    """
    fitted = arguments if native else {**arguments, "img_size": image_size}
    error = _construction_error(model_name, fitted)
    if isinstance(error, TypeError) and "img_size" in str(error):  # such a model runs on images of any size
        fitted, error = arguments, _construction_error(model_name, arguments)
    if error is not None:
        given = ", ".join(f"{key}={value!r}" for key, value in fitted.items())
        hint = "; --model.model_args null leaves out what a config gave to another model" if len(arguments) > 1 else ""
        raise InputError(f"timm cannot build {model_name} with {given}: {type(error).__name__}: {error}{hint}") from error
    return fitted


def _construction_error(model_name: str, arguments: dict[str, Any]) -> Exception | None:
    """What the constructor raises for ``arguments``, tried without weights; None if it takes them."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again with the real construction
            timm.create_model(model_name, **arguments)
    except Exception as error:  # each constructor has its own kinds
        return error
    return None


def weights_config(model_name: str, model_args: dict[str, Any] | None) -> PretrainedCfg:
    """What timm knows of the weights, with what ``pretrained_cfg_overlay`` in ``model_args`` puts in its place."""
    given = model_args or {}
    for name in _NO_MODEL_ARGS:
        if name in given:
            raise InputError(
                f"model_args has {name}, which is no argument of a network: weights of your own are given as "
                "--model.model_args '{pretrained_cfg_overlay: {file: weights.safetensors}}'"
            )
    overlay = given.get("pretrained_cfg_overlay") or {}
    known = {field.name for field in fields(PretrainedCfg)} - {"source", "state_dict"}
    if not isinstance(overlay, dict) or not overlay.keys() <= known:
        raise InputError(f"model_args has pretrained_cfg_overlay {overlay!r}: give e.g. {{file: weights.safetensors}}")
    for name in _SOURCES:
        if not isinstance(overlay.get(name), str | None):
            raise InputError(f"pretrained_cfg_overlay has {name} {overlay[name]!r}: give a text")
    return replace(pretrained_config(model_name), **overlay)


def _check_weights(model_name: str, config: PretrainedCfg) -> None:
    """Refuse at once what would fail after a minute of retries."""
    if config.file is not None:
        if not Path(config.file).is_file():
            raise InputError(
                f"the weights {config.file!r} in model_args do not exist: give a file, or --model.pretrained false"
            )
        return
    if not config.has_weights:
        raise InputError(f"{model_name} has no pretrained weights: {FROM_SCRATCH}")
    what = f"the pretrained weights of {model_name}"
    if config.hf_hub_id:  # which timm prefers to the URL
        names = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_WEIGHTS
        check_hub_file(what, config.hf_hub_id, names, remedy=FROM_SCRATCH)
    elif isinstance(config.url, str):
        check_address(what, config.url, remedy=FROM_SCRATCH)
