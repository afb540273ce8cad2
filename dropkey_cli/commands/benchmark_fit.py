"""``dropkey benchmark --fit``: how fast a training run is on this machine, and where its time goes."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import Profiler
from torchmetrics import Metric, MetricCollection

from dropkey_cli.benchmark.machine import describe_machine
from dropkey_cli.benchmark.report import check_json, write_json
from dropkey_cli.commands.run import RunCLI, run
from dropkey_cli.errors import InputError

# The parts of a step, with patterns of the names that Lightning and `StepTimes` give to what belongs there; "?" is a bracket.
STEP_PARTS = {
    "waiting for data": ("*.train_dataloader_next",),
    "to the device, normalising": ("*.batch_to_device", "*_batch_transfer", "*.transfer_batch_to_device"),
    "forward": ("?Strategy?*.training_step",),
    "backward": ("?Strategy?*.backward",),
    "optimizer": ("*.optimizer_step", "*.optimizer_zero_grad", "*.configure_gradient_clipping", "*.lr_scheduler_step"),
    "drop-ratio monitor": ("?Callback?DropRatioMonitor.*",),
    "batch seeds": ("?Callback?BatchSeeds.*",),
    "metrics": ("metrics",),
    "logging": ("logging",),
    "progress": ("?Callback?Progress*", "?Callback?Pace.*", "?Callback?RunLog.*"),
}
OVERHEAD = ("drop-ratio monitor", "batch seeds", "metrics", "logging", "progress")
START_PARTS = {
    "listing the images": ("?LightningDataModule?*.prepare_data", "?LightningDataModule?*.setup"),
    "building the network": ("?LightningModule?*.configure_model",),
    "patching DropKey in": ("apply_dropkey",),
    "first batch": STEP_PARTS["waiting for data"],
    "first step": STEP_PARTS["forward"] + STEP_PARTS["backward"] + STEP_PARTS["optimizer"],
}
HELP = """\
usage: dropkey benchmark --fit [--steps N] [--warmup N] [--json FILE] OPTIONS

Train for a few steps with the OPTIONS of dropkey fit, without validation, early stopping, checkpoints or a run folder. Prints
images per second, the parts of a step, and the seconds from the command to the first step. --steps (default 50) are rounded up
to whole logging intervals (--trainer.log_every_n_steps); --warmup (default 5) come before. dropkey fit --help lists OPTIONS.
"""


class PartTimes(Profiler):
    """Charges every moment to the innermost action that Lightning is in.

    Attributes:
        device: What to wait for at every border, so that a part's time is its own; None waits for nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device: torch.device | None = None
        self._actions: list[str] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def start(self, action_name: str) -> None:
        """Enter an action."""
        self._charge()
        self._actions.append(action_name)

    def stop(self, action_name: str) -> None:
        """Leave it."""
        self._charge()
        self._actions.pop()

    def take(self) -> dict[str, float]:
        """The seconds in each action since the last call; "" is what lay outside of all."""
        self._charge()
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    def _charge(self) -> None:
        wait_for(self.device)
        now = time.perf_counter()
        self._seconds[self._actions[-1] if self._actions else ""] += now - self._last
        self._last = now


class StepTimes(Callback):
    """Times a run: the start up to the end of its first step, then two windows of steps, and ends it.

    The first window gives images per second. The second gives the parts: there a GPU is waited for at every border.

    Args:
        warmup: Steps before the first window.
        window: Steps in each window.
    """

    def __init__(self, warmup: int, window: int) -> None:
        self.warmup = warmup
        self.window = window
        self.num_steps = warmup + 2 * window
        self.before = process_seconds()
        self.profiler = PartTimes()
        self.start: dict[str, float] = {}
        self.parts: dict[str, float] = {}
        self.seconds = 0.0
        self.images = 0
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the profiler what Lightning does not show it: metrics and logging."""
        connector = trainer._logger_connector
        owners: list[tuple[Any, str, str]] = [(pl_module, method, "logging") for method in ("log", "log_dict")]
        owners += [(connector, method, "logging") for method in ("on_batch_end", "update_train_step_metrics")]
        owners += [(part, "update", "metrics") for part in pl_module.modules() if isinstance(part, Metric | MetricCollection)]
        for owner, method, action in owners:
            setattr(owner, method, self._profiled(getattr(owner, method), action))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        """Open and close the windows."""
        self._step += 1
        device = trainer.strategy.root_device
        if self._step == 1:
            wait_for(device)
            self.start = self.profiler.take()
        if self._step == self.warmup:
            wait_for(device)
            self.seconds = -time.perf_counter()
        elif self.warmup < self._step <= self.warmup + self.window:
            self.images += len(batch["image"]) * trainer.world_size
        if self._step == self.warmup + self.window:
            wait_for(device)
            self.seconds += time.perf_counter()
            self.profiler.device = device
            self.profiler.take()
        elif self._step == self.num_steps:
            self.parts = self.profiler.take()
            trainer.should_stop = True

    def report(self) -> dict[str, Any]:
        """All figures, as plain data.

        Raises:
            InputError: If the run ended too early.
        """
        if not self.parts:
            raise InputError(
                f"the run ended after {self._step} of {self.num_steps} steps: leave out what limits it, or give fewer --steps"
            )
        parts = part_seconds(self.parts, STEP_PARTS, rest="Lightning's loop")
        assert all(parts[part] for part in ("forward", "backward", "optimizer")), "Lightning has other names for these actions"
        total = sum(parts.values())
        shares = {part: seconds / total for part, seconds in parts.items()}
        start = {"imports and options": self.before}
        start |= part_seconds(self.start, START_PARTS, rest="the rest")
        return {
            "images_per_second": self.images / self.seconds,
            "step_seconds": self.seconds / self.window,
            "part_seconds": {part: seconds / self.window for part, seconds in parts.items()},
            "part_shares": shares,
            "overhead_share": sum(shares[part] for part in OVERHEAD),
            "start_seconds": start,
        }

    def _profiled(self, function: Callable[..., Any], action: str) -> Callable[..., Any]:
        def profiled(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the function's
            with self.profiler.profile(action):
                return function(*args, **kwargs)

        return profiled


class TimedFit(RunCLI):
    """A fit that is timed and leaves nothing behind.

    Args:
        folder: Where the run may write its metrics.
    """

    def __init__(self, *args: Any, folder: str, **kwargs: Any) -> None:  # noqa: ANN401 - RunCLI's
        self.scratch = folder
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of fit, and how long to measure."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--steps", type=PositiveInt, default=50, help="Steps to measure.")
        parser.add_argument("--warmup", type=PositiveInt, default=5, help="Steps before them.")
        parser.add_argument("--json", type=str | None, help="Also write the figures, unrounded, into this file.")

    def _keep_files(self, config: dict[str, Any], options: Namespace) -> None:
        config["default_root_dir"] = self.scratch
        config["logger"] = CSVLogger(self.scratch, name="", version="")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        options = self.config_init[self.command]
        check_json(options.json)
        if config.get("fast_dev_run"):
            raise InputError("--trainer.fast_dev_run ends before there is anything to time: leave it out")
        window, interval = max(1, options.steps // 2), config["log_every_n_steps"] or 1
        self.times = StepTimes(options.warmup, -(-window // interval) * interval)  # whole intervals: a part of logging is rare
        options.patience = options.finish_without_dropkey = options.finish_lr = None
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        config["callbacks"] = [callback for callback in given if not isinstance(callback, EarlyStopping | Checkpoint)]
        config |= {"max_epochs": -1, "max_steps": self.times.num_steps, "limit_val_batches": 0, "num_sanity_val_steps": 0}
        config |= {"enable_checkpointing": False, "profiler": self.times.profiler}
        return super()._instantiate_trainer(config, [*callbacks, self.times])

    def _run_subcommand(self, subcommand: str) -> None:
        super()._run_subcommand(subcommand)
        if self.trainer.is_global_zero:
            report = {"machine": describe_machine(self.trainer.strategy.root_device), **self.times.report()}
            print_report(report)
            write_json(self.config_init[self.command].json, report)


def benchmark_fit(words: list[str]) -> None:
    """Train for a few steps; print images per second, the parts of a step, and the seconds to the first step.

    Args:
        words: Those of ``dropkey fit``, and --steps, --warmup and --json FILE.

    Raises:
        InputError: If an option or the data cannot work.
    """
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    with TemporaryDirectory() as folder:
        run("fit", words, cli=partial(TimedFit, folder=folder))


def process_seconds() -> float:
    """Seconds since this process began; where that is not known, its CPU time."""
    try:
        began = int(
            Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        )  # in ticks since the boot
        return float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0]) - began / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.process_time()


def part_seconds(actions: Mapping[str, float], parts: Mapping[str, tuple[str, ...]], *, rest: str) -> dict[str, float]:
    """Seconds of each part.

    Args:
        actions: Seconds by the name of the action.
        parts: Patterns of the names of the actions in each part; the first match counts.
        rest: Name of the part for all other actions.
    """
    seconds = dict.fromkeys([*parts, rest], 0.0)
    for action, spent in actions.items():
        found = (part for part, patterns in parts.items() if any(fnmatchcase(action, pattern) for pattern in patterns))
        seconds[next(found, rest)] += spent
    return seconds


def print_report(report: Mapping[str, Any]) -> None:
    """Print the figures as aligned lines."""
    print()
    for name, fact in report["machine"].items():
        print(f"{name:<10}{fact}")
    print(f"\n{report['images_per_second']:.4g} images/s, {1e3 * report['step_seconds']:.4g} ms per step\n")
    print(f"{'part of a step':<28}{'ms':>8}{'share':>9}")
    for part, seconds in report["part_seconds"].items():
        print(f"{part:<28}{1e3 * seconds:>8.2f}{report['part_shares'][part]:>9.2%}")
    print(f"overhead ({', '.join(OVERHEAD)}): {report['overhead_share']:.2%}")
    start = report["start_seconds"]
    print(f"\nto the end of the first step: {sum(start.values()):.1f} s")
    for part, seconds in start.items():
        print(f"{part:<31}{seconds:>5.1f}")


def wait_for(device: torch.device | None) -> None:
    """Until the device has done all it was given."""
    if device is not None and device.type != "cpu":
        torch.accelerator.synchronize(device)
