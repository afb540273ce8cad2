"""Refuses parsed options whose type is right and whose value nothing can work with."""

import math
from collections.abc import Iterator
from typing import Any, get_args

from jsonargparse import Namespace
from jsonargparse._util import import_object
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from dropkey_cli.commands.config_errors import plain_type
from dropkey_cli.commands.signatures import constructor_hints
from dropkey_cli.errors import InputError, did_you_mean

_LARGEST = 2**63 - 1
"""What torch and the loops over batches can count to."""
_MOST_DEVICES = 4096
_MOST_THREADS = 4096


def check_values(config: Namespace) -> None:
    """Refuse sections that are none, null where a class takes none, numbers that are none, whole ones beyond 64 bits.

    Args:
        config: The parsed options of a command.

    Raises:
        InputError: With the option's name.
    """
    for part in ("trainer", "model", "data"):
        if not isinstance(config[part], Namespace):
            raise InputError(f"{part} is {config[part]!r}: give its options, or leave it out for the defaults")
    for part in ("model", "data"):
        _check_nulls(part, config[part])
    if (config.num_threads or 0) > _MOST_THREADS:
        raise InputError(f"num_threads is {config.num_threads}; expected at most {_MOST_THREADS}; give --num_threads 1 or so")
    for key, value in config.items():
        option = key.replace(".init_args", "")
        for number in _numbers(value):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{option} is {number!r}; expected a finite number; give --{option}")
            if isinstance(number, int) and abs(number) > _LARGEST:
                raise InputError(f"{option} is {number!r}; expected a number of at most 18 digits; give --{option}")


def check_trainer_options(options: dict[str, Any]) -> None:
    """Refuse what Lightning takes without a word, to train on nothing or to clip nothing.

    Raises:
        ValueError: With the option's name.
    """
    least = {"accumulate_grad_batches": 1, "gradient_clip_val": 0, "num_nodes": 1, "log_every_n_steps": 0}
    least |= {"check_val_every_n_epoch": 1, "num_sanity_val_steps": -1}
    least |= {f"limit_{split}_batches": 0 for split in ("train", "val", "test", "predict")}
    for name, minimum in least.items():
        value = options.get(name)
        if isinstance(value, int | float) and value < minimum:
            raise ValueError(f"{name} is {value}; expected {minimum} or more")
    devices = str(options.get("devices"))
    if devices.isdecimal() and int(devices) > _MOST_DEVICES:  # Lightning makes a list of them
        raise ValueError(f"devices is {devices}; expected at most {_MOST_DEVICES} in one machine")
    for name, known in _known_names().items():
        given = options.get(name)
        if isinstance(given, str) and given not in known:
            raise ValueError(f"{name} {given!r} is unknown; expected {', '.join(known[:6])}{did_you_mean(given, known)}")
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and interval <= 0:
        raise ValueError(f"val_check_interval is {interval}; expected a number of batches, or a share of the epoch above 0")


def _known_names() -> dict[str, list[str]]:
    """What Lightning knows by name, the usual names first."""
    return {
        "strategy": list(dict.fromkeys(["auto", "ddp", "fsdp2", *StrategyRegistry.available_strategies()])),
        "accelerator": ["auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators())],
        "profiler": ["simple", "advanced", "pytorch", "xla"],
        "gradient_clip_algorithm": ["norm", "value"],
    }


def _check_nulls(part: str, section: Namespace) -> None:
    """Refuse null where none is meant; jsonargparse lets null pass for every argument of a class."""
    if "class_path" not in section or not isinstance(section.get("init_args"), Namespace):
        return
    hints = constructor_hints(import_object(section.class_path))
    for name, value in vars(section.init_args).items():
        hint = hints.get(name, Any)
        if value is None and hint is not Any and type(None) not in (hint, *get_args(hint)):
            expected = plain_type(hint.__name__ if isinstance(hint, type) else str(hint))
            raise InputError(f"{part}.{name} is null; expected {expected}; give --{part}.{name}, or leave it out")


def _numbers(value: object) -> Iterator[float]:
    """The numbers in an option; what a user's own callback or logger is given is its own affair."""
    if isinstance(value, float | int):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _numbers(each)
