"""``metrics.csv``: Lightning's CSVLogger, which goes on in a file that is there instead of deleting it."""

import csv
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from dropkey_cli.files import whole_file


class MetricsLog(CSVLogger):
    """Logs into ``metrics.csv`` of a run's folder, behind the rows of the run's earlier part.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """What writes the file."""
        if self._experiment is None:
            self._experiment = _ContinuingWriter(self.log_dir)
        return self._experiment


class _ContinuingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Lightning deletes an earlier file here."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """As Lightning's, but whole or not at all."""
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="utf-8") as old, whole_file(path, "w", newline="", encoding="utf-8") as new:
            writer = csv.DictWriter(new, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(old))
