import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from jsonargparse.typing import OpenUnitInterval, PositiveInt
from lightning import LightningModule
from lightning.pytorch.loggers import CSVLogger

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.callbacks.checkpoints import LoggedSteps
from dropkey_cli.callbacks.pace import Pace
from dropkey_cli.callbacks.patience import Patience
from dropkey_cli.callbacks.progress import ProgressLines
from dropkey_cli.callbacks.weight_average import WeightAverage
from dropkey_cli.commands.metrics_log import MetricsLog
from dropkey_cli.commands.run_parts import (
    default_precision,
    fill_image_options,
    first_callbacks,
    loggers,
    predict_as_asked,
    progress_callbacks,
    recipe_callbacks,
)
from dropkey_cli.errors import InputError
from dropkey_cli.tasks.classification import Classification
from tests.commands.conftest import SHORT_FIT, Dropkey


def test_data_takes_from_the_checkpoint_or_else_the_model_what_is_not_given() -> None:
    asked = {"image_size": 32, "mean": None, "std": None, "class_names": None, "batch_size": None}
    config = Namespace({"data.init_args": Namespace(**asked), "model.init_args.model_name": "test_vit"})  # type: ignore[no-untyped-call]
    fill_image_options(config, {"image_size": 64, "mean": [0.1, 0.2, 0.3], "class_names": ["a", "b"]})
    filled = {"mean": [0.1, 0.2, 0.3], "class_names": ["a", "b"], "std": (0.5, 0.5, 0.5)}
    assert vars(config.data.init_args) == {**asked, **filled}


@pytest.mark.parametrize(("asked", "known", "channels"), [(1, {}, 1), (None, {"channels": 5}, 5), (None, {}, 3)])
def test_statistics_follow_the_channels(asked: int | None, known: dict[str, int], channels: int) -> None:
    data = Namespace(channels=asked, mean=None, std=None)  # type: ignore[no-untyped-call]
    config = Namespace({"data.init_args": data, "model.init_args.model_name": "resnet18"})  # type: ignore[no-untyped-call]
    fill_image_options(config, known)
    assert config.data.init_args.channels == channels
    assert len(config.data.init_args.mean) == len(config.data.init_args.std) == channels


@pytest.mark.parametrize(
    ("cuda", "bf16", "precision"), [(False, True, "32-true"), (True, False, "32-true"), (True, True, "bf16-mixed")]
)
def test_default_precision(cuda: bool, bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert default_precision() == precision


def test_without_a_seed_every_run_and_process_has_its_own() -> None:
    def seed(given: int | bool) -> int:
        steps, seeds = first_callbacks(given)
        assert isinstance(steps, LoggedSteps)
        assert isinstance(seeds, BatchSeeds)
        return seeds.seed

    assert seed(5) == 5
    assert len({seed(False), seed(False), 0}) == 3


def test_metrics_csv_stands_beside_the_loggers_that_are_named(tmp_path: Path) -> None:
    other = CSVLogger(tmp_path)
    for given, kinds in ((None, 1), (True, 1), (other, 2), ([other, other], 3)):
        made = loggers(given, tmp_path)
        assert len(made) == kinds
        assert isinstance(made[0], MetricsLog)
    assert loggers(False, tmp_path) is False


def recipe(ema: float | None, patience: int | None, monitor: str | None = "val/acc1") -> Any:  # noqa: ANN401 - parsed options
    task = SimpleNamespace() if monitor is None else SimpleNamespace(monitor=monitor)
    return SimpleNamespace(ema=ema, patience=patience, model=task)


def test_averaging_and_early_stopping_only_where_asked() -> None:
    assert recipe_callbacks(recipe(None, None), validates=True, resumed=False) == []
    [average, patience] = recipe_callbacks(recipe(OpenUnitInterval(0.9), PositiveInt(3)), validates=True, resumed=False)
    assert isinstance(average, WeightAverage)
    assert isinstance(patience, Patience)
    assert (average.decay, patience.patience, patience.monitor) == (0.9, 3, "val/acc1")
    assert type(patience.patience) is int  # another type in a checkpoint could not be loaded safely


@pytest.mark.parametrize(
    ("validates", "monitor", "reason"), [(False, "val/acc1", "this run has no validation"), (True, None, "names no monitor")]
)
def test_patience_without_anything_to_wait_for_is_refused(validates: bool, monitor: str | None, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^--patience 3 goes by validation, but .*{reason}: leave it out$"):
        recipe_callbacks(recipe(None, 3, monitor), validates=validates, resumed=False)


RECIPE_FIT = (
    *SHORT_FIT,
    "--ema=0.9",
    "--patience=1",
    "--model.lr=1e-9",
    "--trainer.max_epochs=4",
    "--trainer.limit_val_batches=2",
)


def test_a_run_with_an_average_validates_saves_and_predicts_it_and_ends_early(dropkey: Dropkey) -> None:
    outcome = dropkey(*RECIPE_FIT)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert "EMA         the weights' moving average (decay 0.9, warmed up) is what is validated and saved" in lines
    assert "patience    ends after 1 validation without a higher val/balanced_acc" in lines
    stopped = next(line for line in lines if line.startswith("stopped early"))
    assert stopped.endswith("in the last 1 validation (--patience)")
    assert [line.split()[0] for line in lines[-4:]] == ["stopped", "best", "next:", "report:"]
    best = torch.load(next(Path("runs").rglob("best.ckpt")), weights_only=True)
    assert not torch.equal(best["state_dict"]["network.head.weight"], best["current_model_state"]["network.head.weight"])
    again = dropkey("fit", "--resume", "last")
    assert again.code == 0, again.err
    assert [line for line in again.out.splitlines() if line.startswith(("epoch", "stopped"))] == [stopped]


def test_a_run_that_finishes_without_dropkey_says_so_and_draws_no_masks_there(dropkey: Dropkey) -> None:
    outcome = dropkey(*SHORT_FIT, "--finish_without_dropkey=1", "--finish_lr=1e-4", "--model.layer_decay=0.5", "--report=false")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    span = "the last epoch (from step 4 of 8) without DropKey, learning rate 0.0001"
    assert f"finish      {span}; best.ckpt may be from before it, last.ckpt is from its end" in lines
    begins = "step 4: from here on without DropKey, at learning rate 0.0001 (--finish_without_dropkey)"
    assert lines.count(begins) == 1
    run = Path("runs/quickstart/version_0")
    assert begins in (run / "run.log").read_text()
    assert "warning" not in (run / "run.log").read_text()
    rows = list(csv.DictReader((run / "drop_ratio.csv").read_text().splitlines()))
    for row in rows:
        acts = int(row["step"]) < 4 and row["layer"] != "blocks.5.attn"
        assert (float(row["configured"]) > 0, int(row["draws"]) > 0) == (acts, acts), row
    assert {row["step"] for row in rows} == {"1", "3", "5", "7"}
    rates = {
        row["step"]: row["train/lr"]
        for row in csv.DictReader((run / "metrics.csv").read_text().splitlines())
        if row["train/lr"]
    }
    assert float(rates["3"]) > 1e-4
    assert (float(rates["5"]), float(rates["7"])) == (1e-4, 1e-4)
    assert " lr 0.0001 " in next(line for line in lines if line.startswith("epoch 2/2"))
    groups = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert len({group["lr"] for group in groups}) == 8  # embedding, 6 blocks, classifier
    assert [group["lr"] for group in groups] == [1e-4 * group["lr_scale"] for group in groups]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ema=1.5"], "ema '1.5' is not valid: expected a number between 0 and 1 or null"),
        (["--finish_without_dropkey=0"], "finish_without_dropkey is 0; expected a share of the training steps between 0 and 1"),
        (["--finish_without_dropkey=1.5"], "finish_without_dropkey is 1.5; expected a share of the training steps"),
        (["--finish_without_dropkey=2"], "finish_without_dropkey is 2 epochs, 8 steps, of a run of 8: give fewer"),
        (["--finish_without_dropkey=0.1", "--finish_lr=0"], "finish_lr '0' is not valid: expected a number above 0 or null"),
        (["--finish_lr=1e-4"], "--finish_lr 0.0001 is that of --finish_without_dropkey: give that too"),
        (
            ["--finish_without_dropkey=0.1", "--model.dropkey=null"],
            "--finish_without_dropkey 0.1: Classification trains without DropKey from the start (--model.dropkey)",
        ),
        (["--patience=0"], "patience '0' is not valid: expected a whole number from 1 or null"),
        (
            ["--patience=2", "--trainer.limit_val_batches=0"],
            "--patience 2 goes by validation, but this run has no",
        ),
        (
            ["--model.optimizer=adamww"],
            "optimizer is 'adamww'; expected one of timm's or torch's such as adamw, lamb or sgd",
        ),
        (
            ["--model.schedule=cosin"],
            "model.schedule 'cosin' is not valid: expected cosine, poly, wsd, step, plateau, constant",
        ),
        (["--model.schedule_args={minlr: 1}"], "schedule_args has 'minlr', which cosine does not take; expected min_lr"),
        (["--model.freeze=[block.0]"], "freeze has 'block.0', which no weight's name matches"),
        (["--model.class_weights=[1, 2]"], "class_weights is [1.0, 2.0]; expected 10 numbers from 0"),
        (["--model.mixup=-1"], "mixup is -1.0; expected 0 or more; give --model.mixup"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_line(words: list[str], said: str, refused: Callable[..., str]) -> None:
    assert refused(*SHORT_FIT, *words).startswith(said)


def test_a_task_is_told_how_to_predict() -> None:
    task, plain = Classification(), LightningModule()
    predict_as_asked(task, Namespace(mc_samples=3, features=True))  # type: ignore[no-untyped-call]  # jsonargparse's
    assert (task.mc_samples, task.predicts_features) == (3, True)
    predict_as_asked(plain, Namespace(mc_samples=0, features=False))  # type: ignore[no-untyped-call]
    predict_as_asked(plain, Namespace())  # type: ignore[no-untyped-call]  # fit has neither
    with pytest.raises(InputError, match="--mc_samples: LightningModule cannot do it"):
        predict_as_asked(plain, Namespace(mc_samples=3))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("bar", "terminal", "fit", "other"),
    [
        (None, True, ["Pace", "ProgressLines", "ProgressBar"], ["ProgressBar"]),
        (None, False, ["Pace", "ProgressLines"], ["EvaluationLines"]),
        (True, False, ["Pace", "ProgressLines", "ProgressBar"], ["ProgressBar"]),
        (False, True, ["Pace", "ProgressLines"], []),
    ],
)
def test_a_terminal_gets_a_bar_a_pipe_gets_lines_and_run_log_gets_its_lines_in_any_case(
    bar: bool | None, terminal: bool, fit: list[str], other: list[str]
) -> None:
    callbacks = progress_callbacks("fit", bar=bar, terminal=terminal, resumed=True)
    assert [type(callback).__name__ for callback in callbacks] == fit
    pace, lines = callbacks[:2]
    assert isinstance(pace, Pace)
    assert isinstance(lines, ProgressLines)
    assert pace.resumed
    assert lines.printed == (bar is None and not terminal)
    callbacks = progress_callbacks("predict", bar=bar, terminal=terminal, resumed=False)
    assert [type(callback).__name__ for callback in callbacks] == other
