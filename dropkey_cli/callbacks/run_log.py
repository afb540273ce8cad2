"""What a run says: on the terminal and, with the time, in ``run.log`` of its folder."""

import logging
import logging.handlers
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from dropkey_cli.errors import one_line

_LOG = logging.getLogger("dropkey_cli.run")
_LOG.setLevel(logging.INFO)
_LOG.propagate = False  # the terminal has its own line
_FOREIGN = ("lightning.pytorch", "lightning.fabric", "timm")
_MOST = 10_000
"""Lines that are kept until training begins."""


def say(text: str, *, error: bool = False) -> None:
    """Print a line, and keep it in ``run.log`` where a run is under way.

    Args:
        text: The line.
        error: Print it on the standard error.
    """
    print(text, file=sys.stderr if error else sys.stdout, flush=True)
    note(text)


def note(text: str) -> None:
    """Keep a line in ``run.log`` where a run is under way; the terminal does not see it."""
    _LOG.info(text)


class RunLog(Callback):
    """Keeps what a run says, and its warnings, in ``run.log``: from setup on, in a file from the first step on.

    So a run that is refused leaves no file, and a resumed one goes on in the file that there is.

    Args:
        folder: The run's folder; None where nothing is kept.
        command: What was typed, for the first line.
    """

    def __init__(self, folder: Path | None, command: str) -> None:
        self.folder = folder
        self.command = command
        self._buffer: logging.handlers.MemoryHandler | None = None
        self._show: Callable[..., None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen."""
        if self.folder is None or not trainer.is_global_zero:
            return
        self.close()
        self._buffer = logging.handlers.MemoryHandler(_MOST, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        _LOG.addHandler(self._buffer)
        self._foreign = _OnlyWarnings(self._buffer)
        for name in _FOREIGN:
            logging.getLogger(name).addHandler(self._foreign)
        self._show = warnings.showwarning
        warnings.showwarning = self._show_warning
        note(self.command)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Open the file when the run really begins or goes on."""
        if self._buffer is not None and self._buffer.target is None:
            assert self.folder is not None
            file = logging.FileHandler(self.folder / "run.log", encoding="utf-8", errors="backslashreplace")
            file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
            self._buffer.setTarget(file)
            self._buffer.flush()
            self._buffer.capacity = 1  # from now on line by line

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note what ended the run; a stop that was asked for has been said."""
        if isinstance(exception, Exception):
            note(f"error: {type(exception).__name__}: {one_line(exception)}")

    def close(self) -> None:
        """Listen no longer."""
        if self._buffer is None:
            return
        _LOG.removeHandler(self._buffer)
        for name in _FOREIGN:
            logging.getLogger(name).removeHandler(self._foreign)
        if self._show is not None:
            warnings.showwarning = self._show
        if self._buffer.target is not None:
            self._buffer.flush()
            self._buffer.target.close()
        self._buffer.close()
        self._buffer = None

    def _show_warning(self, message: Warning | str, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - as Python's
        note(f"warning: {' '.join(str(message).split())}")
        assert self._show is not None
        self._show(message, *arguments, **named)


class _OnlyWarnings(logging.Handler):
    """Hands the warnings of other libraries on."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__(logging.WARNING)
        self.target = target

    def emit(self, record: logging.LogRecord) -> None:
        """As a line of ours."""
        text = f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}"
        self.target.handle(logging.LogRecord(record.name, record.levelno, "", 0, text, None, None))
