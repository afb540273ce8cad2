from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from dropkey_cli.callbacks.weight_average import WeightAverage, move_average, warmed_up
from dropkey_cli.errors import InputError
from tests.callbacks.small_fits import Line, fit


@pytest.mark.parametrize(("updates", "decay"), [(0, 0.0), (1, 2 / 11), (2, 3 / 12), (80, 81 / 90), (90, 0.9), (10_000, 0.9)])
def test_the_decay_warms_up_from_the_weights_themselves(updates: int, decay: float) -> None:
    assert warmed_up(0.9, updates) == pytest.approx(min(decay, 0.9))


def test_an_average_moves_by_hand_and_counters_are_copied() -> None:
    average, model = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    assert average.running_mean is not None and model.running_mean is not None and model.num_batches_tracked is not None
    nn.init.constant_(model.weight, 3.0)
    model.running_mean.fill_(8.0)
    model.num_batches_tracked.fill_(36)
    move_average(average, model, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]  # 0.75 · 1 + 0.25 · 3
    assert average.running_mean.tolist() == [2.0, 2.0]
    assert average.num_batches_tracked == 36
    move_average(average, model, 0.0)
    assert average.weight.tolist() == [3.0, 3.0]


def weight_of(module: Any) -> float:  # noqa: ANN401 - a Line
    return float(module.weight.detach())


class Weights(Callback):
    """Keeps the weight after each step, and the one that is validated."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.steps.append(weight_of(pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated.append(float(trainer.callback_metrics["val/slope"]))


def averages(weights: list[float], decay: float) -> list[float]:
    """By hand, in Python's floats."""
    found: list[float] = []
    for number, weight in enumerate(weights):
        share = 0.0 if number == 0 else min(decay, (1 + number) / (10 + number))
        found.append(weight if number == 0 else share * found[-1] + (1 - share) * weight)
    return found


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_what_is_validated_and_saved_is_the_average_and_training_goes_on_from_the_weights(decay: float, tmp_path: Path) -> None:
    seen = Weights()
    trainer = fit(Line(), WeightAverage(decay), seen, max_epochs=3)
    expected = averages(seen.steps, decay)
    assert len(seen.steps) == 12
    assert seen.validated == pytest.approx([expected[3], expected[7], expected[11]], rel=1e-5)
    assert abs(expected[7] - seen.steps[7]) > 1e-3
    plain = Weights()
    fit(Line(), plain, max_epochs=3)
    assert plain.steps == seen.steps
    assert weight_of(trainer.lightning_module) == pytest.approx(expected[-1], rel=1e-5)


class SavesAtTheEnd(Callback):
    """Writes a checkpoint where LastCheckpoint writes the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*callbacks used to create.*")
def test_a_finished_run_goes_on_as_if_it_had_been_longer(tmp_path: Path) -> None:
    whole, parts = Weights(), Weights()
    fit(Line(), WeightAverage(0.9), whole, max_epochs=4)
    fit(Line(), WeightAverage(0.9), SavesAtTheEnd(tmp_path / "a.ckpt"), max_epochs=2)
    checkpoint: dict[str, Any] = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert float(checkpoint["current_model_state"]["weight"]) == whole.steps[7]
    assert float(checkpoint["state_dict"]["weight"]) == pytest.approx(averages(whole.steps, 0.9)[7], rel=1e-5)
    fit(Line(), WeightAverage(0.9), parts, max_epochs=4, ckpt_path=tmp_path / "a.ckpt")
    assert parts.steps == whole.steps[8:]
    assert parts.validated == whole.validated[2:]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_accumulated_gradients_count_as_one_step() -> None:
    seen = Weights()
    trainer = fit(Line(), WeightAverage(0.9), seen, max_epochs=1, accumulate_grad_batches=2)
    assert weight_of(trainer.lightning_module) == pytest.approx(averages([seen.steps[1], seen.steps[3]], 0.9)[-1], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_of_other_than_32_bits_are_refused(precision: str) -> None:
    with pytest.raises(InputError, match=f"--ema 0.9 averages weights of 32 bits, --trainer.precision {precision} has none"):
        fit(Line(), WeightAverage(0.9), max_epochs=1, precision=precision)


def test_the_plan_says_it() -> None:
    assert WeightAverage(0.9998).plan_lines() == [
        ("EMA", "the weights' moving average (decay 0.9998, warmed up) is what is validated and saved")
    ]
