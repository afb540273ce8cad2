"""Names and counts the images that could not be read, so that none goes missing in silence."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from dropkey_cli.callbacks.gathering import gather
from dropkey_cli.callbacks.run_log import say
from dropkey_cli.data.dataset import Batch
from dropkey_cli.errors import RunError

NAMED = 10


class SkippedImages(Callback):
    """With ``--data.on_error skip``: one line for each of the first unreadable images, and their number at the end.

    Stops where most images of an epoch cannot be read: then something else is wrong.
    """

    def __init__(self) -> None:
        self.paths: dict[str, None] = {}
        self._seen = self._skipped = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count an epoch's images from here: some were looked at before training."""
        self._seen = self._skipped = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at a batch's errors, if it is one that says them: other data have batches of their own."""
        if not isinstance(batch, Mapping) or not batch.keys() >= {"path", "error"}:
            return
        for path, error in zip(batch["path"], batch["error"], strict=True):
            self._seen += 1
            if error:
                self._skipped += 1
                self._note(path, error)

    on_validation_batch_end = on_test_batch_end = on_train_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to go on with what is left.

        Raises:
            RunError: If more than half of the images, of all processes together, were skipped.
        """
        counts = torch.tensor([self._seen, self._skipped], device=trainer.strategy.root_device)
        self._seen = self._skipped = 0
        if trainer.world_size > 1:
            dist.all_reduce(counts)
        seen, skipped = counts.tolist()
        if 2 * skipped > seen:
            raise RunError(f"{skipped} of {seen} images could not be read: dropkey check FOLDER says why; mend that")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in the first process how many there were, in all of them."""
        paths = sorted({path for each in gather(list(self.paths), trainer) for path in each})
        if paths:
            named = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
            say(f"{len(paths)} unreadable image{'s'[: len(paths) != 1]} skipped: {named} (dropkey check lists all)")

    on_test_end = on_train_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after a test, if validation is all there is."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_train_end(trainer, pl_module)

    def _note(self, path: str, error: str) -> None:
        if path in self.paths:
            return
        self.paths[path] = None
        if len(self.paths) <= NAMED:
            say(f"skipped {path!r}: {error}", error=True)
        elif len(self.paths) == NAMED + 1:
            say("further unreadable images are only counted", error=True)
