"""Where memory ran out, and the options that need less of it."""

import inspect

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from dropkey_cli.callbacks.run_log import note

_PHASES = {
    RunningStage.TRAINING: "training",
    RunningStage.SANITY_CHECKING: "validation",
    RunningStage.VALIDATING: "validation",
    RunningStage.TESTING: "the test",
    RunningStage.PREDICTING: "prediction",
}
_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory")


class MemoryAdvice(Callback):
    """Keeps one sentence of advice when memory runs out.

    Attributes:
        advice: The sentence; None as long as memory lasts.
    """

    def __init__(self) -> None:
        self.advice: str | None = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look at what ended the run, while it is known where it was."""
        if ran_out(exception):
            self.advice = advise(trainer, pl_module)
            note(f"error: {self.advice}")


def ran_out(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out; on a CPU and MPS it has no type."""
    while error is not None:
        named = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAYINGS)
        if named or isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        error = error.__cause__
    return False


def advise(trainer: Trainer, pl_module: LightningModule) -> str:
    """The sentence: in which phase, with how many images at once, and which options need less."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    phase = _PHASES[trainer.state.stage or RunningStage.TRAINING]
    batch_size, fits = getattr(data, "batch_size", 1), trainer.state.fn == TrainerFn.FITTING
    device = trainer.strategy.root_device.type
    todo: list[str] = []
    if batch_size > 1:
        halved = f"--data.batch_size {batch_size // 2}"
        accumulated = f" --trainer.accumulate_grad_batches {2 * trainer.accumulate_grad_batches}"
        todo.append(f"{halved}{accumulated} (as many images per step, so the same learning rate)" if fits else halved)
    if fits and getattr(pl_module, "grad_checkpointing", True) is False and _takes(pl_module, "grad_checkpointing"):
        todo.append("--model.grad_checkpointing true")
    if device != "cpu" and trainer.precision.startswith(("32", "64")):
        todo.append("--trainer.precision bf16-mixed")
    if _takes(data, "image_size"):
        todo.append(f"a smaller --data.image_size (now {data.preprocessing.image_size})")
    given = f"batches of {batch_size} image{'s'[: batch_size != 1]}"
    return (
        f"the memory of the {device} device ran out in {phase}, with {given}: give {', or '.join(todo or ['a smaller model'])}"
    )


def _takes(thing: object, option: str) -> bool:
    return option in inspect.signature(type(thing)).parameters
