from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dropkey_cli.callbacks.progress import ProgressLines

MODULE: Any = None  # not looked at


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("dropkey_cli.callbacks.progress.time.monotonic", clock)
    return clock


def trainer(**changes: object) -> Any:  # noqa: ANN401 - the little of a trainer that the lines need
    metrics = {"train/loss": torch.tensor(1.25), "val/acc1": torch.tensor(0.5), "test/acc1": torch.tensor(0.0)}
    values = {"global_step": 0, "estimated_stepping_batches": 100, "current_epoch": 0, "max_epochs": 4, "is_global_zero": True}
    return SimpleNamespace(**{**values, "callback_metrics": metrics, **changes})


def test_one_line_per_epoch_with_time_and_metrics(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines()
    lines.on_train_start(trainer(), MODULE)
    clock.now += 10
    lines.on_train_epoch_end(trainer(global_step=25), MODULE)
    expected = "epoch 1/4  step 25/100  train/loss 1.2500  val/acc1 0.5000  10 s elapsed, 30 s left\n"
    assert capsys.readouterr().out == expected


def test_a_resumed_run_counts_its_own_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines()
    lines.on_train_start(trainer(global_step=50), MODULE)
    clock.now += 100
    lines.on_train_epoch_end(trainer(global_step=75, current_epoch=2), MODULE)
    assert capsys.readouterr().out.startswith("epoch 3/4  step 75/100")
    lines.on_train_epoch_end(trainer(global_step=60), MODULE)
    assert capsys.readouterr().out.endswith("100 s elapsed, 7 min left\n")  # 40 steps of 10 s


def test_long_epochs_give_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines()
    lines.on_train_start(trainer(), MODULE)
    for step in range(1, 101):
        clock.now += 1
        lines.on_train_batch_end(trainer(global_step=step), MODULE, None, None, 0)
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == ["31/100", "62/100", "93/100"]


def test_only_the_first_process_prints(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines()
    lines.on_train_start(trainer(), MODULE)
    lines.on_train_epoch_end(trainer(is_global_zero=False), MODULE)
    assert capsys.readouterr().out == ""
