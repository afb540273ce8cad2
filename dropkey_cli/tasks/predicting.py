"""What tasks that predict classes share: probabilities, their spread over masks, features."""

from torch import Tensor, nn

from dropkey_cli.data.dataset import Batch
from dropkey_cli.tasks.features import pooled_features
from dropkey_cli.tasks.monte_carlo import MonteCarlo
from dropkey_cli.tasks.optimized import OptimizedModule


class PredictingModule(OptimizedModule):
    """Predicts by its network, or by the mean over DropKey's masks. A task gives ``probabilities`` and ``logits_of``.

    Attributes:
        network: Built in ``configure_model``; the forward's images (B, C, height, width) become logits (B, K).
        mc_samples: Masks to average over in validation, test and prediction; 0 for none.
        predicts_features: Whether prediction gives the network's pooled features too.
        monte_carlo: Averages, where ``mc_samples`` asks for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Module | None = None
        self.mc_samples, self.predicts_features = 0, False  # the command's, not the network's: no checkpoint keeps them
        self.monte_carlo: MonteCarlo | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """What prediction gives for logits (B, K), in [0, 1]."""
        raise NotImplementedError

    def logits_of(self, probabilities: Tensor) -> Tensor:
        """Logits (B, K) that `probabilities` turns into these."""
        raise NotImplementedError

    def predict_step(self, batch: Batch, _batch_index: int) -> dict[str, Tensor]:
        """``probability`` (B, K); with Monte Carlo its ``std`` (B, K), and pooled ``features`` (B, C) where they are wanted."""
        return self._outputs(batch, self.network if self.predicts_features else None)

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, K) of a batch; in evaluation with Monte Carlo those of the mean probability."""
        sampled = self.monte_carlo is not None and not self.training
        logits: Tensor = self.logits_of(self._outputs(batch)["probability"]) if sampled else self(batch["image"])
        return logits

    def _outputs(self, batch: Batch, featured: nn.Module | None = None) -> dict[str, Tensor]:
        def outputs() -> dict[str, Tensor]:
            with pooled_features(featured) as features:
                probability = self.probabilities(self(batch["image"]))
            return {"probability": probability, **({"features": features[0]} if features else {})}

        return outputs() if self.monte_carlo is None else self.monte_carlo.average(outputs, batch["index"])
