"""TensorBoard, Weights & Biases and MLflow by name, in the run's folder; they begin when training does."""

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from dropkey_cli.callbacks.run_log import say
from dropkey_cli.errors import InputError, did_you_mean, one_line

PROJECT = "dropkey"


def logger_names(given: str | list[str] | None) -> list[str]:
    """The names that ``--logger`` gives, in a list or with commas between them, each once.

    Raises:
        InputError: If one is unknown, or its package is not installed.
    """
    names = [name.strip() for name in (given.split(",") if isinstance(given, str) else given or [])]
    known = (*_STARTS, "csv")
    for name in names:
        if name not in known:
            raise InputError(f"--logger {name!r} is unknown: give one or more of {', '.join(known)}{did_you_mean(name, known)}")
        if name in _STARTS and not _is_installed(name):
            raise InputError(f"--logger {name} needs a package that is not installed: pip install 'dropkey[{name}]'")
    return list(dict.fromkeys(names))


def _is_installed(package: str) -> bool:
    """Whether it is, whatever folders of that name lie here: wandb makes one."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


class NamedLoggers(Callback):
    """Starts loggers at the first step: a run that is refused leaves nothing with them, and a resumed one goes on where it was.

    Args:
        names: tensorboard, wandb, mlflow; csv is written anyway.
        folder: The run's folder.
        config: The configuration as YAML, which they are given as hyperparameters.
    """

    def __init__(self, names: list[str], folder: Path, config: str) -> None:
        self.names = [name for name in names if name in _STARTS]
        self.folder = folder
        self.config = config
        self._started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start them, and give them the configuration.

        Raises:
            InputError: If one cannot start.
        """
        if self._started or not trainer.is_global_zero:
            return
        self._started = True
        for name in self.names:
            try:
                logger, goes_on = _STARTS[name](self.folder, trainer.global_step)
                if not goes_on:
                    logger.log_hyperparams(dict(flat(yaml.safe_load(self.config))))
            except Exception as error:  # each of them has errors of its own, for networks, accounts and databases
                raise InputError(f"--logger {name} cannot start ({one_line(error)}): {_REMEDIES[name]}") from error
            trainer.loggers = [*trainer.loggers, logger]


def _tensorboard(folder: Path, step: int) -> tuple[Logger, bool]:
    """The logger, and whether it has been given the configuration in an earlier part of the run and takes no other."""
    say(f"{'tensorboard':<12}tensorboard --logdir {folder / 'tensorboard'}")
    # What an interrupted run logged after its last checkpoint is logged again: purge_step hides it
    return TensorBoardLogger(str(folder), name="tensorboard", version="", default_hp_metric=False, purge_step=step), False


def _wandb(folder: Path, step: int) -> tuple[Logger, bool]:
    os.environ.setdefault("WANDB_SILENT", "true")  # a dozen lines about itself, the last ones after our own last ones
    offline = not _has_account()
    identity = remembered(folder / "wandb" / "id", lambda: secrets.token_hex(4))
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    logger = WandbLogger(_run_name(folder), save_dir=str(folder), version=identity, offline=offline, project=project)
    logger._wandb_init.pop("anonymous", None)  # that it is there at all gives a warning
    url = None if offline else getattr(logger.experiment, "url", None)
    say(f"{'wandb':<12}{url or f'offline; to upload it: wandb sync {folder}/wandb/offline-run-*'}")
    return logger, False


def _mlflow(folder: Path, step: int) -> tuple[Logger, bool]:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}"
    file = folder / "mlflow" / "run_id"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # how it makes a database
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # and an experiment
    file.parent.mkdir(exist_ok=True)
    known = file.read_text(encoding="utf-8") if file.is_file() else None
    artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (folder.absolute() / "mlflow" / "artifacts").as_uri()
    logger = MLFlowLogger(PROJECT, _run_name(folder), uri, run_id=known, artifact_location=artifacts)
    remembered(file, lambda: str(logger.run_id))
    say(f"{'mlflow':<12}mlflow ui --backend-store-uri {uri}")
    return logger, known is not None


_STARTS: dict[str, Callable[[Path, int], tuple[Logger, bool]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
_REMEDIES = {
    "tensorboard": "mend that, or leave it out",
    "wandb": "wandb login, or WANDB_MODE=offline",
    "mlflow": "check MLFLOW_TRACKING_URI, or unset it to log into the run's folder",
}


def _has_account() -> bool:
    """Whether wandb knows whom to upload for, or was told what to do: it would ask on the terminal otherwise."""
    if "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ:
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")


def _run_name(folder: Path) -> str:
    """The run's, as people see it: quickstart/version_0."""
    return "/".join(folder.parts[1:] if folder.parts[0] == "runs" else folder.parts[-2:])


def remembered(file: Path, make: Callable[[], str]) -> str:
    """What a file says, or what is made and kept there now: a resumed run goes by the same."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(make(), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - YAML
    """The values of a configuration by dotted names; lists as text."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}".replace(".init_args", ""), value if isinstance(value, int | float | str) else str(value)
