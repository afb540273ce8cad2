"""``dropkey fit``, ``validate``, ``test`` and ``predict``: LightningCLI with our defaults, errors and run folders."""

import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only

from dropkey_cli.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from dropkey_cli.callbacks.memory_advice import MemoryAdvice
from dropkey_cli.callbacks.named_loggers import NamedLoggers, logger_names
from dropkey_cli.callbacks.pace import FetchTimes
from dropkey_cli.callbacks.report import Report
from dropkey_cli.callbacks.run_log import RunLog
from dropkey_cli.callbacks.skipped_images import SkippedImages
from dropkey_cli.callbacks.stop_signals import StopSignals
from dropkey_cli.checkpoints import claim_run_folder, give_back_run_folder, read_checkpoint
from dropkey_cli.commands.checkpoint_io import DurableCheckpointIO
from dropkey_cli.commands.command_line import asked_checkpoint, configs_first, read_config
from dropkey_cli.commands.config_errors import OneLineParser, explain_refusal, explain_trainer
from dropkey_cli.commands.config_values import check_trainer_options, check_values
from dropkey_cli.commands.defaults import checkpoint_defaults, default_classes, named_by_root
from dropkey_cli.commands.failures import explained
from dropkey_cli.commands.fsdp import FullySharded
from dropkey_cli.commands.processes import check_processes, end_children
from dropkey_cli.commands.resume import record_job, typed
from dropkey_cli.commands.run_parts import (
    add_own_options,
    as_list,
    evaluation_callbacks,
    fill_image_options,
    finishing,
    first_callbacks,
    fit_callbacks,
    loggers,
    model_name,
    predict_as_asked,
    prediction_writer,
    progress_callbacks,
    recipe_callbacks,
    resolve_model,
)
from dropkey_cli.errors import InputError, RunError

UNWRITABLE = re.compile(r"^.*: Unable to serialize instance .*\n", re.MULTILINE)
"""Where jsonargparse cannot write an option's default as text, such as the device of StochasticWeightAveraging."""
StrategyRegistry.register("fsdp2", FullySharded)


def run(
    command: str,
    words: list[str],
    *,
    resumed: Path | None = None,
    cli: Callable[[str, list[str], Path | None], object] | None = None,
) -> None:
    """Run a Trainer command.

    Args:
        command: fit, validate, test or predict.
        words: Its options.
        resumed: The folder of the run that goes on; None for a new one.
        cli: What runs it, called as `RunCLI` is, which is the default.

    Raises:
        InputError: If an option, a file or the data cannot work.
        RunError: If the run cannot go on though they were right.
    """
    _quieten()
    try:
        (cli or RunCLI)(command, configs_first(words), resumed)
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except Exception as error:
        # jsonargparse and the data loaders wrap what a constructor or a worker raised
        if (cause := explained(error)) is not None:
            raise cause from error
        if isinstance(error, ValueError) and (refusal := explain_refusal(error)) is not None:
            raise InputError(refusal) from error
        raise


class RunCLI(LightningCLI):
    """LightningCLI in which the command line beats the config, the config the checkpoint, and the checkpoint the defaults."""

    def __init__(self, command: str, words: list[str], resumed: Path | None = None) -> None:
        self.command = command
        self.resumed = resumed
        self.defaults = {part: {"class_path": class_path} for part, class_path in default_classes(command, words).items()}
        self.folder: Path | None = None
        self.signals = StopSignals()
        self.memory = MemoryAdvice()
        self.log: RunLog | None = None
        self.typed = shlex.join(["dropkey", command, *typed(words, resumed)])
        self.asked = ""
        self.known: dict[str, Any] = {}
        self.class_names: list[str] = []
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=[command, *named_by_root(command, words)],
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401 - the parser's own
        """As LightningCLI's, with our parser."""
        parser = OneLineParser(**kwargs)
        parser.add_argument("-c", "--config", action="config", help="YAML file with options; several are merged in order.")
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """As LightningCLI's, without the option to run a checkpoint's code."""
        return {name: {*skipped, "weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        # As an argument the trainer would know it only after the network is built, with weights that it replaces
        self.trainer.ckpt_path = arguments.pop("ckpt_path")
        return {**arguments, "weights_only": True}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:  # noqa: ANN401
        # Only the one that runs: the other three would cost a second.
        every = self.subcommands()
        self.subcommands = lambda: {self.command: every[self.command]}  # type: ignore[method-assign]
        super()._add_subcommands(parser, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our defaults and our own options."""
        parser.set_defaults(self.defaults)
        add_own_options(parser, self.command)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 - Lightning's own type
        """Parse, with what the checkpoint says in the place of the defaults."""
        sub_parser = self._subcommand_parsers[self.command]
        path = asked_checkpoint(self.command, args)
        if path is not None:
            description = read_checkpoint(path)
            sub_parser.set_defaults(checkpoint_defaults(description, self.command, args))
            self.known, self.class_names = description["preprocessing"], description["class_names"]
        self.config = parser.parse_args(args)
        check_values(self.config[self.command])
        if path is not None:
            self.config[self.command].ckpt_path = str(path)
            if _is_first_process():
                print(f"checkpoint  {path}")

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"--seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's options win over the command line's; see parse_arguments."""

    def before_instantiate_classes(self) -> None:
        """Keep the options as asked; then fill in what the data takes from the checkpoint or the model."""
        config = self.config[self.command]
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        resolve_model(config)
        asked = self._parser(self.command).dump(self._as_asked(config), skip_unset=False)
        self.asked = UNWRITABLE.sub("", asked)
        fill_image_options(config, self.known)

    def _as_asked(self, config: Namespace) -> Namespace:
        """The options without what --resume adds: config.yaml stays that of the whole run."""
        if self.resumed is None:
            return config
        first = read_config(str(self.resumed / "config.yaml"))
        return Namespace({**vars(config), "ckpt_path": first.get("ckpt_path")})  # type: ignore[no-untyped-call]  # jsonargparse's

    def instantiate_classes(self) -> None:
        """Then give the data the checkpoint's classes: jsonargparse copies a whole list once for each of its elements."""
        super().instantiate_classes()
        predict_as_asked(self.model, self.config[self.command])
        options = self.config[self.command].data.init_args
        if self.class_names and "class_names" in options and options.class_names is None:
            self.datamodule.class_names = self.class_names

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        options = self.config_init[self.command]
        if self.command == "fit":
            validates, resumed = config.get("limit_val_batches") != 0, self.resumed is not None
            recipe = recipe_callbacks(options, validates=validates, resumed=resumed)
            finish = finishing(options)
            logger_names(options.logger)  # before there is a folder
            self._keep_files(config, options)
            callbacks = [*callbacks, *self._fit_callbacks(config, options, recipe)]
            seed = yaml.safe_load(self.asked)["seed_everything"]
            config["callbacks"] = [*first_callbacks(seed), *finish, *as_list(config.get("callbacks"))]
        else:
            config["logger"] = config.get("logger") or False
        if self.command == "predict":
            callbacks = [*callbacks, prediction_writer(options)]
        elif self.command != "fit" and not config.get("fast_dev_run"):
            callbacks = [*callbacks, *evaluation_callbacks(self.command, options)]
        callbacks += [self.signals, SkippedImages(), self.memory]
        config["plugins"] = [*as_list(config.get("plugins")), DurableCheckpointIO()]
        asked = config.get("enable_progress_bar")
        callbacks += progress_callbacks(self.command, bar=asked, terminal=sys.stdout.isatty(), resumed=self.resumed is not None)
        config["enable_progress_bar"] = sys.stdout.isatty() if asked is None else asked
        config["profiler"] = config.get("profiler") or FetchTimes()
        try:
            check_trainer_options(config)
            trainer = super()._instantiate_trainer(config, callbacks)
            check_processes(trainer)
        except (ValueError, TypeError, OverflowError, RuntimeError, ImportError, MisconfigurationException) as error:
            self._give_back_folder()
            raise InputError(explain_trainer(error, config)) from error
        return trainer

    def _keep_files(self, config: dict[str, Any], options: Namespace) -> None:
        """Claim the run's folder and log there."""
        if config.get("fast_dev_run"):
            config["logger"] = False
            return
        first = _is_first_process()
        self.folder = self.resumed or claim_run_folder(options.name or model_name(options), claim=first)
        if first and self.resumed is None:
            record_job(self.folder)
        config["default_root_dir"] = config.get("default_root_dir") or str(self.folder)
        config["logger"] = loggers(config.get("logger"), self.folder)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except BaseException as error:
            if not self.signals.obeyed:  # else all processes have agreed to end
                end_children(self.trainer)
                self._give_back_folder()
            if self.memory.advice is not None:
                raise RunError(self.memory.advice) from error
            raise
        finally:
            if self.log is not None:
                self.log.close()

    def _give_back_folder(self) -> None:
        """Remove the run's folder if nothing began."""
        if self.folder is not None:
            give_back_run_folder(self.folder)

    def _fit_callbacks(self, config: dict[str, Any], options: Namespace, recipe: list[Callback]) -> list[Callback]:
        self.log = RunLog(self.folder, self.typed)
        callbacks = [self.log, *fit_callbacks(self.folder, self.asked, options)]
        best = None
        if self.folder is not None:
            callbacks.append(NamedLoggers(logger_names(options.logger), self.folder, self.asked))
        if self.folder is not None and config.get("enable_checkpointing") is not False:
            monitor, resumed = getattr(options.model, "monitor", None), self.resumed is not None
            if config.get("limit_val_batches") != 0:  # without validation none is best
                callbacks.append(best := BestCheckpoint(self.folder / "checkpoints", monitor, resumed=resumed))
            callbacks.append(LastCheckpoint(self.folder, self.signals, minutes=options.checkpoint_minutes))
        callbacks += recipe  # before the report, which is that of averaged weights
        if self.folder is not None and options.report:
            callbacks.append(Report(self.folder / "report", run=self.folder, best=best))
        return callbacks


def _is_first_process() -> bool:
    """Whether this is the process that writes; known before there is a trainer."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _quieten() -> None:
    """Keep Lightning's notes about itself out of what users read."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("timm.scheduler.cosine_lr").setLevel(logging.ERROR)  # that one step has no schedule
    for note in (
        "could not find the monitored key",
        "does not have many workers",
        "number of training batches",
        "callbacks used to create",
        "sharding model layers",
        "before the ``update`` method",  # where a process has no image that can be read
        "Grad strides do not match bucket view",  # of depthwise convolutions, where either means the same memory
    ):
        warnings.filterwarnings("ignore", f".*{note}.*")
    warnings.filterwarnings("ignore", "(?s).*Unable to serialize instance")  # see UNWRITABLE
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning|jsonargparse")
