import math
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from dropkey_cli.callbacks.checkpoints import LastCheckpoint
from dropkey_cli.callbacks.nonfinite_report import (
    TrainBatch,
    TrainStep,
    describe,
    describe_gradients,
    story,
    ways_out,
)
from dropkey_cli.callbacks.stop_signals import StopSignals


def step(*losses: float, paths: int = 2) -> TrainStep:
    batches = [
        TrainBatch(
            epoch=2, index=10 + number, paths=[f"{number}{image}.png" for image in range(paths)], loss=torch.tensor(loss)
        )
        for number, loss in enumerate(losses)
    ]
    return TrainStep(number=7, batches=batches, left_out=torch.ones(()))


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (step(math.nan), "the loss is nan at step 7 (epoch 2, batch 10: 00.png, 01.png)"),
        (step(1.0, -math.inf, math.nan), "the loss is -inf at step 7 (epoch 2, batch 11: 10.png, 11.png)"),
        (step(math.nan, paths=4), "the loss is nan at step 7 (epoch 2, batch 10: 00.png, 01.png, 02.png and 1 more)"),
        (step(math.nan, paths=0), "the loss is nan at step 7 (epoch 2, batch 10)"),
        (step(1.0, 2.0), ""),
    ],
)
def test_a_loss_is_described_by_its_batch(described: TrainStep, expected: str) -> None:
    assert describe(described) == expected


def test_gradients_are_described_by_the_steps_last_batch() -> None:
    expected = "the gradients are not finite at step 7 (epoch 2, batch 11: 10.png) though the loss is 0.3333"
    assert describe_gradients(step(1.0, 1 / 3, paths=1)) == expected


def told(network: nn.Module, batch: object, *losses: float) -> str:
    trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    module: Any = SimpleNamespace(network=network)
    return story(trainer, module, step(*losses), batch)


def test_the_story_ends_with_the_layer() -> None:
    batch = {"image": torch.full((2, 3), math.nan)}
    assert told(nn.Linear(3, 1), batch, math.nan) == f"{describe(step(math.nan))}; the images themselves are not finite"
    assert told(nn.Linear(3, 1), batch, 2.0) == f"{describe_gradients(step(2.0))}; the images themselves are not finite"
    for other in (None, [batch["image"]], {"image": "a.png"}):
        assert told(nn.Linear(3, 1), other, math.nan).endswith("; every parameter is finite")


def test_a_network_that_runs_in_all_processes_together_is_not_called() -> None:
    batch = {"image": torch.ones(2, 3)}
    assert told(nn.SyncBatchNorm(3), batch, math.nan).endswith("; every parameter is finite")


# What to go on from


def trainer(*savers: object, began_with: Path | None = None) -> Any:  # noqa: ANN401 - a part of one
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.01, 0.25, 0.1)])
    return SimpleNamespace(optimizers=[optimizer], checkpoint_callbacks=list(savers), ckpt_path=began_with)


def saver(best: Path, last: Path | str) -> ModelCheckpoint:
    callback = ModelCheckpoint()
    callback.best_model_path, callback.last_model_path = str(best), str(last)
    return callback


def write(path: Path, *, age: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


@pytest.mark.parametrize("newest", ["best", "last"])
def test_the_newest_checkpoint_is_named(newest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/x/version_3/checkpoints"
    paths = [write(folder / f"{name}.ckpt", age=name != newest) for name in ("best", "last")]
    text = ways_out(trainer(SimpleNamespace(), saver(*paths)), "stop")
    name = Path(f"runs/x/version_3/checkpoints/{newest}.ckpt")
    assert text == (
        f"the last good checkpoint is {name}; start again with --ckpt_path {name} and a lower --model.lr (it is 0.25 now) "
        "or --trainer.gradient_clip_val 1, or leave such steps out with --on_nonfinite_loss skip"
    )


def test_a_run_that_can_be_resumed_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/x/version_0")
    last = LastCheckpoint(run, StopSignals())
    begun = write(tmp_path / "begun.ckpt", age=0)
    assert f"; start again with --ckpt_path {begun.name} and" in ways_out(trainer(last, began_with=begun), "stop")
    write(last.path, age=9)
    text = ways_out(trainer(last, began_with=begun), "stop")
    assert text.startswith(f"the last good checkpoint is {last.path}; continue with dropkey fit --resume {run} and a lower")


def test_a_file_elsewhere_is_named_in_full(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", age=0)
    text = ways_out(trainer(saver(path, tmp_path / "gone.ckpt")), "skip")
    assert f"checkpoint is {path}; start again with --ckpt_path {path} and" in text
    assert "--on_nonfinite_loss" not in text


def test_without_one_the_run_starts_again(tmp_path: Path) -> None:
    for savers in ([], [saver(tmp_path / "gone.ckpt", "")]):
        assert ways_out(trainer(*savers), "stop").startswith("no checkpoint was written before it; start again with a lower ")


def test_a_resumed_run_may_go_back_to_where_it_began(tmp_path: Path) -> None:
    begun, later = write(tmp_path / "begun.ckpt", age=9), tmp_path / "later.ckpt"
    assert f"last good checkpoint is {begun};" in ways_out(trainer(saver(later, ""), began_with=begun), "stop")
    write(later, age=0)
    assert f"last good checkpoint is {later};" in ways_out(trainer(saver(later, ""), began_with=begun), "stop")
