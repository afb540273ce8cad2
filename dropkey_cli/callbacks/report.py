"""Keeps what the network said of the validation or test images, and has the report of it written at the end."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor

from dropkey_cli.callbacks.gathering import gather
from dropkey_cli.callbacks.run_log import say
from dropkey_cli.data.dataset import Batch, counted
from dropkey_cli.data.streamed import StreamedImages
from dropkey_cli.errors import InputError, one_line
from dropkey_cli.files import from_here, keep_earlier
from dropkey_cli.report.numbers import write_numbers
from dropkey_cli.report.predictions import Outcomes, write_predictions
from dropkey_cli.report.scores import label_counts, label_scores, write_scores

SHOWN = ("data", "split", "images", "model", "DropKey", "optimizer")
"""Lines of the plan that the report repeats; the others are of one process and one start only."""


class Report(Callback):
    """Writes the answers and ``metrics.json`` whenever an epoch is the best so far, and the report of it at the end.

    The answers are ``predictions.csv``; ``per_class.csv`` where an image may have any number of classes.

    A report that cannot be written is a line on stderr; the run goes on.

    Args:
        folder: Where it goes.
        run: The folder of the training run; None where there is none.
        best: Decides in training which epoch is best; None: the last one.
    """

    def __init__(self, folder: Path, *, run: Path | None, best: ModelCheckpoint | None = None) -> None:
        self.folder = folder
        self.run = run
        self.best = best
        self._parts: list[Outcomes] = []
        self._counts: Tensor | None = None
        self._failed = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._parts, self._counts = [], None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - what the task returns
        batch: Batch,
        *_: object,
    ) -> None:
        """Note what was said of a batch, if the task says the probabilities of classes."""
        if trainer.sanity_checking or not isinstance(outputs, Tensor) or outputs.dim() != 2 or not isinstance(batch, Mapping):
            return
        kept, labels, index = counted(batch), batch["label"], batch["index"]
        several = labels.dim() == 2 and getattr(pl_module, "multi_label", False)
        if labels.dim() != 1 and not several:
            return
        if len(kept) < len(labels):
            labels, index = labels[kept], index[kept]
            outputs = outputs if len(outputs) == len(kept) else outputs[kept]
        if kept and several:
            counts = label_counts(outputs.detach(), labels)
            self._counts = counts if self._counts is None else self._counts + counts
        elif kept:
            paths = [batch["path"][place] for place in kept]
            self._parts.append(Outcomes.of(outputs.detach(), label=labels, index=index, paths=paths))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it down if it is the best so far."""
        if not trainer.sanity_checking and self._is_best(trainer):
            own = Outcomes.join(self._parts) if self._parts else None
            parts = gather((own, None if self._counts is None else self._counts.cpu()), trainer)
            if trainer.is_global_zero:
                outcomes, counts = ([part for part in column if part is not None] for column in zip(*parts, strict=True))
                with self._or_not():
                    self._keep(trainer, outcomes, counts)
        self._parts, self._counts = [], None

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]  # it is called with more than it needs
    on_test_end = on_validation_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report."""
        self._write(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the report of a test or a validation, behind the metrics that are printed before."""
        if stage in ("validate", "test"):
            self._write(trainer, pl_module)

    def _is_best(self, trainer: Trainer) -> bool:
        if self.best is None or trainer.state.fn != TrainerFn.FITTING:
            return True
        value = trainer.callback_metrics.get(self.best.monitor or "")
        return value is None or self.best.check_monitor_top_k(trainer, value)

    def _keep(self, trainer: Trainer, outcomes: list[Outcomes], counts: list[Tensor]) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        if not fitting and (kept := keep_earlier(self.folder)):
            print(f"the earlier {self.folder} is now {kept}")
        self.folder.mkdir(parents=True, exist_ok=True)
        names = trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it
        if outcomes:
            write_predictions(self.folder / "predictions.csv", Outcomes.join(outcomes), names)
        if counts:
            write_scores(self.folder / "per_class.csv", label_scores(torch.stack(counts).sum(0), names))
        place = {"epoch": trainer.current_epoch, "step": trainer.global_step} if fitting else {}
        stage = f"{_stage(trainer)}/"
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(stage)}
        write_numbers(self.folder, {**place, **metrics})

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._failed:
            return
        with self._or_not():
            for logger in trainer.loggers:
                logger.save()  # metrics.csv is read
            self.folder.mkdir(parents=True, exist_ok=True)
            path = _written(self, trainer, pl_module)
            say(f"report: {from_here(path)}")

    @contextmanager
    def _or_not(self) -> Iterator[None]:
        """Whatever goes wrong with a report, the run's results stay."""
        try:
            yield
        except Exception as error:
            self._failed = True
            reason = one_line(error)
            say(f"dropkey: warning: no report in {self.folder} ({type(error).__name__}: {reason})", error=True)


def report_folder(command: str, checkpoint: Path) -> tuple[Path, Path | None]:
    """Where the report of a test or validation goes, and the folder of the run that the checkpoint is of, if it is in one.

    Args:
        command: validate or test.
        checkpoint: The checkpoint.
    """
    run = checkpoint.parent.parent
    in_run = checkpoint.parent.name == "checkpoints" and (run / "config.yaml").is_file()
    return (run if in_run else Path()) / f"report_{command}", run if in_run else None


def _stage(trainer: Trainer) -> str:
    return "test" if trainer.state.fn == TrainerFn.TESTING else "val"


def _written(report: Report, trainer: Trainer, module: LightningModule) -> Path:
    from dropkey_cli.report.write import Sources, write_report  # matplotlib takes a second

    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    fitting, stage = trainer.state.fn == TrainerFn.FITTING, _stage(trainer)
    dataset = getattr(data, "splits", {}).get(stage)
    if isinstance(dataset, StreamedImages):  # each look would read it from its start
        dataset = None
    best = Path(report.best.best_model_path) if fitting and report.best and report.best.best_model_path else None
    images = {"val": "validation", "test": "test"}[stage]
    lines = [*getattr(data, "plan_lines", list)(), *getattr(module, "plan_lines", list)()]
    sources = Sources(
        folder=report.folder,
        stage=stage,
        title=f"{report.run.parent.name} / {report.run.name}" if report.run else str(trainer.ckpt_path),
        subtitle=f"DropKey: {images} images, {'best.ckpt' if best else 'last epoch' if fitting else trainer.ckpt_path}",
        class_names=list(data.class_names),
        facts=[line for line in lines if line[0] in SHOWN],
        metrics=report.run / "metrics.csv" if fitting and report.run else None,
        drop_ratios=report.run / "drop_ratio.csv" if fitting and report.run else None,
        num_images=0 if dataset is None else len(dataset),
        image=None if dataset is None else lambda index: dataset[index]["image"],
        attention=None if dataset is None else _look(data, module, best),
    )
    return write_report(sources)


def _look(data: Any, module: LightningModule, checkpoint: Path | None) -> Callable[[Tensor], Any]:  # noqa: ANN401
    """What gives the attention maps of 8-bit images (B, C, height, width), by the weights of a checkpoint."""

    def look(images: Tensor) -> Any:  # noqa: ANN401 - AttentionMaps
        from dropkey_cli.report.attention import attention_maps

        network = getattr(module, "network", None)
        if network is None or any(isinstance(parameter, DTensor) for parameter in network.parameters()):
            raise InputError("no process has the whole network: dropkey validate --ckpt_path RUN draws the maps")
        first = next(network.parameters())
        pixels = data.preprocessing.normalize(images).to(first.device, first.dtype)
        with _weights(module, checkpoint), _in_eval(network):
            return attention_maps(network, getattr(module, "dropkey_plan", None), pixels)

    return look


@contextmanager
def _weights(module: LightningModule, checkpoint: Path | None) -> Iterator[None]:
    """The weights of a checkpoint meanwhile; None keeps those that are there."""
    if checkpoint is None:
        yield
        return
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"])
    try:
        yield
    finally:
        module.load_state_dict(before)


@contextmanager
def _in_eval(network: torch.nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
