"""The options of the Trainer commands that are neither the Trainer's nor a class's: one row each."""

from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, OpenUnitInterval, PositiveFloat, PositiveInt

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
        "ema",
        OpenUnitInterval | None,
        None,
        "Decay of a moving average of the weights, e.g. 0.9998, which fit validates and saves in their place.",
        ("fit",),
    ),
    OwnOption(
        "patience",
        PositiveInt | None,
        None,
        "Validations without a new best after which fit ends (early stopping); there is one per epoch.",
        ("fit",),
    ),
    OwnOption(
        "finish_without_dropkey",
        float | None,
        None,
        "Train the end of fit without DropKey: a share of the steps, e.g. 0.1, or a whole number of epochs, 1 or more.",
        ("fit",),
    ),
    OwnOption(
        "finish_lr",
        PositiveFloat | None,
        None,
        "Constant learning rate of that end (default: the schedule goes on); layer-wise decay still applies.",
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
    OwnOption(
        "report",
        bool,
        True,
        "Write a report: curves, classes, mistakes, attention (report.html in the run folder); false writes none.",
        ("fit", "validate", "test"),
    ),
    OwnOption(
        "attention",
        bool,
        False,
        "Measure each head's attention entropy and strongest key: attention.csv, and the means beside the other metrics.",
        ("fit", "validate", "test"),
    ),
    OwnOption(
        "mc_samples",
        NonNegativeInt,
        0,
        "Average over so many forwards with DropKey's masks on (Monte Carlo); 0 drops no keys. In predict also their standard "
        "deviation, in columns std.",
        ("validate", "test", "predict"),
    ),
    OwnOption(
        "output",
        str,
        "predictions.csv",
        "The file, .csv, .jsonl or .parquet; one that is there already is kept as NAME.1.csv.",
        ("predict",),
    ),
    OwnOption("top_k", int, 5, "Number of classes per row, at most all there are.", ("predict",)),
    OwnOption("threshold", float, 0.0, "Leave classes with a lower probability empty.", ("predict",)),
    OwnOption(
        "all_probabilities", bool, False, "Add the probability of every class, in columns probability_CLASS.", ("predict",)
    ),
    OwnOption("features", bool, False, "Add the network's pooled features, in columns feature_0, feature_1 …", ("predict",)),
)


def own_options(command: str) -> list[OwnOption]:
    """The options that a command takes.

    Args:
        command: fit, validate, test or predict.
    """
    return [option for option in OWN_OPTIONS if {"fit", command} & set(option.commands)]


def flags_spelled_out(command: str, words: list[str]) -> list[str]:
    """The words with ``--features`` written as ``--features=true`` where no value follows it.

    Args:
        command: fit, validate, test or predict.
        words: Its options.
    """
    flags = {f"--{option.name}" for option in own_options(command) if option.type is bool}
    pairs = zip(words, [*words[1:], "--"], strict=False)
    return [f"{word}=true" if word in flags and after.startswith("--") else word for word, after in pairs]
