import math
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dropkey_cli.callbacks.drop_ratios import DropRatioMonitor, drop_ratios
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey

LAYERS = [f"blocks.{block}.attn" for block in range(3)]


class Recorder:
    """A logger that keeps what it is sent."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))


class Run:
    """A model with DropKey and the little of a trainer that the monitor looks at."""

    def __init__(self, *, interval: int = 2, world_size: int = 1, ratio: float = 0.4) -> None:
        self.model = timm.create_model("test_vit", depth=3, img_size=32).train()
        self.plan = apply_dropkey(self.model, DropKeySettings(ratio=ratio), example_inputs=(torch.zeros(2, 3, 32, 32),))
        self.logger = Recorder()
        self.world_size = world_size
        self.trainer: Any = SimpleNamespace(
            global_step=0,
            log_every_n_steps=interval,
            is_global_zero=True,
            loggers=[self.logger],
            strategy=SimpleNamespace(root_device=torch.device("cpu"), reduce=self.reduce),
        )
        self.module: Any = SimpleNamespace(dropkey_plan=self.plan)
        self.monitor = DropRatioMonitor()
        self.start()

    def reduce(self, counts: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "sum"
        return counts * self.world_size  # as if every process had counted the same

    def start(self) -> None:
        self.monitor.on_train_start(self.trainer, self.module)

    def batch(self, *, step: bool = True) -> None:
        self.model(torch.randn(4, 3, 32, 32))
        self.trainer.global_step += step
        self.monitor.on_train_batch_end(self.trainer, self.module, None, None, 0)

    def end(self) -> None:
        self.monitor.on_train_end(self.trainer, self.module)

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.logger.logged]


def test_ratios_are_dropped_draws_over_all_draws() -> None:
    plan = Run().plan
    assert drop_ratios(plan, [[30, 100], [1, 8], [0, 0]]) == {
        "drop_ratio/blocks.0.attn": 0.3,
        "drop_ratio/blocks.1.attn": 0.125,
        "drop_ratio/blocks.2.attn": 0.0,
        "drop_ratio/mean": pytest.approx(0.425 / 3),
        "drop_ratio_configured/blocks.0.attn": 0.4,
        "drop_ratio_configured/blocks.1.attn": 0.2,
        "drop_ratio_configured/blocks.2.attn": 0.0,
    }


def test_configured_ratios_follow_the_plan() -> None:
    plan = Run().plan
    plan.set_ratios([0.1, 0.2, 0.3])
    configured = {name: value for name, value in drop_ratios(plan, [[0, 1]] * 3).items() if "configured" in name}
    assert list(configured.values()) == [0.1, 0.2, 0.3]
    plan.enabled = False
    assert [value for name, value in drop_ratios(plan, [[0, 1]] * 3).items() if "configured" in name] == [0.0] * 3


def test_observed_ratios_are_those_configured() -> None:
    run = Run(interval=4)
    for _ in range(8):
        run.batch()
    assert run.steps == [3, 7]  # Lightning's numbers, from 0
    tokens = run.plan.layers[0].keys
    draws = 4 * 4 * run.plan.layers[0].heads * tokens * tokens  # steps, images, heads, queries, keys
    for _, values in run.logger.logged:
        for name, ratio in zip(LAYERS, (0.4, 0.2, 0.0), strict=True):
            sigma = math.sqrt(ratio * (1 - ratio) / draws)
            assert abs(values[f"drop_ratio/{name}"] - ratio) <= 5 * sigma
    first, second = (values["drop_ratio/blocks.0.attn"] for _, values in run.logger.logged)
    assert first != second  # each interval is counted by itself
    assert (first * draws).is_integer()  # all of its draws, and no others
    assert all(state.counts.tolist() == [0, 0] for state in run.plan.states)


def test_processes_are_summed() -> None:
    alone, many = Run(world_size=1), Run(world_size=3)
    for run in (alone, many):
        torch.manual_seed(0)
        run.batch()
        run.batch()
    assert alone.logger.logged == many.logger.logged  # the ratio of three times both counts


def test_nothing_is_read_from_the_device_between_logging_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    run = Run(interval=5)

    def reading(name: str) -> Any:  # noqa: ANN401 - a method
        original = getattr(Tensor, name)

        def read(self: Tensor, *args: object) -> object:
            reads.append(run.trainer.global_step)
            return original(self, *args)

        return read

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, reading(name))
    for _ in range(10):
        run.batch()
    assert reads == [5, 10]


def test_steps_after_the_last_interval_are_logged_at_the_end() -> None:
    run = Run(interval=2)
    for _ in range(3):
        run.batch()
    run.end()
    assert run.steps == [1, 2]
    assert run.logger.logged[-1][1]["drop_ratio/blocks.0.attn"] > 0.2


def test_nothing_is_logged_twice() -> None:
    run = Run(interval=2)
    run.batch()
    run.batch()
    run.end()  # the last step was logged: a row of zeros would follow
    assert run.steps == [1]


def test_with_accumulated_gradients_every_batch_counts_once() -> None:
    run = Run(interval=1)
    for batch in range(6):
        run.batch(step=batch % 2 == 1)
    run.end()
    assert run.steps == [0, 1, 2]  # never before the first step


def test_a_resumed_run_goes_on_where_it_was() -> None:
    run = Run(interval=2)
    run.trainer.global_step = 6
    run.start()
    run.batch(step=False)
    run.batch()
    run.batch()
    assert run.steps == [7]


def test_interval_0_logs_nothing() -> None:
    run = Run(interval=0)
    run.batch()
    run.end()
    assert run.steps == []


@pytest.mark.parametrize("module", [nn.Linear(1, 1), SimpleNamespace(dropkey_plan=None)])
def test_models_without_dropkey_are_left_alone(module: Any, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ANN401
    run = Run()
    run.module = module
    run.monitor.on_fit_start(run.trainer, module)
    run.batch()
    run.batch()
    run.end()
    assert run.steps == []
    assert capsys.readouterr().out == ""


def test_the_table_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run()
    run.monitor.on_fit_start(run.trainer, run.module)
    assert "blocks.2.attn" in capsys.readouterr().out
    run.trainer.is_global_zero = False
    run.monitor.on_fit_start(run.trainer, run.module)
    assert capsys.readouterr().out == ""
