from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.callbacks.checkpoints import LoggedSteps
from dropkey_cli.callbacks.pace import Pace
from dropkey_cli.callbacks.progress import ProgressLines
from dropkey_cli.commands.metrics_log import MetricsLog
from dropkey_cli.commands.run_parts import default_precision, fill_image_options, first_callbacks, loggers, progress_callbacks


def test_data_takes_from_the_checkpoint_or_else_the_model_what_is_not_given() -> None:
    asked = {"image_size": 32, "mean": None, "std": None, "class_names": None, "batch_size": None}
    config = Namespace({"data.init_args": Namespace(**asked), "model.init_args.model_name": "test_vit"})  # type: ignore[no-untyped-call]
    fill_image_options(config, {"image_size": 64, "mean": [0.1, 0.2, 0.3], "class_names": ["a", "b"]})
    filled = {"mean": [0.1, 0.2, 0.3], "class_names": ["a", "b"], "std": (0.5, 0.5, 0.5)}
    assert vars(config.data.init_args) == {**asked, **filled}


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
