"""Ctrl-C and signals: training ends between two steps, all else at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

NOTE = b"\nstopping after this step, to save; the same once more stops at once\n"


class StopSignals(Callback):
    """Takes SIGINT, SIGTERM and, under SLURM, SIGUSR1 in the place of Lightning, which loses the exit code and can hang.

    In training a signal is only noted, for `LastCheckpoint` to save and to stop; a second one ends the process at once.

    Attributes:
        saver: Whether a `LastCheckpoint` will save and stop; without one a signal ends training at once, too.
        received: The signal that came in training, or 0.
        obeyed: Whether the run was saved and stopped because of it.
    """

    def __init__(self) -> None:
        self.saver = False
        self.received = 0
        self.obeyed = False
        self._training = self._speaks = False
        self._launcher: Any = None
        self._group: Any = None

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, in the place of what Lightning has just registered; it puts back the original handlers at the end."""
        self._launcher = trainer.strategy.launcher
        if threading.current_thread() is not threading.main_thread():
            return
        signals = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):  # not on Windows
            signals.append(signal.SIGUSR1)
        for number in signals:
            signal.signal(number, self._on_signal)

    on_validation_start = on_test_start = on_predict_start = on_sanity_check_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note signals from here on."""
        self.on_sanity_check_start(trainer, pl_module)
        self._training, self._speaks = True, trainer.is_global_zero
        if trainer.world_size > 1:
            # At every step Lightning broadcasts from the device whether a signal came, and waits for it; see `agreed`
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All is done: a signal that comes now ends the process at once."""
        self._training = False

    def agreed(self, wish: int) -> int:
        """The largest wish of all processes: so all of them do the same, whoever a signal reached. Waits for no device."""
        if self._group is None:
            return wish
        largest = torch.tensor(wish)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group)
        return int(largest)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._training and self.saver and not self.received:
            self.received = number
            if self._speaks:
                os.write(2, NOTE)  # print may be what was interrupted
            return
        if self._launcher is not None:
            self._launcher.kill(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)  # they may wait for this process
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
