from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader, Dataset

from dropkey_cli.callbacks.pace import Counts, FetchTimes, Pace, learning_rate, num_images


def test_speed_and_waiting_are_those_between_two_moments() -> None:
    before, now = Counts(10, 100, 1), Counts(14, 180, 2)
    assert now.images_per_second(before) == 20
    assert now.waiting(before) == 0.25
    assert now.images_per_second(now) == now.waiting(now) == 0


def test_the_best_is_the_checkpoints_in_the_same_run_only() -> None:
    saved = Pace()
    saved.best, saved.best_epoch = 0.75, 3
    for resumed in (True, False):
        pace = Pace(resumed=resumed)
        pace.load_state_dict(saved.state_dict())
        assert pace.best == (0.75 if resumed else None)


def test_what_a_damaged_checkpoint_says_is_no_best() -> None:
    pace = Pace(resumed=True)
    for damaged in ({}, {"best": "x", "best_epoch": 1}, {"best": 0.5, "best_epoch": None}):
        pace.load_state_dict(damaged)
        assert pace.state_dict() == {"best": None, "best_epoch": 0}


def test_a_value_before_training_is_no_best() -> None:
    pace = Pace()
    run: Any = SimpleNamespace(sanity_checking=True, callback_metrics={"val/x": torch.tensor(1.0)}, current_epoch=0)
    task: Any = SimpleNamespace(monitor="val/x")
    pace.on_validation_start(run, task)
    pace.on_validation_end(run, task)
    assert pace.state_dict() == {"best": None, "best_epoch": 0}
    run.sanity_checking = False
    pace.on_validation_end(run, task)
    assert pace.state_dict() == {"best": 1.0, "best_epoch": 1}
    run.current_epoch = 1
    pace.on_validation_end(run, task)
    assert pace.best_epoch == 1  # of equal ones the first, whose checkpoint is kept


def test_images_of_a_batch() -> None:
    assert num_images({"image": torch.empty(3, 1)}) == 3
    assert num_images({"pixels": 1}) == num_images([1, 2]) == 0


def test_the_highest_learning_rate_as_far_as_reading_it_waits_for_nothing() -> None:
    groups = [{"lr": 0.1}, {"lr": 0.3}]
    run: Any = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=groups)])
    assert learning_rate(run) == 0.3
    groups[:] = [{"lr": torch.tensor(0.5)}]  # type: ignore[dict-item]  # as capturable optimizers have it
    assert learning_rate(run) is None


class Clock:
    """Seconds that pass when something takes them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowData(Dataset[torch.Tensor]):
    """Of which every item takes a while."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 6

    def __getitem__(self, position: int) -> torch.Tensor:
        self.clock.now += 2.0
        return torch.zeros(32)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_what_training_waits_for_is_what_its_loader_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("dropkey_cli.callbacks.pace.time.monotonic", clock)

    class Model(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ANN401 - as Lightning's
            clock.now += 1.0
            return super().training_step(batch, batch_idx)

        def train_dataloader(self) -> Any:  # noqa: ANN401
            return DataLoader(SlowData(clock), batch_size=2)

        def val_dataloader(self) -> Any:  # noqa: ANN401
            return DataLoader(SlowData(clock), batch_size=2)

    pace, fetches = Pace(), FetchTimes()
    run = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[pace], profiler=fetches, max_epochs=2, num_sanity_val_steps=0,
    )  # fmt: skip
    run.fit(Model())
    # Two epochs of three batches: 4 seconds to load one and 1 to train on it; the validations' 12 are left out
    assert pace.counts(run) == Counts(seconds=2 * 3 * 5.0, images=0, waited=2 * 3 * 4.0)
