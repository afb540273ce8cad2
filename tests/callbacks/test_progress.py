import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.trainer.states import TrainerFn

from dropkey_cli.callbacks.pace import FetchTimes, Pace
from dropkey_cli.callbacks.progress import EvaluationLines, ProgressBar, ProgressLines, num_batches, spelled

MODULE: Any = None  # not looked at


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("dropkey_cli.callbacks.progress.time.monotonic", clock)  # the module's, and so everyone's
    return clock


def trainer(**changes: object) -> Any:  # noqa: ANN401 - the little of a trainer that the lines need
    metrics = {"train/loss": torch.tensor(1.25), "val/acc1": torch.tensor(0.5), "test/acc1": torch.tensor(0.0)}
    values: dict[str, object] = {
        "global_step": 0,
        "estimated_stepping_batches": 100,
        "current_epoch": 0,
        "max_epochs": 4,
        "is_global_zero": True,
    }
    values |= {"world_size": 1, "optimizers": [], "profiler": None, "datamodule": None, "sanity_checking": False}
    return SimpleNamespace(**{**values, "callback_metrics": metrics, "training": True, **changes})


class Run:
    """Callbacks in the order in which a run calls them.

    Args:
        clock: The time.
        changes: Of the trainer.
    """

    def __init__(self, clock: Clock, *, printed: bool = True, **changes: object) -> None:
        self.clock = clock
        self.trainer = trainer(**changes)
        self.pace = Pace()
        self.lines = ProgressLines(self.pace, printed=printed)
        for callback in (self.pace, self.lines):
            callback.on_train_start(self.trainer, MODULE)

    def step(self, seconds: float, images: int = 8) -> None:
        self.clock.now += seconds
        self.trainer.global_step += 1
        for callback in (self.pace, self.lines):
            callback.on_train_batch_end(self.trainer, MODULE, None, {"image": [0] * images}, 0)

    def end_epoch(self) -> None:
        self.lines.on_train_epoch_end(self.trainer, MODULE)


def test_one_line_per_epoch_with_time_speed_and_metrics(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(clock, optimizers=[SimpleNamespace(param_groups=[{"lr": 1e-4}, {"lr": 3e-4}])])
    for _ in range(25):
        run.step(0.4)
    run.end_epoch()
    expected = "epoch 1/4  step 25/100  train/loss 1.2500  val/acc1 0.5000  lr 0.0003  20 images/s  10 s elapsed, 30 s left\n"
    assert capsys.readouterr().out == expected


def test_the_first_step_which_may_compile_foretells_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(clock)
    run.step(60)
    for _ in range(9):
        run.step(1)
    run.end_epoch()
    assert capsys.readouterr().out.splitlines()[-1].endswith("69 s elapsed, 90 s left")


def test_a_resumed_run_counts_its_own_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(clock, global_step=50, current_epoch=2)
    for _ in range(20):
        run.step(1)
    run.end_epoch()
    assert capsys.readouterr().out.startswith("epoch 3/4  step 70/100  ")
    run.end_epoch()
    assert capsys.readouterr().out.endswith("20 s elapsed, 30 s left\n")


def test_long_epochs_give_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(clock)
    for _ in range(100):
        run.step(1)
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == ["31/100", "62/100", "93/100"]


def test_a_run_without_a_known_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(clock, max_epochs=-1, estimated_stepping_batches=float("inf"))
    run.step(1)
    run.end_epoch()
    out = capsys.readouterr().out
    assert out.startswith("epoch 1  step 1  train/loss")
    assert out.endswith("1 s elapsed\n")


def test_images_of_all_processes_are_counted_and_validation_is_no_training(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(clock, world_size=2)
    for _ in range(5):
        run.step(1, images=10)
    run.pace.on_validation_start(run.trainer, MODULE)
    clock.now += 15
    run.pace.on_validation_end(run.trainer, MODULE)
    run.end_epoch()
    assert "  20 images/s  20 s elapsed" in capsys.readouterr().out


def test_speed_is_that_since_the_last_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(clock)
    for seconds in (1, 2):
        for _ in range(4):
            run.step(seconds)
        run.end_epoch()
    assert ["8 images/s" in line for line in capsys.readouterr().out.splitlines()] == [True, False]


def test_waiting_for_images_is_shown_from_a_tenth_on_and_advised_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    fetches = FetchTimes()
    run = Run(clock, profiler=fetches, datamodule=SimpleNamespace(num_workers=2))
    for waited in (0.9, 2, 8, 8):
        run.step(10)
        fetches.seconds += waited
        run.end_epoch()
    lines = capsys.readouterr().out.splitlines()
    assert ["waiting for data" in line for line in lines if line.startswith("epoch")] == [False, True, True, True]
    assert "waiting for data 20%" in lines[1]
    assert [line for line in lines if not line.startswith("epoch")] == [
        "80% of the time training waits for images: give more --data.num_workers (now 2), or smaller files"
    ]


def test_lines_that_are_not_printed_are_kept_all_the_same(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []
    monkeypatch.setattr("dropkey_cli.callbacks.progress.note", noted.append)
    run = Run(clock, printed=False)
    run.step(1)
    run.end_epoch()
    assert capsys.readouterr().out == ""
    assert len(noted) == 1
    assert noted[0].startswith("epoch 1/4  step 1/100")


def test_the_best_so_far_and_its_epoch_are_shown(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    task: Any = SimpleNamespace(monitor="val/acc1")
    run = Run(clock)
    for epoch, value in enumerate((0.5, 0.75, 0.25)):
        run.trainer.current_epoch = epoch
        run.trainer.callback_metrics["val/acc1"] = torch.tensor(value)
        run.step(1)
        run.pace.on_validation_start(run.trainer, task)
        run.pace.on_validation_end(run.trainer, task)
        run.end_epoch()
    best = [re.findall(r"best \S+ \(epoch \d\)", line)[0] for line in capsys.readouterr().out.splitlines()]
    assert best == ["best 0.5000 (epoch 1)", "best 0.7500 (epoch 2)", "best 0.7500 (epoch 2)"]


def test_a_bar_outside_training_shows_the_metrics() -> None:
    metrics = ProgressBar().get_metrics(trainer(), MODULE)
    assert metrics == {"train/loss": 1.25, "val/acc1": 0.5}


def test_a_bar_in_training_shows_speed_best_and_time_left(clock: Clock) -> None:
    run = Run(clock, datamodule=SimpleNamespace(batch_size=8))
    for _ in range(10):
        run.step(1)
    run.pace.best, run.pace.best_epoch = 0.5, 1
    bar = ProgressBar(run.pace)
    task: Any = SimpleNamespace(monitor="val/acc1")
    assert bar.get_metrics(run.trainer, task) == {"train/loss": 1.25, "best": "0.5000 (epoch 1)", "left": "90 s"}
    column = bar.configure_columns(run.trainer)[-1]
    assert str(column.render(SimpleNamespace(speed=2.5))) == "20 images/s"
    assert str(column.render(SimpleNamespace(speed=None))) == ""
    bar._trainer = run.trainer
    assert bar._get_train_description(0) == "epoch 1/4"


def test_only_the_first_process_prints(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(clock, is_global_zero=False)
    run.step(100)
    run.end_epoch()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", [TrainerFn.VALIDATING, TrainerFn.TESTING, TrainerFn.PREDICTING])
def test_long_evaluations_give_a_line_every_half_minute_on_the_standard_error(
    command: TrainerFn, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"num_val_batches": [20], "num_test_batches": [20], "num_predict_batches": [20]}
    run = trainer(state=SimpleNamespace(fn=command), world_size=2, **counts)
    lines = EvaluationLines()
    lines.on_test_start(run, MODULE)
    for _ in range(10):
        clock.now += 8
        lines.on_test_batch_end(run, MODULE, None, {"image": [0] * 4}, 0)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{command.value}  batch 4/20  32 images  1 images/s  32 s elapsed, 2 min left",
        f"{command.value}  batch 8/20  64 images  1 images/s  64 s elapsed, 96 s left",
    ]


def test_a_short_evaluation_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = EvaluationLines()
    lines.on_predict_start(trainer(), MODULE)
    clock.now += 29
    lines.on_predict_batch_end(trainer(), MODULE, None, {"image": [0]}, 0)
    assert capsys.readouterr() == ("", "")


def test_batches_of_all_loaders_count() -> None:
    run = trainer(
        state=SimpleNamespace(fn=TrainerFn.TESTING), num_val_batches=[1], num_test_batches=[3, 4], num_predict_batches=[]
    )
    assert num_batches(run) == 7


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_as_people_say_them(seconds: float, text: str) -> None:
    assert spelled(seconds) == text


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
