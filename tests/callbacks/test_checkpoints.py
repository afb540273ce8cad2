"""The parts; that whole runs go on bit for bit is in tests/commands/test_resume.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from dropkey_cli.callbacks.checkpoints import BestCheckpoint, metric_states, requeue, restore_metrics
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
