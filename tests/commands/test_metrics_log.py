import csv
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from dropkey_cli.commands.metrics_log import MetricsLog

ROWS: list[tuple[dict[str, Tensor | float], int]] = [
    ({"train/loss": 2.5, "epoch": 0}, 0),
    ({"val/acc1": 0.25, "epoch": 0}, 1),
    ({"train/loss": 2.0, "epoch": 1}, 2),
]


def write(logger: CSVLogger, rows: list[tuple[dict[str, Tensor | float], int]]) -> None:
    for values, step in rows:
        logger.log_metrics(values, step)
    logger.save()


def test_the_file_is_lightnings(tmp_path: Path) -> None:
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    write(MetricsLog(tmp_path / "ours"), ROWS)
    write(CSVLogger(str(tmp_path / "theirs"), name="", version=""), ROWS)
    assert (tmp_path / "ours/metrics.csv").read_bytes() == (tmp_path / "theirs/metrics.csv").read_bytes()


@pytest.mark.parametrize("before", [1, 2])
def test_another_part_of_the_run_goes_on_in_it(before: int, tmp_path: Path) -> None:
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    write(MetricsLog(tmp_path / "whole"), ROWS)
    write(MetricsLog(tmp_path / "parts"), ROWS[:before])
    write(MetricsLog(tmp_path / "parts"), ROWS[before:])
    with (tmp_path / "parts/metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    assert (tmp_path / "parts/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()
    assert [file.name for file in (tmp_path / "parts").iterdir()] == ["metrics.csv"]
