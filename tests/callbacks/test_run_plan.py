from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dropkey_cli.callbacks.run_plan import RunPlan, run_lines


class Talks:
    """A task or data module that says something of itself."""

    def __init__(self, *lines: tuple[str, str]) -> None:
        self.lines = list(lines)

    def plan_lines(self) -> list[tuple[str, str]]:
        return self.lines


class DDPStrategy(SimpleNamespace):
    """The little of a strategy that is looked at: its name and device."""


def trainer(**changes: object) -> Any:  # noqa: ANN401 - the little of a trainer that the plan needs
    values: dict[str, object] = {
        "datamodule": Talks(("data", "3 classes")),
        "strategy": DDPStrategy(root_device=torch.device("cpu")),
        "max_epochs": 2,
        "max_steps": -1,
        "estimated_stepping_batches": 8,
        "world_size": 4,
        "precision": "32-true",
        "is_global_zero": True,
        "checkpoint_callback": None,
        "global_step": 8,
    }
    return SimpleNamespace(**{**values, **changes})


def test_plan_in_the_order_in_which_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    task: Any = Talks(("model", "a vit"), ("", "resampled"))
    task.weights_line = lambda: ("weights", "from scratch")
    plan = RunPlan(Path("runs/a/version_0"))
    plan.setup(trainer(), task, "fit")  # before the network is built, or anything fetched
    assert capsys.readouterr().out == "data        3 classes\nweights     from scratch\n"
    callbacks = [Talks(("EMA", "averaged")), object()]
    plan.on_fit_start(trainer(callbacks=callbacks), task)
    assert capsys.readouterr().out.splitlines() == [
        "model       a vit",
        "            resampled",
        "EMA         averaged",
        "training    2 epochs, 8 optimizer steps",
        "device      4 × cpu (DDPStrategy), precision 32-true",
        "run folder  runs/a/version_0",
    ]


@pytest.mark.parametrize(("began", "said"), [(True, ""), (False, "nothing was left to train after step 8: give a larger ")])
def test_a_resumed_run_that_is_at_its_end_says_so(began: bool, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan, task = RunPlan(None), cast(Any, None)
    for first in (True, False):
        if began:
            plan.on_train_start(trainer(is_global_zero=first), task)
        plan.on_fit_end(trainer(is_global_zero=first), task)
        out = capsys.readouterr().out
        assert out.startswith(said) if first and said else out == ""


def test_parts_that_say_nothing_are_no_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    silent: Any = object()
    plan = RunPlan(None)
    plan.setup(trainer(datamodule=silent), silent, "fit")
    plan.on_fit_start(trainer(datamodule=silent), silent)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["training", "device", "run"]


def test_only_fit_has_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    task: Any = Talks(("model", "a vit"))
    RunPlan(None).setup(trainer(), task, "validate")
    assert capsys.readouterr().out == ""


def test_images_per_step_are_those_of_all_devices_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data = SimpleNamespace(batch_size=32)
    lines = run_lines(trainer(datamodule=data, accumulate_grad_batches=2))
    assert lines[0] == ("training", "2 epochs, 8 optimizer steps of 256 images (32 × 4 devices × 2 batches accumulated)")
    assert run_lines(trainer(datamodule=data, accumulate_grad_batches=1, world_size=1))[0][1].endswith("steps of 32 images")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    on_gpus = trainer(strategy=DDPStrategy(root_device=torch.device("cuda:0")))
    assert run_lines(on_gpus)[1] == ("device", "4 × cuda, H200 (DDPStrategy), precision 32-true")


def test_a_terminal_gets_the_texts_in_one_column(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    task: Any = Talks(("DropKey", "DropKey in 12 layers: " + "words " * 30))
    monkeypatch.setattr("dropkey_cli.callbacks.run_plan.sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    RunPlan(None).on_fit_start(trainer(), task)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DropKey     12 layers: words")
    assert lines[1].startswith(f"{'':<12}words")
    assert max(map(len, lines)) <= 60


def test_length_and_device_of_a_run() -> None:
    assert dict(run_lines(trainer(max_epochs=-1)))["training"] == "8 optimizer steps"
    assert dict(run_lines(trainer(max_epochs=1, estimated_stepping_batches=1)))["training"] == "1 epoch, 1 optimizer step"
    assert dict(run_lines(trainer(max_steps=8)))["training"] == "8 optimizer steps"  # whatever part of the epochs that is
    assert dict(run_lines(trainer(max_epochs=3, max_steps=9, world_size=1))) == {
        "training": "3 epochs, 8 optimizer steps",
        "device": "1 × cpu, precision 32-true",
    }


def test_the_end_names_the_best_checkpoint_and_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    best = ModelCheckpoint(monitor="val/balanced_acc")
    best.best_model_path = str(tmp_path / "runs" / "best.ckpt")
    best.best_model_score = torch.tensor(0.75)
    task: Any = None
    plan = RunPlan(None)
    plan.on_train_start(trainer(), task)
    plan.on_fit_end(trainer(checkpoint_callback=best), task)
    assert capsys.readouterr().out == "best val/balanced_acc 0.7500: runs/best.ckpt\n"  # gone meanwhile
    Path("runs").mkdir()
    Path("runs/best.ckpt").touch()
    plan.on_fit_end(trainer(checkpoint_callback=best), task)
    assert capsys.readouterr().out == (
        "best val/balanced_acc 0.7500: runs/best.ckpt\n"
        "next: dropkey predict --ckpt_path runs/best.ckpt --data.root IMAGE_OR_FOLDER\n"
    )
    best.best_model_path = "/elsewhere/best.ckpt"
    plan.on_fit_end(trainer(checkpoint_callback=best), task)
    assert "0.7500: /elsewhere/best.ckpt\n" in capsys.readouterr().out


def test_without_validation_the_next_command_takes_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, task = Path("runs/a/version_0"), cast(Any, None)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/last.ckpt").touch()
    plan = RunPlan(folder)
    plan.on_train_start(trainer(), task)
    plan.on_fit_end(trainer(checkpoint_callback=None), task)
    assert (
        capsys.readouterr().out
        == f"next: dropkey predict --ckpt_path {folder}/checkpoints/last.ckpt --data.root IMAGE_OR_FOLDER\n"
    )


@pytest.mark.parametrize("changes", [{}, {"checkpoint_callback": ModelCheckpoint()}])
def test_without_a_checkpoint_the_end_says_nothing(changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    task: Any = None
    plan = RunPlan(None)
    plan.on_train_start(trainer(), task)
    plan.on_fit_end(trainer(**changes), task)
    assert capsys.readouterr().out == ""


def test_only_the_first_process_prints(capsys: pytest.CaptureFixture[str]) -> None:
    task: Any = Talks(("model", "a vit"))
    plan = RunPlan(None)
    plan.setup(trainer(is_global_zero=False), task, "fit")
    plan.on_fit_start(trainer(is_global_zero=False), task)
    assert capsys.readouterr().out == ""
