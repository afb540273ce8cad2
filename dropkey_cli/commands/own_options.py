"""The options of the Trainer commands that are neither the Trainer's nor a class's: one row each."""

from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveInt

LOGGERS = ("tensorboard", "wandb", "mlflow", "csv")
EVERY = ("fit", "validate", "test", "predict")


@dataclass(frozen=True)
class OwnOption:
    """One option: its name, type, default and help, and the commands whose ``--help`` lists it.

    Those of fit are taken by every command, so that a run's config.yaml is valid for all of them.
    """

    name: str
    type: Any
    default: Any
    help: str
    commands: tuple[str, ...]


OWN_OPTIONS = (
    OwnOption(
        "name", str | None, None, "Folder of the run under runs/ (default: the model's name); only fit makes one.", ("fit",)
    ),
    OwnOption(
        "checkpoint_minutes",
        NonNegativeFloat,
        10.0,
        "Minutes between two last.ckpt within an epoch of fit; 0 writes it after epochs only.",
        ("fit",),
    ),
    OwnOption(
        "on_nonfinite_loss",
        Literal["stop", "skip"],
        "stop",
        "What a loss that is NaN or infinite does in fit: stop ends the run, skip leaves that step out.",
        ("fit",),
    ),
    OwnOption(
        "logger",
        str | list[str] | None,
        None,
        "tensorboard, wandb or mlflow, beside metrics.csv, or several with commas; each goes on with --resume.",
        ("fit",),
    ),
    OwnOption(
        "num_threads",
        PositiveInt | None,
        None,
        "Threads per CPU operation (default: one per core). Small models are faster with 1, and so is a busy machine.",
        EVERY,
    ),
    OwnOption("output", str, "predictions.csv", "The CSV file; one that is there already is kept as NAME.1.csv.", ("predict",)),
    OwnOption("top_k", int, 5, "Number of classes per row.", ("predict",)),
)


def own_options(command: str) -> list[OwnOption]:
    """The options that a command takes.

    Args:
        command: fit, validate, test or predict.
    """
    return [option for option in OWN_OPTIONS if {"fit", command} & set(option.commands)]
