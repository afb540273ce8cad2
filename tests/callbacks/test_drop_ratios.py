import csv
import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dropkey_cli.callbacks.drop_ratios import DropRatioMonitor
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

    def __init__(self, *, interval: int = 2, world_size: int = 1, ratio: float = 0.4, folder: Path | None = None) -> None:
        self.model: Any = timm.create_model("test_vit", depth=3, img_size=32).train()
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
        self.monitor = DropRatioMonitor(folder)
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
    for step in range(10):
        run.plan.set_ratios([0.01 * step, 0.3, 0.2])
        run.plan.enabled = step % 4 > 0
        run.batch()
    assert reads == [5, 10]


def test_training_steps_that_recompute_read_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    run.model.set_grad_checkpointing()
    images = torch.randn(4, 3, 32, 32)
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "numpy"):
            patch.setattr(Tensor, name, None)
        run.model(images).sum().backward()
    draws = 4 * run.plan.layers[0].heads * run.plan.layers[0].queries * run.plan.layers[0].keys
    assert [int(state.counts[1]) for state in run.plan.states] == [draws, draws, 0]


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


# What is configured


def test_configured_is_the_mean_over_the_draws_of_the_interval() -> None:
    run = Run(interval=4)
    for ratios in ([0.25, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.75]):
        run.plan.set_ratios(ratios)
        run.batch()
    (_, values), *_ = run.logger.logged
    # The last layer drew in one step of four, with 0.75
    assert [values[f"drop_ratio_configured/{name}"] for name in LAYERS] == [0.4375, 0.5, 0.75]
    assert [values[f"drop_ratio/{name}"] for name in LAYERS] == pytest.approx([0.4375, 0.5, 0.75], abs=0.03)


def test_new_ratios_count_from_the_next_interval_on() -> None:
    run = Run(interval=1)
    for ratios in ([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]):
        run.plan.set_ratios(ratios)
        run.batch()
        assert [run.logger.logged[-1][1][f"drop_ratio_configured/{name}"] for name in LAYERS] == ratios


def test_switched_off_for_a_part_of_the_interval_the_rest_counts() -> None:
    run = Run(interval=2)
    run.batch()
    run.plan.enabled = False
    run.batch()
    run.batch()
    run.batch()
    configured = [[values[f"drop_ratio_configured/{name}"] for name in LAYERS] for _, values in run.logger.logged]
    assert configured == [[0.4, 0.2, 0.0], [0.0, 0.0, 0.0]]
    assert run.logger.logged[0][1]["drop_ratio/blocks.0.attn"] == pytest.approx(0.4, abs=0.03)


# Warnings


def warned(run: Run, batches: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(batches):
            run.batch()
    return [str(warning.message) for warning in caught]


def test_a_ratio_that_is_no_chance_is_warned_of_once_by_name() -> None:
    run = Run(interval=2)
    assert warned(run, 4) == []
    run.plan.states[1].ratio.fill_(0.6)  # past the plan
    (message,) = warned(run, 6)
    assert re.match(r"blocks\.1\.attn dropped 0\.[56]", message)
    assert "in steps 4 to 5" in message
    assert "from the configured 0.200000: check" in message
    assert "seed_everything" in message


def test_only_the_first_process_warns(tmp_path: Path) -> None:
    run = Run(folder=tmp_path)
    run.trainer.is_global_zero = False
    run.plan.states[1].ratio.fill_(0.6)
    assert warned(run, 4) == []
    run.end()
    assert run.steps == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dropped", [-1, 0, 1])
def test_five_standard_deviations_are_the_border(dropped: int) -> None:
    run = Run(interval=1, ratio=0.5)
    run.plan.set_ratios([0.5, 0.0, 0.0])
    run.plan.states[0].counts.copy_(torch.tensor([500_000 + 2500 + dropped, 1_000_000]))  # sigma is 500
    run.model.eval()
    assert len(warned(run, 1)) == (dropped > 0)


def test_a_layer_that_draws_nothing_is_warned_of() -> None:
    run = Run(interval=2)
    run.model.blocks[0].attn.eval()  # as some do to freeze blocks
    (message,) = warned(run, 4)
    assert message.startswith("blocks.0.attn drew no mask in steps 0 to 1, where ratio 0.4")
    assert "training mode" in message


def test_layers_that_should_draw_nothing_are_not_warned_of() -> None:
    run = Run(interval=2)
    run.plan.enabled = False
    assert warned(run, 2) == []
    run.plan.set_ratios([0.0, 0.2, 0.3])
    run.plan.enabled = True
    assert warned(run, 2) == []
    run.plan.enabled = False
    assert warned(run, 1) == []
    run.model.eval()
    run.plan.enabled = True  # not for all of the interval
    assert warned(run, 1) == []
    assert len(warned(run, 2)) == 2


@pytest.mark.parametrize("ratio", [0.3 / 7, 1 / 3, 0.123456])
def test_rounding_of_the_ratio_is_no_deviation(ratio: float) -> None:
    run = Run(interval=1)
    run.plan.set_ratios([ratio, 0.0, 0.0])
    share = round(ratio * 2**16)
    draws = 2**40  # sigma of the ratio is 1e-6 or less, the rounding up to 8e-6
    run.plan.states[0].counts.copy_(torch.tensor([share * draws // 2**16, draws]))
    run.model.eval()
    assert warned(run, 1) == []


# Files


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "drop_ratio.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_logging_step_appends_a_row_per_layer(tmp_path: Path) -> None:
    run = Run(folder=tmp_path)
    run.batch()
    run.batch()
    first = (tmp_path / "drop_ratio.csv").read_text()  # there at once
    assert first.startswith("step,layer,configured,observed,dropped,draws\n1,blocks.0.attn,0.4,0.")
    run.batch()
    run.end()
    assert (tmp_path / "drop_ratio.csv").read_text().startswith(first)
    rows = rows_of(tmp_path)
    assert [(int(row["step"]), row["layer"]) for row in rows] == [(step, name) for step in (1, 2) for name in LAYERS]
    for row, logged in zip(rows, [values for _, values in run.logger.logged for _ in LAYERS], strict=True):
        assert float(row["observed"]) == logged[f"drop_ratio/{row['layer']}"]
        assert float(row["configured"]) == logged[f"drop_ratio_configured/{row['layer']}"]
        assert int(row["dropped"]) / max(int(row["draws"]), 1) == float(row["observed"])
    assert (tmp_path / "drop_ratio.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(interval=1)
    run.batch()
    run.end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("exception", "drawn"), [(KeyboardInterrupt(), True), (SystemExit(143), True), (ValueError("broken"), False)]
)
def test_a_stopped_run_is_drawn(tmp_path: Path, exception: BaseException, drawn: bool) -> None:
    run = Run(interval=1, folder=tmp_path)
    run.monitor.on_exception(run.trainer, run.module, exception)
    assert list(tmp_path.iterdir()) == []  # nothing was logged
    run.batch()
    run.monitor.on_exception(run.trainer, run.module, exception)
    assert (tmp_path / "drop_ratio.png").is_file() is drawn


# Checkpoints


def train(run: Run, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)  # as BatchSeeds
        run.plan.set_ratios([0.4 - 0.01 * step, 0.2, 0.0])
        run.batch()


def test_a_resumed_run_logs_what_the_whole_one_would_have(tmp_path: Path) -> None:
    whole, lost, resumed = (Run(interval=4, folder=tmp_path / name, world_size=2) for name in ("whole", "parts", "parts"))
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    train(whole, range(10))
    whole.end()
    train(lost, range(6))
    checkpoint: dict[str, Any] = {}
    lost.monitor.on_save_checkpoint(lost.trainer, lost.module, checkpoint)
    train(lost, range(6, 9))
    lost.end()
    with (tmp_path / "parts" / "drop_ratio.csv").open("a") as file:
        file.write("9,blocks.0.a")  # killed as it wrote
    torch.save(checkpoint, tmp_path / "last.ckpt")
    resumed.trainer.global_step = 6
    resumed.world_size = 1
    resumed.monitor.setup(resumed.trainer, resumed.module, "fit")
    resumed.monitor.on_load_checkpoint(resumed.trainer, resumed.module, torch.load(tmp_path / "last.ckpt", weights_only=True))
    resumed.start()
    resumed.world_size = 2
    for state in resumed.plan.states:
        state.restore([count // 2 for count in state.tally().tolist()])  # `reduce` doubles
    train(resumed, range(6, 10))
    resumed.end()
    assert lost.logger.logged[:1] + resumed.logger.logged == whole.logger.logged
    assert (tmp_path / "parts" / "drop_ratio.csv").read_bytes() == (tmp_path / "whole" / "drop_ratio.csv").read_bytes()


def test_only_the_first_process_counts_on() -> None:
    run = Run(interval=4)
    run.batch()
    checkpoint: dict[str, Any] = {"dropkey": {"config": {}}}
    run.monitor.on_save_checkpoint(run.trainer, run.module, checkpoint)
    assert checkpoint["dropkey"].keys() == {"config", "drop_ratios"}
    counts = [state.counts.tolist() for state in run.plan.states]
    for first in (True, False):
        run.trainer.is_global_zero = first
        run.monitor.on_load_checkpoint(run.trainer, run.module, checkpoint)
        run.start()
        assert [state.counts.tolist() for state in run.plan.states] == (counts if first else [[0, 0]] * 3)


def test_saving_disturbs_no_count() -> None:
    run = Run(interval=4)
    run.batch()
    before = [state.tally().tolist() for state in run.plan.states]
    run.monitor.on_save_checkpoint(run.trainer, run.module, {})
    assert [state.tally().tolist() for state in run.plan.states] == before


@pytest.mark.parametrize("checkpoint", [{}, {"dropkey": {}}])
def test_checkpoints_without_counts_start_from_zero(checkpoint: dict[str, Any]) -> None:
    run = Run(interval=2)
    run.batch()
    run.monitor.on_load_checkpoint(run.trainer, run.module, checkpoint)
    run.trainer.global_step = 6
    run.start()
    assert all(state.counts.tolist() == [0, 0] for state in run.plan.states)
    run.batch()
    run.batch()
    assert run.steps == [7]


def test_a_checkpoint_that_was_validated_is_not_counted_on_from() -> None:
    run = Run(interval=4)
    run.batch()
    checkpoint: dict[str, Any] = {}
    run.monitor.on_save_checkpoint(run.trainer, run.module, checkpoint)
    run.monitor.on_load_checkpoint(run.trainer, run.module, checkpoint)
    run.monitor.setup(run.trainer, run.module, "fit")
    run.start()
    assert all(state.counts.tolist() == [0, 0] for state in run.plan.states)
