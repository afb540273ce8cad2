"""Measures attention: the entropy of each head's weights and the weight of its strongest key."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dropkey_cli.callbacks.gathering import gather_everywhere
from dropkey_cli.data.dataset import Batch, counted
from dropkey_cli.errors import InputError
from dropkey_cli.files import from_here, keep_earlier
from dropkey_cli.method.attention_entropy import attention_sums
from dropkey_cli.patching.apply import DropKeyPlan, PlannedLayer
from dropkey_cli.patching.counting import recomputing
from dropkey_cli.patching.selection import NoAttentionError
from dropkey_cli.patching.watching import WatchedAttention
from dropkey_cli.report.attention_rows import AttentionRow, Pass, attention_rows, by_layer, write_attention


class AttentionStatistics(Callback):
    """Writes ``attention.csv`` after each validation or test: entropy and strongest key of each layer and head.

    They are averages over all queries of all images and processes, each image once; over all attention of a layer that attends
    several times, such as ConViT's by content and by position. What is measured are the weights after the
    softmax, before dropout of weights and before heads are mixed. The file's column ``pass`` says how keys were dropped:
    ``inference`` (not at all) or ``monte_carlo``. Means over layers and heads are logged as ``val/attention_entropy`` and
    ``val/attention_top_key`` (or ``test/…``).

    The training pass, with its masks, is sharper, and measured at logging steps only: ``train/attention_entropy/<layer>``,
    ``train/attention_top_key/<layer>`` and ``train/attention_entropy``. A compiled network is not measured in training, since
    it would run uncompiled, with other masks.

    A network without DropKey is measured too. Nothing that is computed changes; fused attention is computed twice meanwhile.

    Args:
        folder: Where the file goes, with ``attention.png`` at the end; None writes neither.
        drawn: Whether there is a picture.
    """

    def __init__(self, folder: Path | None, *, drawn: bool = True) -> None:
        self.folder = folder
        self.drawn = drawn
        self._sums: dict[str, Tensor] = {}
        self._found: list[AttentionRow] = []
        self._step = 0  # whose batches are measured
        self._measuring = ExitStack()
        self._watched: WatchedAttention | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a network without attention before it is trained."""
        with self._plan(trainer, pl_module):
            pass

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Measure the batches of a step that is logged."""
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it; 0 logs nothing
        compiled = getattr(getattr(pl_module, "network", None), "_compiled_call_impl", None) is not None
        if interval > 0 and (trainer.global_step + 1) % interval == 0 and not compiled:
            self._step = trainer.global_step
            self._measure(trainer, pl_module, batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Log them once the step is made: with accumulated gradients it has several batches."""
        self._measuring.close()
        if not self._sums or trainer.global_step == self._step:
            return
        if rows := self._rows("training"):
            values = {
                f"train/attention_{name}/{layer}": _mean(of_layer, name)
                for name in ("entropy", "top_key")
                for layer, of_layer in by_layer(rows).items()
            }
            for logger in trainer.loggers if trainer.is_global_zero else []:
                step = trainer.global_step - 1  # Lightning counts from 0
                logger.log_metrics({**values, "train/attention_entropy": _mean(rows, "entropy")}, step=step)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._sums = {}

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measure the batch."""
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module, batch)

    def on_validation_batch_end(self, *_: object) -> None:
        """Leave the network as it was."""
        self._measuring.close()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means; keep the rows."""
        self._found = []
        if trainer.sanity_checking:
            return
        sampled = getattr(pl_module, "monte_carlo", None) is not None
        self._found = self._rows("monte_carlo" if sampled else "inference")
        stage = "test" if trainer.state.fn == TrainerFn.TESTING else "val"
        for name in ("entropy", "top_key") if self._found else ():
            pl_module.log(f"{stage}/attention_{name}", _mean(self._found, name), sync_dist=True)  # the same in all processes

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows, behind the report, which makes its folder anew."""
        if self.folder is None or not self._found or not trainer.is_global_zero:
            return
        path = self.folder / "attention.csv"
        self.folder.mkdir(parents=True, exist_ok=True)
        if trainer.state.fn != TrainerFn.FITTING and (kept := keep_earlier(path)):
            print(f"the earlier {from_here(path)} is now {from_here(kept)}")
        write_attention(path, self._found)
        if trainer.state.fn != TrainerFn.FITTING:
            self._draw(trainer)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]  # it is called with more than it needs
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation."""
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the network as it was."""
        self._measuring.close()

    def _measure(self, trainer: Trainer, pl_module: LightningModule, batch: Batch) -> None:
        """Until ``_measuring`` is closed, add up what the network attends to."""
        places = counted(batch)
        size = len(batch["path"])

        def add(layer: PlannedLayer, weights: Tensor) -> None:
            if recomputing():
                return
            if len(places) < size and weights.shape[0] % size == 0:
                weights = weights.reshape(size, -1, *weights.shape[1:])[places].flatten(0, 1)  # an image's windows in a row
            sums = attention_sums(weights, heads_axis=layer.rule.heads_axis)
            self._sums[layer.name] = self._sums[layer.name] + sums if layer.name in self._sums else sums

        plan = self._measuring.enter_context(self._plan(trainer, pl_module))
        self._measuring.enter_context(plan.recording(add))

    def _rows(self, mode: Pass) -> list[AttentionRow]:
        """What was measured since the last call, by all processes; nothing where no image counted."""
        found = gather_everywhere({layer: sums.cpu() for layer, sums in self._sums.items()})
        self._sums = {}
        total: dict[str, Tensor] = {}
        for of_process in found:
            for layer, sums in of_process.items():
                total[layer] = total[layer] + sums if layer in total else sums
        rows = attention_rows(total, mode)
        return rows if any(row.rows for row in rows) else []

    @contextmanager
    def _plan(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[DropKeyPlan]:
        """That of the network, or for the moment one without DropKey."""
        plan: DropKeyPlan | None = getattr(pl_module, "dropkey_plan", None)
        if plan is not None:
            yield plan
            return
        if self._watched is None:
            self._watched = _watched(trainer, pl_module)
        with self._watched.plan() as plan:
            yield plan

    def _draw(self, trainer: Trainer) -> None:
        rows = None if self.folder is None else self.folder / "attention.csv"
        if self.drawn and rows is not None and trainer.is_global_zero and rows.is_file():
            from dropkey_cli.report.attention_figure import draw_attention  # matplotlib takes a second

            draw_attention(rows, rows.with_suffix(".png"))


def _watched(trainer: Trainer, pl_module: LightningModule) -> WatchedAttention:
    network: nn.Module | None = getattr(pl_module, "network", None)
    if network is None:
        raise InputError(f"--attention: {type(pl_module).__name__} has no network whose attention is known; leave it out")
    if any(isinstance(module, FSDPModule) for module in network.modules()):
        raise InputError(
            "--attention: a sharded network without DropKey cannot be measured; give --trainer.strategy ddp, or leave it out"
        )
    preprocessing: Any = trainer.datamodule.preprocessing  # type: ignore[attr-defined]  # Lightning sets it
    images = torch.empty(2, preprocessing.channels, preprocessing.image_size, preprocessing.image_size, device="meta")
    try:
        return WatchedAttention(network, (trainer.precision_plugin.convert_input(images),))
    except NoAttentionError as error:
        raise InputError(f"--attention: {type(network).__name__} has no attention over keys; leave it out") from error
    except InputError as error:
        raise InputError(f"--attention: {error}; or leave it out") from error


def _mean(rows: list[AttentionRow], name: str) -> float:
    """Over layers and heads, each counting the same."""
    return sum(float(getattr(row, name)) for row in rows) / len(rows)
