"""What tasks that predict classes share: probabilities, their spread over masks, features."""

from torch import Tensor, nn

from dropkey_cli.data.dataset import Batch
from dropkey_cli.tasks.features import pooled_features
from dropkey_cli.tasks.monte_carlo import MonteCarlo
from dropkey_cli.tasks.optimized import OptimizedModule


class PredictingModule(OptimizedModule):
    """Predicts by its network, or by the mean over DropKey's masks.

    A task gives ``probabilities`` and ``logits_of``, and ``scores`` where the loss takes others than the probabilities.

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

    def scores(self, logits: Tensor) -> Tensor:
        """What is averaged over masks before the loss (B, K), in [0, 1]."""
        return self.probabilities(logits)

    def logits_of(self, scores: Tensor) -> Tensor:
        """Logits (B, K) whose `scores` are these."""
        raise NotImplementedError

    def predict_step(self, batch: Batch, _batch_index: int) -> dict[str, Tensor]:
        """``probability`` (B, K); with Monte Carlo its ``std`` (B, K), and pooled ``features`` (B, C) where they are wanted."""
        return self._outputs(batch, self.network if self.predicts_features else None)

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, K) of a batch; in evaluation with Monte Carlo those of the mean score."""
        if self.monte_carlo is not None and not self.training:
            mean = self.monte_carlo.average(lambda: {"probability": self.scores(self(batch["image"]))}, batch["index"])
            return self.logits_of(mean["probability"])
        logits: Tensor = self(batch["image"])
        return logits

    def _outputs(self, batch: Batch, featured: nn.Module | None = None) -> dict[str, Tensor]:
        def outputs() -> dict[str, Tensor]:
            with pooled_features(featured) as features:
                probability = self.probabilities(self(batch["image"]))
            return {"probability": probability, **({"features": features[0]} if features else {})}

        return outputs() if self.monte_carlo is None else self.monte_carlo.average(outputs, batch["index"])
