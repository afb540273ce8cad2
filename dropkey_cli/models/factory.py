"""Builds a timm network by name: the one place that calls ``timm.create_model``."""

import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from threading import Thread
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from timm.models import PretrainedCfg
from timm.models._hub import check_cached_file, get_cache_dir
from torch import nn

from dropkey_cli.errors import InputError, did_you_mean

PATIENCE = 1.5  # seconds for a server to answer, looking up its name included
# What timm.create_model takes besides constructor arguments: other weights than those that the plan names
_NO_MODEL_ARGS = ("pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir")
_SOURCES = ("file", "hf_hub_id", "hf_hub_filename", "url")


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


def image_config(model_name: str, *, channels: int = 3) -> ImageConfig:
    """The images that ``model_name`` was made for.

    Args:
        model_name: timm's name, with or without the weights' tag.
        channels: Channels of the images; where they are not those of the weights, all have the average of their statistics,
            as in timm's loader.

    Raises:
        InputError: If timm has no such model, or the number of channels cannot be.
    """
    if not 1 <= channels <= 10_000:
        raise InputError(f"channels is {channels!r}; expected 1 to 10000; give --data.channels 3")
    config = pretrained_config(model_name)
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
        InputError: If the name or an argument is unknown, or the weights can neither be found nor fetched, are those of
            another network, or would run code when they are loaded.
    """
    config = _weights_config(model_name, model_args)
    arguments = {"num_classes": num_classes, **(model_args or {})}
    if "img_size" in arguments:
        raise InputError("model_args has img_size: give the image size with --data.image_size, for the images and the model")
    if "num_classes" in (model_args or {}):
        raise InputError(f"model_args has num_classes: the data say how many classes there are, {num_classes}; leave it out")
    arguments = _fit_to_images(model_name, arguments, image_size, native_size=max(config.input_size[1:]))
    if not pretrained:
        model: nn.Module = timm.create_model(model_name, **arguments)
        return model
    _check_weights(model_name, config)
    return _load(model_name, arguments, describe_weights(model_name, model_args))


def describe_weights(model_name: str, model_args: dict[str, Any] | None = None) -> str:
    """The pretrained weights of ``model_name`` with their source and licence, in one phrase."""
    config, known = _weights_config(model_name, model_args), pretrained_config(model_name)
    if config.file is not None:
        return f"from {config.file}"
    if not config.has_weights:
        return "none are published"
    source = config.hf_hub_id or config.url or "unknown source"
    if (config.hf_hub_id, config.hf_hub_filename, config.url) != (known.hf_hub_id, known.hf_hub_filename, known.url):
        return f"from {source}" + (f", file {config.hf_hub_filename}" if config.hf_hub_id and config.hf_hub_filename else "")
    return f"{config.tag or 'default'} weights from {source} (licence: {config.license or 'not stated by timm'})"


def _load(model_name: str, arguments: dict[str, Any], source: str) -> nn.Module:
    """The network with its pretrained weights; without them, it was tried already."""
    try:
        with _plain_weights_only():
            model: nn.Module = timm.create_model(model_name, pretrained=True, **arguments)
    except Exception as error:  # each way to load them has its own kinds
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if isinstance(error, pickle.UnpicklingError) or isinstance(error.__cause__, pickle.UnpicklingError):
            reason = "the file is damaged, or loading it would run code that is in it"
        raise InputError(
            f"the pretrained weights of {model_name}, {source}, cannot be loaded ({reason}): give a file with nothing but the "
            "weights of this network, best as .safetensors, or train from scratch with --model.pretrained false"
        ) from error
    return model


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


def _weights_config(model_name: str, model_args: dict[str, Any] | None) -> PretrainedCfg:
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
        raise InputError(f"{model_name} has no pretrained weights: train from scratch with --model.pretrained false")
    if config.hf_hub_id:  # which timm prefers to the URL
        if not _is_cached(config.hf_hub_id, config.hf_hub_filename):
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


def _is_cached(hub_id: str, filename: str | None) -> bool:
    repository, _, revision = hub_id.partition("@")
    names = (filename,) if filename else ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name, revision=revision or None), str) for name in names)


def _unreachable(address: str) -> str | None:
    """Why ``address`` does not answer within a moment; None if it does.

    In a thread that is left behind, because no timeout of a request covers the search for a name's address.
    """
    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=1)
        except Exception as error:  # every kind of network trouble means the same here
            answers.append(f"{address} does not answer: {type(error).__name__}")
        else:
            answers.append(None)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers[0] if answers else f"{address} does not answer within {PATIENCE} seconds"
