import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from dropkey_cli.callbacks.drop_ratios import DropRatioMonitor
from dropkey_cli.commands import benchmark_fit
from dropkey_cli.commands.benchmark_fit import OVERHEAD, STEP_PARTS, PartTimes, part_seconds
from dropkey_cli.errors import InputError

QUICKSTART = ("--config", str(Path(__file__).parents[2] / "configs" / "quickstart.yaml"))


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("dropkey_cli.commands.benchmark_fit.time.perf_counter", clock)
    return clock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
    """Benchmarks in this process, in an empty folder; gives the JSON and what was printed."""
    monkeypatch.chdir(tmp_path)

    def benchmark(*words: str) -> tuple[Any, str]:
        benchmark_fit.benchmark_fit([*QUICKSTART, "--json=figures.json", *words])
        return json.loads(Path("figures.json").read_text()), capsys.readouterr().out

    return benchmark


def test_every_moment_belongs_to_the_innermost_action(clock: Clock) -> None:
    times = PartTimes()
    for action, seconds in (("step", 1), ("forward", 2), ("log", 4), ("log", 8)):
        times.start(action)
        clock.now += seconds
    times.stop("log")
    clock.now += 16
    times.stop("log")
    clock.now += 32
    times.stop("forward")
    clock.now += 64
    assert times.take() == {"": 0, "step": 65, "forward": 34, "log": 28}
    clock.now += 128
    times.stop("step")
    clock.now += 256
    assert times.take() == {"step": 128, "": 256}


def test_a_device_is_waited_for_at_every_border(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    times = PartTimes()
    with times.profile("forward"):
        pass
    times.device = torch.device("cpu")
    with times.profile("forward"):
        pass
    assert waits == []
    times.device = torch.device("cuda", 0)
    with times.profile("forward"):
        pass
    assert waits == [torch.device("cuda", 0)] * 2


def test_actions_are_summed_by_part() -> None:
    actions = {
        "[_TrainingEpochLoop].train_dataloader_next": 1.0,
        "[Strategy]DDPStrategy.batch_to_device": 2.0,
        "[LightningDataModule]Digits.on_after_batch_transfer": 4.0,
        "[Strategy]DDPStrategy.training_step": 8.0,
        "[Strategy]DDPStrategy.backward": 16.0,
        "[LightningModule]Classification.optimizer_step": 32.0,
        "[Callback]DropRatioMonitor.on_train_batch_end": 64.0,
        "[Callback]RunPlan.on_train_batch_end": 128.0,
        "": 256.0,
    }
    seconds = part_seconds(actions, STEP_PARTS, rest="rest")
    assert {part: spent for part, spent in seconds.items() if spent} == {
        "waiting for data": 1, "to the device, normalising": 6, "forward": 8, "backward": 16, "optimizer": 32,
        "drop-ratio monitor": 64, "rest": 384,
    }  # fmt: skip


def test_figures_of_a_run_add_up(run: Callable[..., tuple[Any, str]]) -> None:
    figures, out = run("--steps=8", "--warmup=2", "--trainer.log_every_n_steps=2", "--trainer.limit_train_batches=4")
    assert [path.name for path in Path().iterdir()] == ["figures.json"]  # no run folder
    assert figures["images_per_second"] == pytest.approx(32 / figures["step_seconds"])  # batches of 32
    assert set(figures["part_seconds"]) == {*STEP_PARTS, "Lightning's loop"}
    assert all(seconds > 0 for seconds in figures["part_seconds"].values())  # Lightning calls all of them as we think
    assert sum(figures["part_shares"].values()) == pytest.approx(1)
    assert figures["overhead_share"] == pytest.approx(sum(figures["part_shares"][part] for part in OVERHEAD))
    assert all(seconds >= 0 for seconds in figures["start_seconds"].values())
    assert re.search(r"^[\d.e+]+ images/s, [\d.e+]+ ms per step$", out, re.MULTILINE)
    for part in (*figures["part_seconds"], *figures["start_seconds"], *figures["machine"]):
        assert re.search(rf"^{re.escape(part)} ", out, re.MULTILINE)


def test_time_is_charged_where_it_is_spent(run: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: Callback, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        time.sleep(0.1)

    monkeypatch.setattr(DropRatioMonitor, "on_train_batch_end", slow)
    figures, _ = run("--steps=4", "--warmup=1")
    assert figures["part_seconds"]["drop-ratio monitor"] >= 0.1
    assert figures["step_seconds"] >= 0.1
    assert figures["images_per_second"] <= 32 / 0.1


def test_steps_of_short_epochs_are_all_counted(run: Callable[..., tuple[Any, str]]) -> None:
    interval = "--trainer.log_every_n_steps=2"  # up to whole intervals of which the steps in each window are rounded
    figures, out = run("--steps=6", "--warmup=1", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1", interval)
    assert "training    9 optimizer steps" in out
    assert figures["images_per_second"] == pytest.approx(32 / figures["step_seconds"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--json=nowhere/figures.json"],
            "--json 'nowhere/figures.json' cannot be written: give a file in a folder that exists",
        ),
        (["--trainer.fast_dev_run=2"], "--trainer.fast_dev_run ends before there is anything to time: leave it out"),
        (["--trainer.max_time=00:00:00:00"], "of 65 steps: leave out what limits it, or give fewer --steps"),
        (["--steps=0"], "steps"),
        (["--setps=3"], "unknown option --setps; did you mean '--steps'"),
    ],
)
def test_what_cannot_work_is_said(words: list[str], message: str, run: Callable[..., tuple[Any, str]]) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        run(*words)
    assert list(Path().iterdir()) == []


def test_help_says_which_options_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_fit.benchmark_fit(["--help"])
    out = capsys.readouterr().out
    assert "--steps N" in out
    assert "--json FILE" in out


def test_callbacks_that_end_a_run_or_keep_files_are_left_out(run: Callable[..., tuple[Any, str]]) -> None:
    stop = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/loss", "--patience=1"]
    keep = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks+=LearningRateMonitor"]
    figures, _ = run("--steps=2", "--warmup=1", "--trainer.log_every_n_steps=1", *stop, *keep)
    assert figures["images_per_second"] > 0


def test_the_age_of_the_process_is_at_least_its_cpu_time() -> None:
    assert benchmark_fit.process_seconds() >= time.process_time() - 0.1  # one thread; ticks are hundredths
