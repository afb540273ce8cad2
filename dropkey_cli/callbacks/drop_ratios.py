"""Logs the configured and the really observed drop ratio of every attention layer."""

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from dropkey_cli.patching.apply import DropKeyPlan
from dropkey_cli.patching.table import print_table


class DropRatioMonitor(Callback):
    """Logs ``drop_ratio/<layer>`` (observed), ``drop_ratio_configured/<layer>`` and ``drop_ratio/mean``.

    The observed ratio is the number of dropped draws over the number of draws in the masks that were really used since the
    last logging step, summed over all processes. The counts stay on the device between logging steps.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what will be dropped where."""
        plan = _plan(pl_module)
        if plan is not None and trainer.is_global_zero:
            print_table(plan)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here; a resumed run starts at a later step."""
        self._logged_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Log at the trainer's interval, once per optimizer step (with accumulated gradients a step has several batches)."""
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it; 0 logs nothing
        if interval > 0 and trainer.global_step % interval == 0:
            self._log(trainer, _plan(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the steps after the last interval."""
        if trainer.log_every_n_steps > 0:  # type: ignore[attr-defined]  # Lightning sets it
            self._log(trainer, _plan(pl_module))

    def _log(self, trainer: Trainer, plan: DropKeyPlan | None) -> None:
        if plan is None or trainer.global_step == self._logged_step:
            return
        self._logged_step = trainer.global_step
        # FSDP moves past `_apply`: a layer that never drew has its counts where the model was made
        counts = torch.stack([state.counts.to(trainer.strategy.root_device) for state in plan.states])  # (L, 2)
        for state in plan.states:
            state.counts.zero_()  # in place: compiled code holds on to the tensor
        counts = trainer.strategy.reduce(counts, reduce_op="sum")
        observed = drop_ratios(plan, counts.tolist())  # the one synchronisation
        _send(trainer, observed)


def drop_ratios(plan: DropKeyPlan, counts: list[list[int]]) -> dict[str, float]:
    """Observed and configured ratios by log key.

    Args:
        plan: The patched layers.
        counts: Dropped draws and all draws of each layer (L, 2). A layer without draws (ratio 0) has observed ratio 0.
    """
    layers = plan.layers
    observed = {f"drop_ratio/{layer.name}": n / max(total, 1) for layer, (n, total) in zip(layers, counts, strict=True)}
    mean = sum(observed.values()) / len(layers)
    configured = {f"drop_ratio_configured/{layer.name}": layer.ratio if plan.enabled else 0.0 for layer in layers}
    return {**observed, "drop_ratio/mean": mean, **configured}


@rank_zero_only
def _send(trainer: Trainer, values: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step - 1)  # Lightning counts from 0


def _plan(pl_module: LightningModule) -> DropKeyPlan | None:
    return getattr(pl_module, "dropkey_plan", None)
