"""Keeps with a run the configuration it was started with, and how many images it had."""

from collections.abc import Sized
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer

from dropkey_cli.files import keep_earlier, whole_file


class RunRecord(Callback):
    """Writes ``config.yaml`` into the run's folder and the model's and data's options into its checkpoints.

    Args:
        folder: The run's folder.
        config: The configuration as YAML, a valid ``--config`` of the same command.
    """

    def __init__(self, folder: Path | None, config: str) -> None:
        self.folder = folder
        self.config = config
        options = yaml.safe_load(config)  # once: it takes longer than to write the weights of a small network
        self._options = {part: options[part] for part in ("model", "data")}
        self._written = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Write the file when a run really begins or goes on: one that is refused before that leaves the earlier file alone.

        The file of the run's earlier part is kept under another name where it says something else.
        """
        if self.folder is None or self._written or not trainer.is_global_zero:
            return
        self._written = True
        path = self.folder / "config.yaml"
        if not path.is_file() or path.read_text(encoding="utf-8") != self.config:
            keep_earlier(path)
            with whole_file(path, "w", encoding="utf-8") as file:
                file.write(self.config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the options, so that other commands need no config, and the number of images of each split."""
        splits = getattr(trainer.datamodule, "splits", {})  # type: ignore[attr-defined]  # Lightning sets it
        checkpoint.setdefault("dropkey", {}).update(
            config=deepcopy(self._options),
            images={name: len(split) for name, split in splits.items() if isinstance(split, Sized)},
        )
