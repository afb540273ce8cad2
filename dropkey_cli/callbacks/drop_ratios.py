"""Logs the configured and the really observed drop ratio of every attention layer."""

import csv
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from dropkey_cli.callbacks.observed_ratios import FIELDS, ObservedLayer, drop_ratios, observe
from dropkey_cli.callbacks.step_rows import keep_rows_before
from dropkey_cli.patching.apply import DropKeyPlan
from dropkey_cli.patching.table import print_table

MAX_DEVIATION = 5.0
"""So many standard deviations off is no chance: with exact masks, one observed ratio in 1.7 million is."""


class DropRatioMonitor(Callback):
    """Logs ``drop_ratio/<layer>`` (observed), ``drop_ratio_configured/<layer>`` and ``drop_ratio/mean``.

    The observed ratio is the number of dropped draws over the number of draws in the masks that were really used since the
    last logging step, summed over all processes; the configured one is that at which these masks were drawn. The counts stay
    on the device between logging steps, and lie in checkpoints, so that a resumed run logs what it would have logged. A layer
    whose observed ratio is no chance result is warned of, once.

    Args:
        folder: Where ``drop_ratio.csv`` gets a row per layer at each logging step, and ``drop_ratio.png`` shows it at the end
            of training; None writes neither.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._logged_step = 0
        self._acting: list[bool] = []  # layers that had to drop keys in all steps since they were logged
        self._resumed: dict[str, Any] | None = None
        self._warned: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what a checkpoint said that was loaded for something else."""
        self._resumed = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what will be dropped where."""
        plan = _plan(pl_module)
        if plan is not None and trainer.is_global_zero:
            print_table(plan)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here; a resumed run counts on, and takes back what was logged after its checkpoint."""
        plan = _plan(pl_module)
        if plan is None:
            return
        resumed, self._resumed = self._resumed or {"logged_step": trainer.global_step, "tallies": {}}, None
        self._logged_step, self._acting = resumed["logged_step"], _acting(plan)
        for layer, state in zip(plan.layers, plan.states, strict=True):
            state.clear()
            if trainer.is_global_zero and layer.name in resumed["tallies"]:  # they are of all processes together
                state.restore(resumed["tallies"][layer.name])
        if self.folder is not None and trainer.is_global_zero:
            keep_rows_before(self.folder / "drop_ratio.csv", self._logged_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Log at the trainer's interval, once per optimizer step (with accumulated gradients a step has several batches)."""
        plan = _plan(pl_module)
        if plan is not None:
            self._acting = [acted and acts for acted, acts in zip(self._acting, _acting(plan), strict=True)]
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it; 0 logs nothing
        if interval > 0 and trainer.global_step % interval == 0:
            self._log(trainer, plan)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the steps after the last interval, and draw all of them."""
        if trainer.log_every_n_steps > 0:  # type: ignore[attr-defined]  # Lightning sets it
            self._log(trainer, _plan(pl_module))
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw what was logged of a run that is stopped from outside."""
        if isinstance(exception, KeyboardInterrupt | SystemExit):
            self._draw(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what was counted since the last logging step, by all processes, as plain numbers."""
        plan = _plan(pl_module)
        if plan is not None:
            tallies = _sum_tallies(trainer, plan).tolist()
            checkpoint.setdefault("dropkey", {})["drop_ratios"] = {
                "logged_step": self._logged_step,
                "tallies": {layer.name: tally for layer, tally in zip(plan.layers, tallies, strict=True)},
            }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what was counted until training starts, as the network may not be built yet."""
        self._resumed = checkpoint.get("dropkey", {}).get("drop_ratios")

    def _log(self, trainer: Trainer, plan: DropKeyPlan | None) -> None:
        if plan is None or trainer.global_step == self._logged_step:
            return
        since, self._logged_step = self._logged_step, trainer.global_step
        tallies = _sum_tallies(trainer, plan)
        for state in plan.states:
            state.clear()
        layers = observe(plan, tallies.tolist())  # the one synchronisation
        had_to_act, self._acting = self._acting, _acting(plan)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step - 1  # Lightning counts from 0
        for logger in trainer.loggers:
            logger.log_metrics(drop_ratios(layers), step=step)
        if self.folder is not None:
            _append_rows(self.folder / "drop_ratio.csv", step, layers)
        for layer, acts in zip(layers, had_to_act, strict=True):
            self._warn(layer, since, step, silent=acts and layer.draws == 0)

    def _warn(self, layer: ObservedLayer, first: int, last: int, *, silent: bool) -> None:
        """Warn of a layer that did not do what it was told, once per run."""
        if layer.layer in self._warned or not (silent or layer.deviation > MAX_DEVIATION):
            return
        self._warned.add(layer.layer)
        warnings.warn(_silence(layer, first, last) if silent else _difference(layer, first, last), stacklevel=2)

    def _draw(self, trainer: Trainer) -> None:
        rows = None if self.folder is None else self.folder / "drop_ratio.csv"
        if rows is not None and trainer.is_global_zero and rows.is_file():
            from dropkey_cli.report.drop_ratios import draw_drop_ratios  # matplotlib takes a second

            draw_drop_ratios(rows, rows.with_suffix(".png"))


def _sum_tallies(trainer: Trainer, plan: DropKeyPlan) -> Tensor:
    """What the layers of all processes counted: (L, 4)."""
    # FSDP moves past `_apply`: a layer that never drew has its counts where the model was made
    tallies = torch.stack([state.tally().to(trainer.strategy.root_device) for state in plan.states])
    summed: Tensor = trainer.strategy.reduce(tallies, reduce_op="sum")
    return summed


def _append_rows(path: Path, step: int, layers: list[ObservedLayer]) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            rows.writerow(("step", *FIELDS))
        rows.writerows((step, *(getattr(layer, field) for field in FIELDS)) for layer in layers)


def _difference(layer: ObservedLayer, first: int, last: int) -> str:
    return (
        f"{layer.layer} dropped {layer.observed:.6f} of its draws in steps {first} to {last}, {layer.deviation:.1f} "
        f"standard deviations of {layer.sigma:.1g} from the configured {layer.configured:.6f}: check that every process "
        "has random numbers of its own (seed_everything) and that only the plan's set_ratios changes ratios"
    )


def _silence(layer: ObservedLayer, first: int, last: int) -> str:
    return (
        f"{layer.layer} drew no mask in steps {first} to {last}, where ratio {layer.configured:.6f} is configured: check that "
        "the network still runs this layer, in training mode, and that nothing has replaced it since DropKey was applied"
    )


def _acting(plan: DropKeyPlan) -> list[bool]:
    return [state.acts(training=True) for state in plan.states]


def _plan(pl_module: LightningModule) -> DropKeyPlan | None:
    return getattr(pl_module, "dropkey_plan", None)
