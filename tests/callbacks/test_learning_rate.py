from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dropkey_cli.callbacks.learning_rate import LearningRate


@pytest.mark.parametrize(("interval", "expected"), [(2, [1, 3]), (0, []), (1, [0, 1, 2, 3])])
def test_the_largest_rate_is_logged_at_the_trainer_s_interval(interval: int, expected: list[int]) -> None:
    logged: list[tuple[int, float]] = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((step, metrics["train/lr"])))
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (0.1, 0.4, 0.2)]
    optimizer = torch.optim.SGD(groups)
    for step in range(4):
        trainer: Any = SimpleNamespace(log_every_n_steps=interval, global_step=step, is_global_zero=True, loggers=[logger])
        LearningRate().on_before_optimizer_step(trainer, None, optimizer)  # type: ignore[arg-type]  # no module is needed
    assert logged == [(step, 0.4) for step in expected]
