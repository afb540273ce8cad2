"""``dropkey inspect MODEL``: where a model attends and how much DropKey would drop there. No weights are allocated."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from dropkey_cli.commands.config_errors import OneLineParser
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.models.factory import create_model, image_config
from dropkey_cli.models.sources import resolve_name
from dropkey_cli.patching.apply import apply_dropkey
from dropkey_cli.patching.table import print_table


def inspect(words: list[str]) -> None:
    """Print the table of a model's attention layers.

    Args:
        words: The words after ``dropkey inspect``.

    Raises:
        InputError: If an option is wrong, or the model has no layer DropKey can act on.
    """
    for word in words:
        if word.startswith("--model."):
            raise InputError(f"inspect has no {word}: it takes DropKey's options without model., e.g. --dropkey.ratio 0.1")
    parser = _parser()
    options = parser.parse_args(words)
    settings: DropKeySettings = parser.instantiate(options).dropkey
    name, model_args = resolve_name(options.model, options.model_args)
    size = image_config(name, model_args).image_size if options.image_size is None else options.image_size
    with torch.device("meta"):
        model = create_model(name, num_classes=1000, image_size=size, pretrained=False, model_args=model_args)
    channels = (model_args or {}).get("in_chans", 3)
    plan = apply_dropkey(model, settings, example_inputs=(torch.empty(2, channels, size, size, device="meta"),))
    print_table(plan)
    if options.masks is not None:
        from dropkey_cli.commands.pictures import draw_masks  # matplotlib takes a second

        print(f"masks of {', '.join(draw_masks(plan, Path(options.masks)))}: {options.masks}")


def _parser() -> ArgumentParser:
    parser = OneLineParser(prog="dropkey inspect", description="Where a model attends and how much DropKey would drop there.")
    parser.add_argument("model", type=str, help="timm's name of the network, hf-hub:USER/NAME or local-dir:FOLDER.")
    parser.add_argument("--image_size", type=int | None, help="Image height and width in pixels (default: the model's own).")
    parser.add_argument("--model_args", type=dict[str, Any] | None, help="Further arguments of the network's constructor.")
    parser.add_argument("--masks", type=str | None, help="Also draw masks of three layers into this file, e.g. masks.png.")
    parser.add_class_arguments(DropKeySettings, "dropkey")
    return parser
