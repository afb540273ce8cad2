"""The parts; that whole runs go on bit for bit is in tests/commands/test_resume.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from dropkey_cli.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, metric_states, requeue, restore_metrics
from dropkey_cli.callbacks.stop_signals import StopSignals
from dropkey_cli.errors import InputError, RunError
from dropkey_cli.tasks.metrics import MeanLoss

STATE: dict[str, Any] = {
    "dirpath": "/old/checkpoints",
    "best_model_score": torch.tensor(0.5),
    "best_model_path": "/old/checkpoints/best.ckpt",
    "best_k_models": {"/old/checkpoints/best.ckpt": torch.tensor(0.5)},
    "kth_best_model_path": "/old/checkpoints/best.ckpt",
    "kth_value": torch.tensor(0.5),
}


def test_a_resumed_run_knows_its_best_wherever_it_lies(tmp_path: Path) -> None:
    callback = BestCheckpoint(tmp_path, "val/acc1", resumed=True)
    callback.load_state_dict(STATE)
    assert callback.best_model_path == callback.kth_best_model_path == str(tmp_path / "best.ckpt")
    assert list(callback.best_k_models) == [str(tmp_path / "best.ckpt")]
    assert callback.best_model_score == 0.5
    callback.load_state_dict({**STATE, "best_k_models": {}})  # nothing was validated yet
    assert callback.best_model_path == ""


def test_the_best_of_another_run_does_not_count(tmp_path: Path) -> None:
    callback = BestCheckpoint(tmp_path, "val/acc1")
    callback.load_state_dict(STATE)
    assert (callback.best_model_path, callback.best_model_score, callback.best_k_models) == ("", None, {})


@pytest.mark.parametrize(
    ("error", "first", "obeyed", "says"),
    [
        (KeyboardInterrupt(), True, False, True),
        (InputError("an image is gone"), True, False, True),
        (RunError("says it itself"), True, False, False),
        (SystemExit(143), True, True, False),  # stopped as it was asked to
        (KeyboardInterrupt(), False, False, False),  # another process than the first
    ],
)
def test_a_run_that_breaks_off_says_how_to_go_on_once_it_has_begun(
    error: BaseException, first: bool, obeyed: bool, says: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer: Any = SimpleNamespace(ckpt_path=None, global_step=7, is_global_zero=first)
    module: Any = None
    callback = LastCheckpoint(tmp_path, StopSignals())
    callback.signals.obeyed = obeyed
    callback.path.parent.mkdir()
    callback.path.touch()
    callback.on_exception(trainer, module, error)
    assert capsys.readouterr().err == ""  # of an earlier part of the run
    callback.on_train_start(trainer, module)
    callback.on_exception(trainer, module, error)
    said = f"the last checkpoint is that of step 7; continue with: dropkey fit --resume {tmp_path}\n"
    assert capsys.readouterr().err == (said if says else "")
    callback.path.unlink()
    callback.on_exception(trainer, module, error)
    assert capsys.readouterr().err == ""


def test_it_is_time_only_after_a_step(tmp_path: Path) -> None:
    saved: list[int] = []
    trainer: Any = SimpleNamespace(ckpt_path=None, global_step=3, is_global_zero=True, accumulate_grad_batches=1, loggers=[])
    trainer.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace())
    trainer.save_checkpoint = lambda _: saved.append(trainer.global_step)
    module: Any = None
    callback = LastCheckpoint(tmp_path, StopSignals(), minutes=1e-9)
    callback.on_train_start(trainer, module)
    for step in (3, 4, 4, 5):
        trainer.global_step = step
        callback.on_train_batch_start(trainer, module, None, 1)
    assert saved == [4, 5]


def metrics() -> nn.Module:
    parts = {"acc": MetricCollection({"acc": MulticlassAccuracy(3)}), "loss": MeanLoss(), "auroc": MulticlassAUROC(3)}
    return nn.ModuleDict(parts)


def feed(module: Any, seed: int) -> None:  # noqa: ANN401 - a ModuleDict of metrics
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.rand(20, 3, generator=generator), torch.randint(0, 3, (20,), generator=generator)
    module["acc"].update(logits, labels)
    module["auroc"].update(logits.softmax(-1), labels)
    module["loss"].update(logits.mean(), 20)


def values(module: Any) -> dict[str, float]:  # noqa: ANN401 - a ModuleDict of metrics
    return {name: float(module[name].compute()["acc"] if name == "acc" else module[name].compute()) for name in module}


def test_metrics_go_on_where_they_were(tmp_path: Path) -> None:
    whole, first, second = metrics(), metrics(), metrics()
    feed(whole, 0)
    feed(whole, 1)
    feed(first, 0)
    torch.save(metric_states(first), tmp_path / "states")
    restore_metrics(second, torch.load(tmp_path / "states", weights_only=True))
    feed(second, 1)
    assert values(second) == values(whole)
    feed(first, 5)  # the saved states are copies
    restored = metrics()
    restore_metrics(restored, torch.load(tmp_path / "states", weights_only=True))
    assert values(restored) != values(first)


def test_a_failing_requeue_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", "")
    requeue()
    assert capsys.readouterr().err.startswith("scontrol requeue 12 failed ([Errno 2] No such file or directory")
