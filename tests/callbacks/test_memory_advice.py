from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from dropkey_cli.callbacks.memory_advice import MemoryAdvice, advise, ran_out


class Data:
    """Of which an image size can be asked."""

    def __init__(self, image_size: int | None = None, batch_size: int = 64) -> None:
        self.preprocessing = SimpleNamespace(image_size=image_size or 224)
        self.batch_size = batch_size


class Other:
    """Data that say nothing of themselves."""


class Task:
    """That can recompute activations."""

    def __init__(self, grad_checkpointing: bool = False) -> None:
        self.grad_checkpointing = grad_checkpointing


def trainer(device: str = "cuda", **changes: object) -> Any:  # noqa: ANN401 - the little that is looked at
    values: dict[str, object] = {
        "datamodule": Data(),
        "state": SimpleNamespace(fn=TrainerFn.FITTING, stage=RunningStage.TRAINING),
        "strategy": SimpleNamespace(root_device=torch.device(device)),
        "precision": "32-true",
        "accumulate_grad_batches": 1,
    }
    return SimpleNamespace(**{**values, **changes})


def advice(task: object = None, **changes: object) -> str:
    return advise(trainer(**changes), task)  # type: ignore[arg-type]  # a task with an option, or without


def test_fit_says_where_and_all_that_helps() -> None:
    assert advice(Task()) == (
        "the memory of the cuda device ran out in training, with batches of 64 images: give "
        "--data.batch_size 32 --trainer.accumulate_grad_batches 2 (as many images per step, so the same learning rate), or "
        "--model.grad_checkpointing true, or --trainer.precision bf16-mixed, or a smaller --data.image_size (now 224)"
    )


def test_only_what_is_left_to_change_is_named() -> None:
    text = advice(Task(grad_checkpointing=True), precision="bf16-mixed", datamodule=Data(batch_size=1))
    assert text.endswith("with batches of 1 image: give a smaller --data.image_size (now 224)")
    assert "grad_checkpointing" not in advice(None)
    assert "precision" not in advice(None, device="cpu")
    assert "--trainer.accumulate_grad_batches 8" in advice(None, accumulate_grad_batches=4)
    assert advice(None, precision="16-mixed", datamodule=Other()).endswith("with batches of 1 image: give a smaller model")


@pytest.mark.parametrize(
    ("fn", "stage", "phase", "accumulates"),
    [
        (TrainerFn.FITTING, RunningStage.VALIDATING, "validation", True),
        (TrainerFn.FITTING, RunningStage.SANITY_CHECKING, "validation", True),
        (TrainerFn.VALIDATING, RunningStage.VALIDATING, "validation", False),
        (TrainerFn.TESTING, RunningStage.TESTING, "the test", False),
        (TrainerFn.PREDICTING, RunningStage.PREDICTING, "prediction", False),
    ],
)
def test_the_phase_is_named_and_only_training_accumulates(
    fn: TrainerFn, stage: RunningStage, phase: str, accumulates: bool
) -> None:
    text = advice(None, state=SimpleNamespace(fn=fn, stage=stage))
    assert f"ran out in {phase}, with batches of 64 images: give --data.batch_size 32" in text
    assert ("accumulate_grad_batches" in text) == accumulates


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("another"), False),
        (ValueError("out of memory"), False),
        (None, False),
    ],
)
def test_what_says_that_memory_ran_out(error: BaseException | None, expected: bool) -> None:
    assert ran_out(error) == expected
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = error
    assert ran_out(wrapped) == expected


def test_the_advice_is_kept() -> None:
    callback = MemoryAdvice()
    callback.on_exception(trainer(), None, ValueError("x"))  # type: ignore[arg-type]  # not looked at
    assert callback.advice is None
    callback.on_exception(trainer(), None, torch.OutOfMemoryError("CUDA out of memory"))  # type: ignore[arg-type]
    assert callback.advice == advice(None)
