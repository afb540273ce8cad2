"""What a run is put together from beside its classes: options of our own, callbacks, loggers, what data take from the model."""

import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning import Callback, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from dropkey_cli.callbacks.attention_statistics import AttentionStatistics
from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.callbacks.checkpoints import LoggedSteps
from dropkey_cli.callbacks.drop_ratios import DropRatioMonitor
from dropkey_cli.callbacks.finishing import Finishing
from dropkey_cli.callbacks.finite_loss import FiniteLoss
from dropkey_cli.callbacks.learning_rate import LearningRate
from dropkey_cli.callbacks.pace import Pace
from dropkey_cli.callbacks.patience import Patience
from dropkey_cli.callbacks.predictions import PredictionWriter
from dropkey_cli.callbacks.progress import EvaluationLines, ProgressBar, ProgressLines
from dropkey_cli.callbacks.report import Report, report_folder
from dropkey_cli.callbacks.run_plan import RunPlan
from dropkey_cli.callbacks.run_record import RunRecord
from dropkey_cli.callbacks.steady_buckets import SteadyBuckets
from dropkey_cli.callbacks.weight_average import WeightAverage
from dropkey_cli.commands.metrics_log import MetricsLog
from dropkey_cli.commands.own_options import own_options
from dropkey_cli.errors import InputError
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


def predict_as_asked(task: LightningModule, options: Namespace) -> None:
    """Tell a task how to predict: it is no argument of its constructor, since no checkpoint is to keep it.

    Args:
        task: The task.
        options: The parsed options; those that the command does not have say nothing.

    Raises:
        InputError: If the task cannot do it.
    """
    for option, attribute in (("mc_samples", "mc_samples"), ("features", "predicts_features")):
        if value := options.get(option):
            if not hasattr(task, attribute):
                raise InputError(f"--{option}: {type(task).__name__} cannot do it (it has no {attribute}); leave it out")
            setattr(task, attribute, value)


def prediction_writer(options: Namespace) -> PredictionWriter:
    """What writes predictions as asked."""
    return PredictionWriter(
        options.output, options.top_k, threshold=options.threshold, all_probabilities=options.all_probabilities
    )


def first_callbacks(seed: int | Literal[False]) -> list[Callback]:
    """What must act before a user's callbacks, which may log the steps' numbers and draw random ones.

    Args:
        seed: The run's seed; False for none.
    """
    # Torch starts every process at the same seed: without one of the run's, each gets its own
    return [LoggedSteps(), BatchSeeds(secrets.randbits(62) if seed is False else int(seed))]


def finishing(options: Namespace) -> list[Callback]:
    """What ends a training run without DropKey, if anything does; before a user's callbacks, which may log its learning rate.

    Args:
        options: Those of fit, its classes instantiated.

    Raises:
        InputError: If there is nothing to end without, or only its learning rate is given.
    """
    length, lr = options.finish_without_dropkey, options.finish_lr
    if length is None:
        if lr is not None:
            raise InputError(f"--finish_lr {lr:g} is that of --finish_without_dropkey: give that too, or leave both out")
        return []
    if getattr(options.model, "dropkey", None) is None:
        reason = f"{type(options.model).__name__} trains without DropKey from the start (--model.dropkey)"
        raise InputError(f"--finish_without_dropkey {length}: {reason}: leave it out")
    return [Finishing(float(length), None if lr is None else float(lr))]


def fit_callbacks(folder: Path | None, asked: str, options: Namespace) -> list[Callback]:
    """What watches and records every training run.

    Args:
        folder: The run's folder; None where nothing is kept.
        asked: The configuration as YAML.
        options: Those of fit.
    """
    watching = [DropRatioMonitor(folder), LearningRate(), FiniteLoss(options.on_nonfinite_loss), SteadyBuckets()]
    attention = [AttentionStatistics(folder, drawn=options.report)] if options.attention else []
    return [RunRecord(folder, asked), RunPlan(folder), *watching, *attention]


def evaluation_callbacks(command: str, options: Namespace) -> list[Callback]:
    """What writes the results of a validation or test.

    Args:
        command: validate or test.
        options: Its options.
    """
    folder, of_run = report_folder(command, Path(options.ckpt_path))
    attention = [AttentionStatistics(folder, drawn=options.report)] if options.attention else []
    return [*([Report(folder, run=of_run)] if options.report else []), *attention]


def recipe_callbacks(options: Namespace, *, validates: bool, resumed: bool) -> list[Callback]:
    """What the options of a training run's recipe add to it: averaged weights, early stopping.

    Args:
        options: Those of fit, its classes instantiated.
        validates: Whether the run validates.
        resumed: Whether an earlier part of the same run was there.

    Raises:
        InputError: If early stopping has nothing to go by.
    """
    # Plain numbers: a restricted one in a checkpoint could not be loaded safely
    callbacks: list[Callback] = [] if options.ema is None else [WeightAverage(float(options.ema))]
    if options.patience is not None:
        monitor = getattr(options.model, "monitor", None)
        if monitor is None or not validates:
            reason = "this run has no validation" if not validates else f"{type(options.model).__name__} names no monitor"
            raise InputError(f"--patience {options.patience} goes by validation, but {reason}: leave it out")
        callbacks.append(Patience(monitor, int(options.patience), resumed=resumed))
    return callbacks


def progress_callbacks(command: str, *, bar: bool | None, terminal: bool, resumed: bool) -> list[Callback]:
    """What shows how far a run is: a bar in a terminal, else lines; those of a training run go into run.log in any case.

    Args:
        command: fit, validate, test or predict.
        bar: What --trainer.enable_progress_bar asks for; false for nothing at all on the terminal.
        terminal: Whether the standard output is one.
        resumed: Whether an earlier part of the same run was there.
    """
    shows_bar, shows_lines = (terminal if bar is None else bar), bar is None and not terminal
    if command != "fit":
        return [ProgressBar()] if shows_bar else [EvaluationLines()] if shows_lines else []
    pace = Pace(resumed=resumed)
    return [pace, ProgressLines(pace, printed=shows_lines), *([ProgressBar(pace)] if shows_bar else [])]


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
        channels = getattr(data, "channels", None) or known.get("channels") or 3
        known = asdict(image_config(model.model_name, getattr(model, "model_args", None), channels=channels)) | known
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
