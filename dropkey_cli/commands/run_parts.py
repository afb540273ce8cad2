"""What a run is put together from beside its classes: options of our own, callbacks, loggers, what data take from the model."""

import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning import Callback
from lightning.pytorch.cli import LightningArgumentParser

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.callbacks.checkpoints import LoggedSteps
from dropkey_cli.callbacks.drop_ratios import DropRatioMonitor
from dropkey_cli.callbacks.finite_loss import FiniteLoss
from dropkey_cli.callbacks.run_plan import RunPlan
from dropkey_cli.callbacks.run_record import RunRecord
from dropkey_cli.callbacks.steady_buckets import SteadyBuckets
from dropkey_cli.commands.metrics_log import MetricsLog
from dropkey_cli.commands.own_options import own_options
from dropkey_cli.models.factory import image_config
from dropkey_cli.models.sources import resolve_name


def add_own_options(parser: LightningArgumentParser, command: str) -> None:
    """Add the options that are neither the Trainer's nor a class's, and our defaults for the Trainer's.

    Args:
        parser: That of the command.
        command: fit, validate, test or predict.
    """
    parser.set_defaults({"trainer.precision": default_precision(), "trainer.log_every_n_steps": 10})
    parser.set_defaults({"trainer.enable_model_summary": False})  # the plan says it
    # A few images are classified before more processes have started
    parser.set_defaults({"trainer.max_epochs": 20} if command == "fit" else {"trainer.devices": 1})
    for option in own_options(command):
        parser.add_argument(f"--{option.name}", type=option.type, default=option.default, help=option.help)


def first_callbacks(seed: int | Literal[False]) -> list[Callback]:
    """What must act before a user's callbacks, which may log the steps' numbers and draw random ones.

    Args:
        seed: The run's seed; False for none.
    """
    # Torch starts every process at the same seed: without one of the run's, each gets its own
    return [LoggedSteps(), BatchSeeds(secrets.randbits(62) if seed is False else int(seed))]


def fit_callbacks(folder: Path | None, asked: str, *, on_nonfinite_loss: Literal["stop", "skip"]) -> list[Callback]:
    """What watches and records every training run.

    Args:
        folder: The run's folder; None where nothing is kept.
        asked: The configuration as YAML.
        on_nonfinite_loss: What a loss that is no number does.
    """
    return [RunRecord(folder, asked), RunPlan(folder), DropRatioMonitor(folder), FiniteLoss(on_nonfinite_loss), SteadyBuckets()]


def default_precision() -> str:
    """bf16-mixed where the GPU computes in bfloat16, else 32-true."""
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def resolve_model(config: Namespace) -> None:
    """Put the architecture and arguments that a model of the hub or in a folder stands for in the place of its name.

    Args:
        config: The parsed options; those of the model are changed.
    """
    model = config.model.init_args
    if hasattr(model, "model_name") and hasattr(model, "model_args"):
        model.model_name, model.model_args = resolve_name(model.model_name, model.model_args)


def fill_image_options(config: Namespace, known: dict[str, Any]) -> None:
    """Give the data what the checkpoint, or else the model's weights, say of images, where the user gave nothing.

    Args:
        config: The parsed options; those of the data are changed.
        known: What the checkpoint says of images, by option.
    """
    data, model = config.data.init_args, config.model.init_args
    if hasattr(model, "model_name"):
        known = asdict(image_config(model.model_name, getattr(model, "model_args", None))) | known
    for name, value in known.items():
        if name in data and data[name] is None:
            data[name] = value


def model_name(options: Namespace) -> str:
    """The name of the model, or of its class: the run's where none was given."""
    return getattr(options.model, "model_name", None) or type(options.model).__name__.lower()


def loggers(given: Any, folder: Path) -> Any:  # noqa: ANN401 - Lightning takes many forms
    """``metrics.csv`` in the run folder, beside the loggers the user named."""
    if given is False:
        return False
    return [MetricsLog(folder), *([] if given is True else as_list(given))]


def as_list(given: Any) -> list[Any]:  # noqa: ANN401 - what a Trainer option takes
    """None, one thing, or several, as a list."""
    return [] if given is None else given if isinstance(given, list) else [given]
