"""Seeds every training batch, so that processes draw different masks and a repeated run draws the same ones."""

from lightning import Callback, LightningModule, Trainer

from dropkey_cli.seeds import derived_seed, seed_generators


class BatchSeeds(Callback):
    """Seeds torch's generators at each training batch from (seed, epoch, batch, rank).

    ``seed_everything`` gives every process the same random numbers, so without this all of them would drop the same keys.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Seed the batch."""
        seed = derived_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        seed_generators(seed, trainer.strategy.root_device)
