"""Builds a timm network by name: the one place that calls ``timm.create_model``."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from timm.models import PretrainedCfg
from timm.models._hub import check_cached_file, get_cache_dir
from torch import nn

from dropkey_cli.errors import InputError, did_you_mean


@dataclass(frozen=True)
class ImageConfig:
    """The images that a network's weights were trained on: side length in pixels, statistics, resizing, crop."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    crop_mode: str


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


def image_config(model_name: str) -> ImageConfig:
    """The images that ``model_name`` was made for."""
    config = pretrained_config(model_name)
    mean, std = ((red, green, blue) for red, green, blue in (config.mean, config.std))
    return ImageConfig(max(config.input_size[1:]), mean, std, config.interpolation, config.crop_pct, config.crop_mode)


def create_model(
    model_name: str, *, num_classes: int, image_size: int, pretrained: bool, model_args: dict[str, Any] | None = None
) -> nn.Module:
    """A timm network for ``num_classes`` classes and square images.

    Args:
        model_name: timm's name, with or without the weights' tag.
        num_classes: Outputs of the classifier.
        image_size: Height and width in pixels; where it is not the model's own, timm resamples the position embeddings.
        pretrained: Load the pretrained weights: from the cache, or from the hub.
        model_args: Further arguments of the model's constructor, e.g. ``{"drop_path_rate": 0.1}``; with
            ``{"pretrained_cfg_overlay": {"file": "weights.pth"}}`` the pretrained weights come from this file.

    Raises:
        InputError: If the name or an argument is unknown, or the weights can neither be found nor fetched.
    """
    config = pretrained_config(model_name)
    arguments = {"num_classes": num_classes, **(model_args or {})}
    if "img_size" in arguments:
        raise InputError("model_args has img_size: give the image size with --data.image_size, for the images and the model")
    if "num_classes" in (model_args or {}):
        raise InputError(f"model_args has num_classes: the data say how many classes there are, {num_classes}; leave it out")
    if "pretrained" in arguments:
        raise InputError("model_args has pretrained: say with --model.pretrained whether to start from trained weights")
    arguments = _fit_to_images(model_name, arguments, image_size, native_size=max(config.input_size[1:]))
    if pretrained:
        _check_weights(model_name, config, _weights_file(model_args))
    model: nn.Module = timm.create_model(model_name, pretrained=pretrained, **arguments)
    return model


def describe_weights(model_name: str, model_args: dict[str, Any] | None = None) -> str:
    """The pretrained weights of ``model_name`` with their source and licence, in one phrase."""
    config, file = pretrained_config(model_name), _weights_file(model_args)
    if file is not None:
        return f"from {file}"
    if not config.has_weights:
        return "none are published"
    source = config.hf_hub_id or config.url or "unknown source"
    return f"{config.tag or 'default'} weights from {source} (licence: {config.license or 'not stated by timm'})"


def _fit_to_images(model_name: str, arguments: dict[str, Any], image_size: int, *, native_size: int) -> dict[str, Any]:
    """``arguments``, with ``img_size`` where the images are not of the native size and the model takes it.

    Raises:
        InputError: If the constructor refuses them; nothing is fetched or allocated to find that out.
    """
    fitted = arguments if image_size == native_size else {**arguments, "img_size": image_size}
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


def _weights_file(model_args: dict[str, Any] | None) -> str | None:
    overlay = (model_args or {}).get("pretrained_cfg_overlay") or {}
    file: str | None = overlay.get("file")
    return file


def _check_weights(model_name: str, config: PretrainedCfg, file: str | None) -> None:
    """Refuse at once what would fail after a minute of retries."""
    if file is not None:
        if not Path(file).is_file():
            raise InputError(f"the weights {file!r} in model_args do not exist: give a file, or --model.pretrained false")
        return
    if not config.has_weights:
        raise InputError(f"{model_name} has no pretrained weights: train from scratch with --model.pretrained false")
    if config.hf_hub_id:  # which timm prefers to the URL
        if not _is_cached(config.hf_hub_id):
            reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
            _refuse_to_fetch(model_name, config.hf_hub_id, f"{constants.HF_HUB_CACHE} (HF_HOME)", reason)
    elif isinstance(config.url, str) and not check_cached_file(config.url):
        _refuse_to_fetch(model_name, config.url, f"{get_cache_dir()} (TORCH_HOME)", _unreachable(config.url))


def _refuse_to_fetch(model_name: str, source: str, cache: str, reason: str | None) -> None:
    """Raise an error where there is a ``reason``."""
    if reason:
        raise InputError(
            f"the pretrained weights of {model_name} ({source}) are not in the cache {cache} and cannot be fetched ({reason}): "
            "connect once, take a filled cache, or train from scratch with --model.pretrained false"
        )


def _is_cached(repository: str) -> bool:
    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def _unreachable(address: str) -> str | None:
    """Why ``address`` does not answer within a second; None if it does."""
    try:
        get_session().head(address, timeout=1)
    except Exception as error:  # every kind of network trouble means the same here
        return f"{address} does not answer: {type(error).__name__}"
    return None
