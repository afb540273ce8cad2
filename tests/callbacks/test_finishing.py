"""The end without DropKey in real trainings of two layers, whose masks and learning rates are looked at step by step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.callbacks.finishing import Finishing
from dropkey_cli.callbacks.weight_average import WeightAverage
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*callbacks used to create.*")

SHAPE = (2, 10, 10)  # of the logits of one sample: heads, queries, keys
DRAWS = 2 * 2 * 10 * 10  # in a batch of two
SCALES = (0.5, 1.0)  # of the learning rates of the two groups of weights, as timm's layer-wise decay writes them


class Softmax(nn.Module):
    """Gives its weights."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


class Task(LightningModule):
    """One attention layer; keeps of every batch whether its weights are bitwise the plain network's, and the learning rates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.project, self.value = nn.Linear(10, 10), nn.Linear(10, 10)
        self.attention = Softmax()
        settings = DropKeySettings(schedule=[0.4], include=["*Softmax"])
        self.dropkey_plan = apply_dropkey(self, settings, example_inputs=(torch.zeros(2, *SHAPE),))
        self.plain: list[bool] = []
        self.rates: list[tuple[float, ...]] = []

    def configure_model(self) -> None:
        """As our tasks have one."""

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.project(batch)
        return logits, self.attention(logits)

    def training_step(self, batch: Tensor) -> Tensor:
        logits, weights = self(batch)
        assert self.training
        self.plain.append(torch.equal(weights, logits.softmax(-1)))  # not the module's, so not DropKey's
        loss: Tensor = self.value(weights).square().mean()
        return loss

    def validation_step(self, batch: Tensor) -> None:
        self.log("val/loss", self(batch)[1].square().mean())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(tuple(group["lr"] for group in optimizer.param_groups))

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning takes many forms
        parts = zip((self.project, self.value), SCALES, strict=True)
        groups = [{"params": part.parameters(), "lr": 0.1 * scale, "lr_scale": scale} for part, scale in parts]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Stream(IterableDataset[Tensor]):
    """Data without a length."""

    def __iter__(self) -> Any:  # noqa: ANN401 - an iterator
        return iter(torch.ones(8, *SHAPE))


def data() -> DataLoader[Any]:
    """Four batches of two, all the same: this loader cannot go on in the middle of an epoch, as ours do."""
    images: Any = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2)).repeat(4, 1, 1, 1)
    return DataLoader(images, batch_size=2)


def fit(
    task: Task,
    *callbacks: Callback,
    loader: DataLoader[Any] | None = None,
    ckpt_path: Any = None,  # noqa: ANN401 - a path
    **options: Any,  # noqa: ANN401 - any of the trainer's
) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"num_sanity_val_steps": 0, "limit_val_batches": 0}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[BatchSeeds(0), *callbacks], **{**quiet, **defaults, **options})
    trainer.fit(
        task, data() if loader is None else loader, data(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None
    )
    return trainer


@pytest.mark.parametrize(
    ("length", "options", "batches", "first"),
    [
        (0.25, {"max_epochs": 2}, 8, 6),
        (0.3, {"max_epochs": 2}, 8, 6),  # 2.4 steps are 2
        (0.01, {"max_epochs": 2}, 8, 7),  # at least one
        (1.0, {"max_epochs": 3}, 12, 8),
        (2.0, {"max_epochs": 3}, 12, 4),
        (0.5, {"max_epochs": 2, "accumulate_grad_batches": 2}, 8, 4),
        (1.0, {"max_epochs": 2, "accumulate_grad_batches": 3}, 8, 4),  # an epoch's last batch is a step of its own
        (1.0, {"max_epochs": 3, "max_steps": 6}, 6, 2),
        (0.5, {"max_epochs": -1, "max_steps": 6}, 6, 3),
        (1.0, {"max_epochs": -1, "max_steps": 6}, 6, 2),
    ],
)
def test_the_last_batches_are_bitwise_those_of_the_plain_network(
    length: float, options: dict[str, Any], batches: int, first: int
) -> None:
    task = Task()
    fit(task, Finishing(length), **options)
    assert task.plain == [False] * first + [True] * (batches - first)
    [state] = task.dropkey_plan.states
    assert state.counts[1] == first * DRAWS
    assert task.dropkey_plan.enabled  # for Monte Carlo prediction
    task.train()
    logits, weights = task(torch.zeros(2, *SHAPE))
    assert not torch.equal(weights, logits.softmax(-1))


def test_its_learning_rate_is_constant_and_keeps_the_groups_proportions() -> None:
    task, plain = Task(), Task()
    fit(task, Finishing(0.25, 0.07), max_epochs=2, limit_val_batches=1)
    by_hand = [0.1 / (1 + step) for step in range(6)] + [0.07, 0.07]
    assert task.rates == [pytest.approx((0.5 * rate, rate)) for rate in by_hand]
    assert task.rates[6:] == [(0.035, 0.07)] * 2
    fit(plain, Finishing(0.25), max_epochs=2)  # the schedule goes on
    assert plain.rates == [pytest.approx((0.05 / (1 + step), 0.1 / (1 + step))) for step in range(8)]


class Shown(Callback):
    """What a callback that shows the learning rate sees after each step and each validation."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[1]["lr"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[1]["lr"])


class Unsettling(Callback):
    """A schedule that goes by validation, which it comes to before any callback's on_validation_end."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].param_groups[1]["lr"] = 9.0


def test_what_is_shown_is_the_rate_of_the_next_step() -> None:
    shown = Shown()
    fit(Task(), Finishing(0.5, 0.07), Unsettling(), shown, max_epochs=2, limit_val_batches=1)
    assert shown.rates[4:] == [0.07] * 6  # validation after the first epoch, four steps, validation


class Saves(Callback):
    """A checkpoint after each step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def weights(task: Task) -> list[Tensor]:
    return [parameter.detach() for parameter in task.parameters()]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("average", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit_from_any_step(average: bool, tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [Finishing(0.5, 0.01), *([WeightAverage(0.9)] if average else [])]

    whole = Task()
    fit(whole, *callbacks(), Saves(tmp_path), max_epochs=2)
    for step in (2, 3, 4, 5, 7):  # the phase begins at 4
        part = Task()
        fit(part, *callbacks(), max_epochs=2, ckpt_path=tmp_path / f"{step}.ckpt")
        assert part.plain == whole.plain[step:]
        assert part.rates == whole.rates[step:]
        assert all(map(torch.equal, weights(part), weights(whole)))
    assert not {key for key in torch.load(tmp_path / "7.ckpt", weights_only=True)["callbacks"] if "Finishing" in key}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_that_goes_on_for_longer_has_its_phase_at_the_new_end(tmp_path: Path) -> None:
    fit(Task(), Finishing(1), Saves(tmp_path), max_epochs=2)
    longer = Task()
    fit(longer, Finishing(1), max_epochs=4, ckpt_path=tmp_path / "7.ckpt")
    assert longer.plain == [False] * 5 + [True] * 4


class Ends(Callback):
    """Ends a run after a step, by itself or by an exception."""

    def __init__(self, step: int, exception: type[Exception] | None = None) -> None:
        self.step = step
        self.exception = exception

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step == self.step:
            if self.exception is not None:
                raise self.exception
            trainer.should_stop = True


@pytest.mark.parametrize(("step", "said"), [(4, True), (5, False)])
def test_a_run_that_ends_early_says_that_the_phase_did_not_come(
    step: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(Task(), Finishing(0.5), Ends(step), max_epochs=2)
    line = "ended at step 4, before the part without DropKey, which begins at step 4 (--finish_without_dropkey)\n"
    begins = "step 4: from here on without DropKey (--finish_without_dropkey)\n"
    assert capsys.readouterr().out == (line if said else begins)


def test_an_exception_leaves_dropkey_on() -> None:
    task = Task()
    with pytest.raises(ArithmeticError):
        fit(task, Finishing(0.5), Ends(6, ArithmeticError), max_epochs=2)
    assert task.plain == [False] * 4 + [True] * 2
    assert task.dropkey_plan.enabled


@pytest.mark.parametrize("length", [0, 1.5, -1, float("nan"), float("inf")])
def test_a_length_that_is_neither_share_nor_epochs_is_refused(length: float) -> None:
    with pytest.raises(InputError, match=f"finish_without_dropkey is {length:g}; expected a share of the training steps"):
        Finishing(length)


def test_a_phase_as_long_as_the_run_is_refused_but_for_a_trial() -> None:
    with pytest.raises(InputError, match="finish_without_dropkey is 2 epochs, 8 steps, of a run of 8: give fewer"):
        fit(Task(), Finishing(2), max_epochs=2)
    with pytest.raises(InputError, match="finish_without_dropkey is 1 epoch, 4 steps, of a run of 3: give fewer"):
        fit(Task(), Finishing(1), max_epochs=1, max_steps=3)
    trial = Task()
    fit(trial, Finishing(2), fast_dev_run=True)
    assert trial.plain == [True]


def test_data_without_a_length_take_a_share() -> None:
    with pytest.raises(InputError, match="finish_without_dropkey is 1 epoch, but the data do not say how long an epoch is"):
        fit(Task(), Finishing(1), loader=DataLoader(Stream(), batch_size=2), max_steps=3)
    task = Task()
    fit(task, Finishing(0.3), loader=DataLoader(Stream(), batch_size=2), max_steps=3)
    assert task.plain == [False, False, True]


@pytest.mark.parametrize(
    ("length", "lr", "validates", "said"),
    [
        (0.25, None, False, "25% of the run (from step 6 of 8) without DropKey, learning rate by the schedule"),
        (2.0, 0.07, False, "2 epochs (from step 4 of 12) without DropKey, learning rate 0.07"),
        (1.0, 0.07, False, "epoch (from step 4 of 8) without DropKey, learning rate 0.07"),
        (
            0.5,
            1e-5,
            True,
            "50% of the run (from step 4 of 8) without DropKey, learning rate 1e-05; best.ckpt may be from before it, "
            "last.ckpt is from its end",
        ),
    ],
)
def test_the_plan_says_it(length: float, lr: float | None, validates: bool, said: str) -> None:
    class Plan(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            told.extend(finishing.plan_lines())

    told: list[tuple[str, str]] = []
    finishing = Finishing(length, lr)
    fit(Task(), Plan(), finishing, max_epochs=3 if length == 2 else 2, limit_val_batches=int(validates))
    assert told == [("finish", f"the last {said}")]
