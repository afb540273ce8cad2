from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from dropkey_cli.callbacks.progress import ProgressBar, ProgressLines

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


def test_a_run_without_a_number_of_epochs(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines()
    lines.on_train_start(trainer(), MODULE)
    lines.on_train_epoch_end(trainer(global_step=25, max_epochs=-1), MODULE)
    assert capsys.readouterr().out.startswith("epoch 1  step 25/100")


def test_a_bar_outside_training_shows_the_metrics() -> None:
    metrics = ProgressBar().get_metrics(trainer(), MODULE)
    assert metrics == {"train/loss": 1.25, "val/acc1": 0.5}


class Steps(BoringModel):
    """Logs the number of its step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ANN401 - as Lightning's
        self.log("train/loss", torch.tensor(float(batch_idx + 1)))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        self.log("val/acc1", torch.tensor(0.5))
        self.log("hidden", torch.tensor(0.5))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.parametrize(("interval", "shown"), [(4, [4.0, 8.0]), (1, [1.0 * step for step in range(1, 10)]), (0, [])])
def test_the_bar_reads_metrics_at_logging_steps_only(
    interval: int, shown: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    values: list[dict[str, float]] = []
    reads: list[int] = []

    class Recorded(ProgressBar):
        def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
            values.append(super().get_metrics(trainer, pl_module))
            return values[-1]

    run = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[Recorded()], log_every_n_steps=interval, max_epochs=1, limit_train_batches=9, limit_val_batches=1,
        num_sanity_val_steps=0,
    )  # fmt: skip
    original = torch.Tensor.__float__

    def reading(value: torch.Tensor) -> float:
        reads.append(run.global_step)
        return original(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__float__", reading)
        run.fit(Steps())
    in_steps = values[:9]
    assert list(dict.fromkeys(value["train/loss"] for value in in_steps if value)) == shown
    assert set(reads) == {int(step) for step in shown} | {9}  # and where the epoch ends
    assert values[-1] == {"train/loss": 9.0, "val/acc1": 0.5}


def test_only_the_first_process_prints(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines()
    lines.on_train_start(trainer(), MODULE)
    lines.on_train_epoch_end(trainer(is_global_zero=False), MODULE)
    assert capsys.readouterr().out == ""
