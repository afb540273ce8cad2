"""Runs that are stopped or killed and go on: weights, checkpoints and logs are those of the run that was left alone."""

import os
import random
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dropkey_cli.commands.command_line import configs_first
from dropkey_cli.commands.resume import record_job, requeued_run, resumed_run, typed
from dropkey_cli.errors import InputError
from tests.commands.forks import QUICKSTART, RUN, log, run, run_on, signal_itself

forked = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python 3.12 on: this process has threads
]
FIT = (
    "fit", "--config", QUICKSTART, "--trainer.max_epochs=2", "--trainer.limit_train_batches=6", "--trainer.log_every_n_steps=4",
    "--data.batch_size=16", "--checkpoint_minutes=0.0001", "--trainer.limit_val_batches=4",
    "--report=false",  # that of a stopped run: callbacks/test_report.py
)  # fmt: skip
RESUME = ("fit", "--resume", str(RUN))


def same(first: Any, second: Any) -> bool:  # noqa: ANN401 - what checkpoints hold
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, optimizer, loops, metrics, all files but those that say where and when."""
    names = sorted(file.name for file in (expected / RUN / "checkpoints").iterdir())
    assert "last.ckpt" in names
    for name in names:
        one, other = (torch.load(folder / RUN / "checkpoints" / name, weights_only=True) for folder in (found, expected))
        keys = ["state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "dropkey", "metric_states"]
        for key in (*keys, "current_model_state", "averaging_state"):
            assert same(one.get(key), other.get(key)), (name, key)
    for name in ("metrics.csv", "drop_ratio.csv", "drop_ratio.png", "config.yaml"):
        assert (found / RUN / name).read_bytes() == (expected / RUN / name).read_bytes(), name
    files = [{str(file.relative_to(folder / RUN)) for file in (folder / RUN).rglob("*")} for folder in (found, expected)]
    assert files[0] == files[1]


# Bit for bit

EMA = "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 0.9}}]"
RECIPE = [
    "--ema=0.9", "--patience=9", "--trainer.val_check_interval=2", "--finish_without_dropkey=0.4", "--finish_lr=1e-3",
    "--model.schedule=plateau", "--model.schedule_args={patience: 0, decay_rate: 0.5}", "--model.warmup_share=0",
    "--model.optimizer=lamb", "--model.mixup=0.8", "--model.cutmix=1", "--model.mix_off_share=0.25",
    "--model.erase_probability=0.3", "--model.loss=bce", "--model.class_weights=balanced",
    "--model.drop_path=0.1", "--model.patch_drop=0.25", "--model.grad_checkpointing=true", "--model.freeze=[patch_embed]",
]  # fmt: skip
VARIANTS = {
    "plain": [],
    "workers, two validations per epoch": ["--data.num_workers=2", "--trainer.val_check_interval=3"],
    "accumulated gradients, clipped, bfloat16, EMA": [
        "--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=1", "--trainer.precision=bf16-mixed", EMA,
    ],
    "a whole recipe": RECIPE,
    "no validation": ["--trainer.limit_val_batches=0"],
    "every second epoch": ["--trainer.check_val_every_n_epoch=2"],
    "drop path and key masks": ["--model.model_args.drop_path_rate=0.2", "--model.dropkey.structure=key"],
    "compiled": ["--model.compile=true"],
    "validation every 4 batches of all epochs, learning rates logged": [
        "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=4", "--trainer.callbacks=[LearningRateMonitor]",
    ],
    "gradients accumulated from the second epoch on": [
        "--trainer.callbacks=[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 1, 1: 2}}}]",
    ],
}  # fmt: skip
SLOW = {
    "a whole recipe",
    "gradients accumulated from the second epoch on",
    "every second epoch",
    "no validation",
    "drop path and key masks",
    "compiled",
}


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder in which a variant's run was left alone."""

    @cache
    def folder_of(variant: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        assert run([*FIT, *VARIANTS[variant]], folder) == 0, log(folder)
        return folder

    return folder_of


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW) + forked) for name in VARIANTS]
)
@pytest.mark.parametrize("batch", [3, 6, pytest.param(7, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_bit_for_bit(variant: str, batch: int, tmp_path: Path, left_alone: Callable[[str], Path]) -> None:
    stop = signal_itself(signal.SIGTERM, batch=batch)
    assert run([*FIT, *VARIANTS[variant]], tmp_path, prepare=stop) == 143, log(tmp_path)
    assert "Traceback" not in log(tmp_path)
    assert f"continue with: dropkey fit --resume {RUN}\n" in log(tmp_path)
    assert run(RESUME, tmp_path) == 0, log(tmp_path)
    assert_same_run(tmp_path, left_alone(variant))


SAVED = "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {%s, save_top_k: -1, filename: 'at{step}'}}]"


@pytest.mark.parametrize(
    "when",
    [
        pytest.param(when, marks=forked) for when in ("every_n_train_steps: 3", "every_n_epochs: 1")
    ],  # after it and after validation
)
def test_a_new_run_goes_on_from_any_checkpoint_with_the_next_images(when: str, tmp_path: Path) -> None:
    words = [*FIT, "--trainer.val_check_interval=3", "--data.num_workers=1"]  # which fetch ahead
    assert run([*words, SAVED % when], tmp_path) == 0, log(tmp_path)
    ends = [tmp_path / RUN / "checkpoints/last.ckpt"]
    for step in (3, 6, 9):
        assert run([*words, f"--ckpt_path={RUN}/checkpoints/atstep={step}.ckpt"], tmp_path) == 0, log(tmp_path)
        ends.append(tmp_path / RUN.parent / f"version_{step // 3}" / "checkpoints/last.ckpt")
    whole, *parts = (torch.load(end, weights_only=True) for end in ends)
    for part in parts:
        assert part["global_step"] == 12
        assert same(part["state_dict"], whole["state_dict"])


def kill_and_resume(words: Sequence[str], folder: Path, seconds: Sequence[float]) -> int:
    """A run that is killed after each of these times and goes on; how often it was."""
    last = folder / RUN / "checkpoints/last.ckpt"
    killed = 0
    for limit in [*seconds, 0.0]:
        if not last.is_file():  # nothing was saved
            shutil.rmtree(folder / "runs", ignore_errors=True)
        code = run(RESUME if last.is_file() else words, folder, seconds=limit)
        if code == 0:
            break
        assert code == -signal.SIGALRM, log(folder)
        killed += 1
        if last.is_file():
            torch.load(last, weights_only=True)  # it is whole
    return killed


@pytest.mark.parametrize("moments", [pytest.param(3, marks=forked), pytest.param(20, marks=[*forked, pytest.mark.slow])])
def test_a_run_that_is_killed_at_any_moment_goes_on_bit_for_bit(
    moments: int, tmp_path: Path, left_alone: Callable[[str], Path]
) -> None:
    generator, killed, trial = random.Random(moments), 0, 0
    while killed < moments:
        trial += 1
        folder = tmp_path / str(trial)
        folder.mkdir()
        killed += kill_and_resume(FIT, folder, [generator.uniform(0.3, 2.0) for _ in range(5)])
        assert_same_run(folder, left_alone("plain"))
        assert trial < 5 * moments


@pytest.mark.parametrize(
    ("strategy", "recipe"),
    [
        pytest.param("ddp", [], marks=forked),
        pytest.param("ddp", RECIPE, marks=[*forked, pytest.mark.slow]),
        pytest.param("fsdp2", [], marks=[*forked, pytest.mark.slow]),
        pytest.param("fsdp2", RECIPE[1:], marks=[*forked, pytest.mark.slow]),  # but for the EMA
    ],
)
def test_two_processes_stop_together_and_go_on_bit_for_bit(strategy: str, recipe: list[str], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    words = [*FIT, *recipe, f"--trainer.strategy={strategy}"]
    assert run_on(2, words, whole) == [0, 0], log(whole)

    def interrupt_the_second() -> None:
        if os.environ["LOCAL_RANK"] == "1":
            signal_itself(signal.SIGINT, batch=4)()

    assert run_on(2, words, parts, prepare=interrupt_the_second) == [130, 0], log(parts)
    assert run_on(2, [*RESUME, f"--trainer.strategy={strategy}"], parts) == [0, 0], log(parts)
    for folder in (whole, parts):
        for file in (folder / RUN).glob("config*"):
            file.unlink()
            (folder / RUN / "config.yaml").touch()
    assert_same_run(parts, whole)


# Stopping


@pytest.mark.parametrize(("number", "code"), [pytest.param(signal.SIGINT, 130, marks=forked)])
def test_ctrl_c_saves_and_says_how_to_go_on(number: int, code: int, tmp_path: Path) -> None:
    assert run(FIT, tmp_path, prepare=signal_itself(number, batch=3)) == code
    assert log(tmp_path).splitlines()[-2:] == [
        "stopping after this step, to save; the same once more stops at once",
        f"stopped at step 2; continue with: dropkey fit --resume {RUN}",
    ]
    assert torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(("number", "code"), [pytest.param(number, 128 + number, marks=forked) for number in (2, 15)])
def test_a_signal_to_the_loading_processes_too_changes_nothing(number: int, code: int, tmp_path: Path) -> None:
    words = [*FIT, "--data.num_workers=2"]
    assert run(words, tmp_path, prepare=signal_itself(number, batch=3, to_all=True)) == code, log(tmp_path)
    assert log(tmp_path).splitlines()[-1] == f"stopped at step 2; continue with: dropkey fit --resume {RUN}"
    assert "Traceback" not in log(tmp_path)


@pytest.mark.parametrize(("number", "code"), [pytest.param(number, 128 + number, marks=forked) for number in (2, 15)])
def test_a_second_signal_ends_at_once(number: int, code: int, tmp_path: Path) -> None:
    def twice() -> None:
        signal_itself(number, batch=3)()
        signal_itself(number, batch=3)()

    assert run(FIT, tmp_path, prepare=twice) == code
    assert "stopped at step" not in log(tmp_path)
    assert f"the last checkpoint is that of step 1; continue with: dropkey fit --resume {RUN}" in log(tmp_path)
    assert "Traceback" not in log(tmp_path)


@pytest.mark.parametrize("code", [pytest.param(143, marks=forked)])
def test_a_run_that_keeps_no_checkpoints_ends_at_once(code: int, tmp_path: Path) -> None:
    words = [*FIT, "--trainer.enable_checkpointing=false", "--trainer.log_every_n_steps=1"]
    assert run(words, tmp_path, prepare=signal_itself(signal.SIGTERM, batch=3)) == code, log(tmp_path)
    assert "to save" not in log(tmp_path)
    assert "Traceback" not in log(tmp_path)


@pytest.mark.parametrize("code", [pytest.param(138, marks=forked)])
def test_slurm_starts_the_job_again_and_it_finds_its_run(code: int, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text('#!/bin/sh\necho "$@" > requeued\n')
    (tools / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "PATH": f"{tools}:{os.environ['PATH']}"}
    assert run(FIT, tmp_path, prepare=signal_itself(signal.SIGUSR1, batch=4), environment=slurm) == code, log(tmp_path)
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert run(FIT, tmp_path, environment={**slurm, "SLURM_RESTART_COUNT": "1"}) == 0, log(tmp_path)
    assert [path.name for path in (tmp_path / RUN.parent).iterdir()] == ["version_0"]
    assert torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12


# Trouble


@pytest.mark.parametrize("code", [pytest.param(1, marks=forked)])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(code: int, tmp_path: Path) -> None:
    assert run(FIT, tmp_path, prepare=signal_itself(signal.SIGTERM, batch=4)) == 143
    saved = (tmp_path / RUN / "checkpoints/last.ckpt").read_bytes()

    def no_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(saved) // 2,) * 2)

    before = len(log(tmp_path))
    assert run(RESUME, tmp_path, prepare=no_room) == code
    assert "Traceback" not in log(tmp_path)
    error = next(line for line in log(tmp_path)[before:].splitlines() if line.startswith("dropkey: error"))
    assert f"cannot write the checkpoint '{RUN}/checkpoints/" in error
    assert error.endswith(f"(File too large); the one before is intact: free some space or mend the folder, then go on with "
                          f"dropkey fit --resume {RUN}")  # fmt: skip
    assert (tmp_path / RUN / "checkpoints/last.ckpt").read_bytes() == saved
    assert not list((tmp_path / RUN).rglob("*.part"))
    assert run(RESUME, tmp_path) == 0


@pytest.mark.parametrize("code", [pytest.param(2, marks=forked)])
def test_another_place_within_an_epoch_is_refused(code: int, tmp_path: Path) -> None:
    assert run(FIT, tmp_path, prepare=signal_itself(signal.SIGTERM, batch=3)) == 143
    assert run([*RESUME, "--data.batch_size=8"], tmp_path) == code
    assert (
        "the checkpoint was written after 2 batches of an epoch with images 1079, batch_size 16, processes 1, now there are "
        "images 1079, batch_size 8, processes 1: give the same images"
    ) in log(tmp_path)
    assert yaml.safe_load((tmp_path / RUN / "config.yaml").read_text())["data"]["init_args"]["batch_size"] == 16


@pytest.mark.parametrize("code", [pytest.param(0, marks=forked)])
def test_a_finished_run_ends_at_once_and_goes_on_for_more_epochs(code: int, tmp_path: Path) -> None:
    assert run(FIT, tmp_path) == 0
    rows = (tmp_path / RUN / "metrics.csv").read_text()
    assert run(RESUME, tmp_path) == code, log(tmp_path)
    assert (tmp_path / RUN / "metrics.csv").read_text() == rows
    assert run([*RESUME, "--trainer.max_epochs=3"], tmp_path) == code, log(tmp_path)
    assert (tmp_path / RUN / "metrics.csv").read_text().startswith(rows)
    assert torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 18
    first, second = (yaml.safe_load((tmp_path / RUN / name).read_text()) for name in ("config.1.yaml", "config.yaml"))
    assert (first["trainer"]["max_epochs"], second["trainer"]["max_epochs"]) == (2, 3)
    assert first["ckpt_path"] is second["ckpt_path"] is None


@pytest.mark.parametrize("code", [pytest.param(0, marks=forked)])
def test_what_cannot_be_written_as_text_does_not_spoil_the_config(code: int, tmp_path: Path) -> None:
    average = "{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.001, swa_epoch_start: 1}}"  # its device is one

    def stop() -> None:
        warnings.filterwarnings("ignore", "SWA is currently only supported every epoch")
        signal_itself(signal.SIGTERM, batch=4)()

    assert run([*FIT, f"--trainer.callbacks=[{average}]"], tmp_path, prepare=stop) == 143, log(tmp_path)
    options = (tmp_path / RUN / "config.yaml").read_text()
    assert "StochasticWeightAveraging" in options
    assert "Unable" not in options
    words = ["fit", "--config", str(RUN / "config.yaml"), "--trainer.fast_dev_run=1"]
    assert run(words, tmp_path, prepare=stop) == code, log(tmp_path)


@pytest.mark.parametrize("code", [pytest.param(0, marks=forked)])
def test_a_run_that_was_moved_knows_its_best(code: int, tmp_path: Path) -> None:
    assert run(FIT, tmp_path) == 0
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "runs", elsewhere / "runs")
    assert run([*RESUME, "--trainer.max_epochs=3"], elsewhere) == code, log(elsewhere)
    state = torch.load(elsewhere / RUN / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    best = next(value for key, value in state.items() if key.startswith("BestCheckpoint"))
    assert best["best_model_path"] == str(elsewhere / RUN / "checkpoints/best.ckpt")


# Which run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def make_run(folder: str, *, checkpoint: str = "last.ckpt") -> Path:
    path = Path(folder)
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").touch()
    (path / "checkpoints" / checkpoint).touch()
    return path


@pytest.mark.parametrize("given", ["runs/a/version_0", "last", "runs/a", "runs/a/version_0/checkpoints/last.ckpt"])
def test_a_run_is_named_as_checkpoints_are(given: str, here: Path) -> None:
    make_run("runs/a/version_0")
    words, folder = resumed_run("fit", ["--model.lr=1", "--resume", given])
    assert folder == Path("runs/a/version_0")
    assert words == [f"--config={folder}/config.yaml", f"--ckpt_path={folder}/checkpoints/last.ckpt", "--model.lr=1"]


def test_what_cannot_be_resumed(here: Path) -> None:
    make_run("runs/a/version_0", checkpoint="best.ckpt")
    for command, words, message in (
        ("fit", ["--resume=nowhere"], "--resume 'nowhere' is neither a checkpoint nor a run folder"),
        ("fit", ["--resume"], "--resume needs a run: write --resume runs/NAME/version_N, or --resume last"),
        ("fit", ["--resume=runs/a", "--ckpt_path=x"], "leave --ckpt_path out"),
        ("fit", ["--resume=runs/a"], "--resume 'runs/a' is neither a checkpoint nor a run folder with one"),
        (
            "fit",
            ["--resume=runs/a/version_0"],
            "finds 'runs/a/version_0/checkpoints/best.ckpt', which is no last.ckpt of a run",
        ),
        ("test", ["--resume=runs/a"], "goes on with a training run, which test is not: give --ckpt_path RUN"),
    ):
        with pytest.raises(InputError, match=message):
            resumed_run(command, words)


def test_run_log_says_what_was_typed(here: Path) -> None:
    make_run("runs/a/version_1")
    words, folder = resumed_run("fit", ["--resume=runs/a/version_1", "--config=more.yaml", "--model.lr=1"])
    Path("more.yaml").touch()
    assert typed(configs_first(words), folder) == [
        "--resume", "runs/a/version_1", "--config", "more.yaml", "--model.lr=1",
    ]  # fmt: skip
    assert typed(["--model.lr=1"], None) == ["--model.lr=1"]


def test_without_resume_nothing_changes(here: Path) -> None:
    make_run("runs/a/version_0")
    assert resumed_run("fit", ["--model.lr=1"]) == (["--model.lr=1"], None)
    assert resumed_run("predict", ["x"]) == (["x"], None)


def test_a_requeued_job_finds_its_own_run_only(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    record_job(make_run("runs/a/version_0"))
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    record_job(make_run("runs/a/version_1"))
    record_job(make_run("runs/a/version_2", checkpoint="best.ckpt"))  # stopped before anything was saved
    assert requeued_run() is None  # not started again
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert requeued_run() == Path("runs/a/version_1")
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    assert requeued_run() is None
